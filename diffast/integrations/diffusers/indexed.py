"""Recipes of the schedulers that step between training indices."""

from __future__ import annotations

import math

import numpy as np

from diffast import schedules, solvers
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.reading import Reading
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import clamp_of, hook_of, predicts
from diffast.model.denoiser import Prediction
from diffast.model.learned_variance import bounds, deviation
from diffast.solvers import compat


def check_indices(scheduler, indices) -> None:
    """Raises ValueError for an index that the model was not trained on."""
    count = scheduler.config.num_train_timesteps
    if max(indices) >= count:
        raise ValueError(
            f"timestep {max(indices)}, but the model was trained on 0 to {count - 1} (steps_offset "
            f"is {setting(scheduler.config, 'steps_offset', 0)})"
        )


def angles(scheduler, indices, clean) -> np.ndarray:
    """Returns times of `schedules.trig` at training indices; below 0: at alpha^2 = clean."""
    check_indices(scheduler, indices)
    products = scheduler.host.products
    square = np.array([products[i] if i >= 0 else clean for i in indices])
    return np.where(square > 0.0, np.arctan2(np.sqrt(1.0 - square), np.sqrt(square)), 0.5 * math.pi)


def whole_times(scheduler) -> list[int]:
    """Returns the timesteps as training indices."""
    return [int(t) for t in scheduler.host.times]


def ddim(scheduler, begin, options) -> Recipe:
    """DDIMScheduler."""
    eta, use_clipped = options
    config, times = scheduler.config, whole_times(scheduler)
    clean = scheduler.host.clean
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    trig = schedules.trig()
    clamp, hook = clamp_of(config), hook_of(scheduler)
    raw = (clamp is not None or hook is not None) and not use_clipped
    plan = compat.ddim_strides(
        trig,
        angles(scheduler, times, clean),
        angles(scheduler, [t - stride for t in times], clean),
        eta=float(eta),
        raw_noise=raw,
    )
    draws = (eta > 0,) * plan.nfe
    return Recipe(plan, Prediction(trig, predicts(config)), clamp, hook, draws)


def ddpm(scheduler, begin, options) -> Recipe:
    """DDPMScheduler."""
    config, times = scheduler.config, whole_times(scheduler)
    trig = schedules.trig()
    grid = angles(scheduler, [*times, -1], 1.0)
    kind = scheduler.variance_type
    large = kind in ("fixed_large", "fixed_large_log")
    plan = solvers.ddpm(trig, grid, variance="large" if large else "small")
    draws = tuple(t > 0 for t in times)
    deviations = None
    if kind in ("learned", "learned_range"):
        deviations = (kind, *bounds(trig, grid[:-1], grid[1:]))
        plan = compat.with_noise_weights(plan, np.array(draws, dtype=np.float64))
    elif kind == "fixed_large_log":
        raise ValueError(
            "variance_type is 'fixed_large_log', but diffusers takes the root of a logarithm there"
        )
    elif large and draws[-1]:
        # a last step that starts above index 0 still adds the forward step's noise
        square = np.cos(grid[-2]) ** 2
        plan = compat.with_noise_weights(
            plan, np.append(plan.weights("x", "z1")[:-1], math.sqrt(1.0 - square))
        )
    elif kind == "fixed_small_log":
        pass  # the same deviation, by way of its logarithm
    reads = Prediction(trig, predicts(config))
    return Recipe(plan, reads, clamp_of(config), hook_of(scheduler), draws, deviations=deviations)


def lcm(scheduler, begin, options) -> Recipe:
    """LCMScheduler."""
    config, times = scheduler.config, whole_times(scheduler)
    trig = schedules.trig()
    grid = np.append(angles(scheduler, times, 1.0), 0.0)
    skip, out = (
        np.array(values)
        for values in zip(
            *(scheduler.get_scalings_for_boundary_condition_discrete(t) for t in times),
            strict=True,
        )
    )
    plan = solvers.lcm(trig, grid)
    a, b = Prediction(trig, predicts(config)).affine(plan.times)
    clamp, hook, boundary = clamp_of(config), hook_of(scheduler), None
    if clamp is None and hook is None:
        reads = Reading(skip + out * a, out * b)
    else:
        reads, plan = Reading(a, b), compat.with_boundary(plan, skip, out)
        boundary = tuple(zip(skip.tolist(), out.tolist(), strict=True))
    draws = (True,) * (plan.nfe - 1) + (False,)
    return Recipe(plan, reads, clamp, hook, draws, boundary=boundary)


def pndm(scheduler, begin, options) -> Recipe:
    """PNDMScheduler."""
    config, times = scheduler.config, whole_times(scheduler)[begin:]
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type is {config.prediction_type!r}, but PNDM's is 'epsilon' or "
            "'v_prediction'"
        )
    stride = config.num_train_timesteps // scheduler.num_inference_steps
    # by training index, since the first steps call the network in the middle of a step
    products = scheduler.host.products  # the original reads no betas after its constructor
    space = schedules.from_betas(1.0 - products / np.append(1.0, products[:-1]))
    first, last = float(scheduler.host.products[0]), scheduler.host.clean
    if last not in (1.0, first):
        raise ValueError(f"final_alpha_cumprod is {last:g}, but 1 or alphas_cumprod[0]")
    clean = -1 if last == 1.0 else 0
    warm = [] if config.skip_prk_steps else scheduler.prk_timesteps.tolist()
    warm = [int(warm[i // 4 * 4]) for i in range(len(warm))]
    transfers, means, based = compat.pndm_stages(times, stride, clean, warm)
    check_indices(scheduler, [start for start, _ in transfers])
    plan = compat.pndm(
        space, times, transfers, means, based, velocity=config.prediction_type == "v_prediction"
    )
    if not plan.history:  # other code may go on behind the last step, from what this one remembers
        raise ValueError("the run has one step, which no plan remembers")
    return Recipe(plan, Reading(0.0, 1.0), begin=begin)


def learned_deviation(deviations, stage, output, channels):
    """Returns (output without variance, deviation of the noise element by element) for DDPM.

    "learned_range": see `diffast.model.learned_variance.deviation`; "learned": the variance itself.

    Args:
        deviations: (variance_type, [S] log of the least deviation, [S] of the largest).
        stage: which.
        output: [B, 2 channels, ...].
        channels: of the sample.

    Raises:
        ValueError: an output without a variance.
    """
    kind, small, large = deviations
    if output.shape[1] != 2 * channels:
        raise ValueError(
            f"variance_type is {kind!r}, but model_output has {output.shape[1]} channels and the "
            f"sample {channels}: twice as many are needed"
        )
    output, predicted = output.split(channels, dim=1)
    if kind == "learned":
        return output, predicted.sqrt()
    return output, deviation(predicted, float(small[stage]), float(large[stage]))
