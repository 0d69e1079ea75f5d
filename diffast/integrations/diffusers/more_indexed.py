"""Recipes of further schedulers that step between training indices."""

from __future__ import annotations

import numpy as np
import torch

from diffast import schedules
from diffast.integrations.diffusers.indexed import angles, whole_times
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import clamp_of, predicts
from diffast.model.denoiser import Prediction
from diffast.solvers import compat

# The angle that stands for a noise level of 0, where the noise in a state cannot be found: the
# weights of network outputs are then those of the limit to 6e-8 relative.
_NEARLY_CLEAN = 2.0**-24


def _stride(scheduler) -> int:
    return scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def ddim_inverse(scheduler, begin, options) -> Recipe:
    """DDIMInverseScheduler: each step ends at its own timestep."""
    config, times = scheduler.config, whole_times(scheduler)
    last, stride = config.num_train_timesteps - 1, _stride(scheduler)
    clean = float(scheduler.initial_alpha_cumprod)
    starts = angles(scheduler, [min(t - stride, last) for t in times], clean)
    kind, clamp = predicts(config), clamp_of(config)
    if kind == "x0" and (starts == 0.0).any():
        raise ValueError(
            "prediction_type is 'sample', but the first step starts without noise, where x0 does "
            "not tell the noise: set set_alpha_to_one=False"
        )
    trig, starts = schedules.trig(), np.maximum(starts, _NEARLY_CLEAN)
    plan = compat.inverse_strides(
        trig, starts, angles(scheduler, times, clean), raw_noise=clamp is not None
    )
    return Recipe(plan, Prediction(trig, kind), clamp)


def cogvideox_ddim(scheduler, begin, options) -> Recipe:
    """CogVideoXDDIMScheduler: DDIM without noise; it has options to clip and does not use them."""
    times, trig = whole_times(scheduler), schedules.trig()
    clean, stride = scheduler.host.clean, _stride(scheduler)
    ends = angles(scheduler, [t - stride for t in times], clean)
    plan = compat.ddim_strides(trig, angles(scheduler, times, clean), ends)
    return Recipe(plan, Prediction(trig, predicts(scheduler.config)))


def cogvideox_dpm(scheduler, begin, options) -> Recipe:
    """CogVideoXDPMScheduler; with the option every step is of first order."""
    (first,) = options
    times, trig = whole_times(scheduler), schedules.trig()
    clean, stride = scheduler.host.clean, _stride(scheduler)
    starts = angles(scheduler, times, clean)
    ends = angles(scheduler, [t - stride for t in times], clean)
    second = [not first and k > 0 and t >= stride for k, t in enumerate(times)]
    backs = np.append(starts[:1], starts[:-1])
    return Recipe(
        compat.dpm_2m_sde(trig, starts, ends, backs, second),
        Prediction(trig, predicts(scheduler.config)),
        # the noise of a step of first order is drawn in every step
        draws=(1, *(1 + more for more in second), 1),
        noise_dtype="sample",
        begin=-1,
        given=True,
    )


def tcd(scheduler, begin, options) -> Recipe:
    """TCDScheduler: it has options to clip and does not use them."""
    (eta,) = options
    times, trig = whole_times(scheduler), schedules.trig()
    ends = [*times[1:], 0]
    # in float32, as the original does
    middles = torch.floor((1 - eta) * torch.tensor(ends)).to(torch.long).tolist()
    last = scheduler.num_inference_steps - 1
    draws = tuple(eta > 0 and i != last for i in range(len(times)))
    starts = angles(scheduler, times, 1.0)
    middles, ends = (angles(scheduler, each, 1.0) for each in (middles, ends))
    plan = compat.tcd(trig, starts, middles, ends, draws)
    reads = Prediction(trig, predicts(scheduler.config))
    # what is shown beside the sample is the state at s', before the noise
    a, b = reads.affine(plan.times)
    quiet = compat.tcd(trig, starts, middles, ends, np.zeros(len(times), bool))
    of_x, of_x0 = quiet.weights("x", "x"), quiet.weights("x", "d")
    shown = tuple(zip(of_x + of_x0 * a, of_x0 * b, 0.0 * a, strict=True))
    return Recipe(plan, reads, draws=draws, noise_dtype="promoted", estimates=shown)


def unclip(scheduler, begin, options) -> Recipe:
    """UnCLIPScheduler; with the option each step ends at the next timestep, else one index lower.

    The last one always goes one index lower.
    """
    (strides,) = options
    config, times, trig = scheduler.config, whole_times(scheduler), schedules.trig()
    ends = [t - 1 for t in times]
    if strides:
        ends[:-1] = times[1:]
    starts, targets = angles(scheduler, times, 1.0), angles(scheduler, ends, 1.0)
    kind = predicts(config)
    if kind not in ("epsilon", "x0"):
        raise ValueError(
            f"prediction_type is {config.prediction_type!r}, but UnCLIP's is 'epsilon' or 'sample'"
        )
    # of neighbours from the table; others in float32, where steps from pure noise have alpha = 0
    products = np.append(scheduler.host.products, 1.0).astype(np.float32)
    ratio = products[times] / products[ends]  # index -1 is the clean end
    far = np.array([end != t - 1 for t, end in zip(times, ends, strict=True)])
    betas = np.where(far, np.float32(1.0) - ratio, scheduler.host.betas[times].astype(np.float32))
    alphas = np.float32(1.0) - betas
    draws = np.array([t > 0 for t in times])
    small = np.sin(targets) / np.sin(starts) * np.sqrt(betas)
    variance, deviations = setting(config, "variance_type"), None
    if variance != scheduler.variance_type:  # the original reads both
        raise ValueError(
            f"variance_type is {variance!r} in the config, but the scheduler's attribute is "
            f"{scheduler.variance_type!r}"
        )
    if variance == "learned_range":
        if not small[draws].all():
            raise ValueError("a step ends without noise, where the least variance is 0")
        deviations = (variance, np.log(np.where(draws, small, 1.0)), 0.5 * np.log(betas))
        noise = 1.0 * draws
    elif variance == "fixed_small_log":
        noise = np.where(draws, np.maximum(small, 1e-10), 0.0)
    else:
        raise ValueError(
            f"variance_type is {variance!r}, but UnCLIP's is 'fixed_small_log' or 'learned_range'"
        )
    plan = compat.posterior(trig, starts, targets, alphas, betas, noise)
    clamp = float(config.clip_sample_range) if setting(config, "clip_sample") else None
    draws = tuple(draws.tolist())
    return Recipe(plan, Prediction(trig, kind), clamp, draws=draws, deviations=deviations)


def repaint(scheduler, begin, options) -> Recipe:
    """RePaintScheduler: one stage for each timestep, however often the run comes back to it."""
    times, trig = whole_times(scheduler), schedules.trig()
    clean, stride = scheduler.host.clean, _stride(scheduler)
    starts = angles(scheduler, times, clean)
    ends = angles(scheduler, [t - stride for t in times], clean)
    clamp = 1.0 if setting(scheduler.config, "clip_sample") else None
    eta = float(scheduler.eta)
    for t, end in zip(times, ends, strict=True):
        if t <= 0 and eta > 0 and end > 0.0:
            raise ValueError(f"timestep {t} has no noise, but its step ends above the clean end")
    plan = compat.repaint(trig, starts, ends, eta, raw_noise=clamp is not None)
    draws = (True,) * plan.nfe
    return Recipe(plan, Prediction(trig, "epsilon"), clamp, draws=draws, begin=-1, given=True)
