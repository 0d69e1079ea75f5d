"""Recipes of further schedulers whose noise levels are a list of sigmas."""

from __future__ import annotations

import numpy as np
import torch

from diffast import schedules, solvers
from diffast.integrations.diffusers.dpm_family import rising_orders
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.reading import Reading, edm_reading, sigma_reading
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import (
    ends_of_steps,
    falling,
    flow_sigmas,
    hook_of,
    levels,
    predicts,
    sigma_space,
)
from diffast.model.denoiser import Prediction
from diffast.solvers import compat


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().to(torch.float64).numpy()


def kdpm2_ancestral(scheduler, begin, options) -> Recipe:
    """KDPM2AncestralDiscreteScheduler."""
    grid = falling(scheduler.host.sigmas[::2])  # each level stands there twice; it reads these
    middles, downs, ups = (
        _numbers(tensor)[0 : 2 * len(grid) - 2 : 2]
        for tensor in (scheduler.sigmas_interpol, scheduler.sigmas_down, scheduler.sigmas_up)
    )
    if not np.isfinite(middles).all():
        raise ValueError(
            "sigmas_interpol is NaN for these betas and so few steps, and so are some of the "
            "timesteps, but a network needs times"
        )
    plan = compat.midpoint_ancestral(sigma_space(grid), grid, middles, downs, ups)
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    draws = tuple(bool(i % 2) for i in range(plan.nfe))
    return Recipe(plan, reads, draws=draws)


def dpm_sde(scheduler, begin, options) -> Recipe:
    """DPMSolverSDEScheduler."""
    (s_noise,) = options
    sigmas = scheduler.host.sigmas
    ends = ends_of_steps(sigmas)
    grid = falling(ends)
    plan = solvers.dpmpp_sde(sigma_space(grid), grid, s_noise=float(s_noise))
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    # the very float32 numbers between which diffusers asks its path: others give other noise
    narrow = torch.tensor(ends, dtype=torch.float32)
    t = narrow.log().neg()
    middle = t[:-1] + (t[1:] - t[:-1]) * 0.5
    ends, between = t.neg().exp().tolist(), middle.neg().exp().tolist()
    intervals = [
        pair
        for n in range(len(grid) - 1)
        for pair in ((ends[n], between[n]), (ends[n], ends[n + 1]))
    ][: plan.nfe]
    draws = tuple(bool(w) for w in plan.weights("x", "z1"))
    return Recipe(plan, reads, draws=draws, intervals=tuple(intervals))


def cosine_dpm(scheduler, begin, options) -> Recipe:
    """CosineDPMSolverMultistepScheduler."""
    config, order = scheduler.config, scheduler.config.solver_order
    if order not in (1, 2):
        raise ValueError(f"solver_order is {order}, but there is a step of order 1 or 2 alone")
    grid, count = falling(levels(scheduler)[begin:]), len(scheduler.timesteps)
    final_first = config.euler_at_final or config.final_sigmas_type == "zero"
    orders = rising_orders(config, count, begin, final_first)
    space = sigma_space(grid)
    plan = solvers.dpmpp_2m_sde(space, grid, orders=orders, kind=config.solver_type)
    sigmas = scheduler.host.sigmas[begin : count + 1].tolist()
    # no noise falls in a last step that repeats sigma_min, between roundings of one number
    falls = (np.diff(sigmas) < -1e-6 * np.array(sigmas[:-1])) & (np.array(sigmas[1:]) > 0.0)
    plan = compat.with_noise_weights(plan, plan.weights("x", "z1") * falls)
    draws = tuple(falls.tolist())
    intervals = tuple(zip(sigmas[:-1], sigmas[1:], strict=True))
    reads = edm_reading(config)(plan.times)
    return Recipe(plan, reads, draws=draws, intervals=intervals, begin=begin)


def dpm_multistep_inverse(scheduler, begin, options) -> Recipe:
    """DPMSolverMultistepInverseScheduler: the levels rise, or fall with use_flow_sigmas."""
    config = scheduler.config
    kind = config.algorithm_type
    if kind not in ("dpmsolver", "dpmsolver++"):
        raise ValueError(
            f"algorithm_type is {kind!r}, but the noise of an SDE has no deviation where the "
            "levels rise"
        )
    grid = levels(scheduler)[begin:]
    flow = flow_sigmas(config)
    space, times = (schedules.flow(), grid) if flow else (schedules.trig(), np.arctan(grid))
    orders = rising_orders(config, len(scheduler.timesteps), begin, config.euler_at_final)
    form = "data" if kind == "dpmsolver++" else "noise"
    plan = compat.dpm_multistep_either_way(space, times, orders, form, config.solver_type)
    reads = Prediction(space, predicts(config))
    return Recipe(plan, reads, hook=hook_of(scheduler), begin=begin)


def ipndm(scheduler, begin, options) -> Recipe:
    """IPNDMScheduler."""
    alphas, sigmas = _numbers(scheduler.alphas), scheduler.host.betas
    count = len(scheduler.host.times) + 1
    plan = compat.improved_pndm(schedules.trig(), alphas[:count], sigmas[:count], begin)
    return Recipe(plan, Reading(0.0, 1.0), begin=begin)


def flow_lcm(scheduler, begin, options) -> Recipe:
    """FlowMatchLCMScheduler."""
    if scheduler._scale_factors and scheduler._upscale_mode:
        raise ValueError("scale_factors change the size of the latents, but a plan's stays")
    if setting(scheduler.config, "invert_sigmas"):
        raise ValueError("invert_sigmas is set, but these sigmas rise and end in noise")
    flow = schedules.flow()
    plan = solvers.lcm(flow, falling(levels(scheduler)))
    draws = (True,) * plan.nfe
    return Recipe(plan, Prediction(flow, "flow"), draws=draws, noise_dtype=torch.float32, wide=True)


def ltx_ancestral(scheduler, begin, options) -> Recipe:
    """LTXEulerAncestralRFScheduler."""
    config = scheduler.config
    sigmas, flow = levels(scheduler), schedules.flow()
    count = len(scheduler.host.times)
    eta, s_noise = float(config.eta), float(config.s_noise)
    plan = compat.flow_renoised(flow, sigmas, eta, s_noise, count)
    noisy = np.append(np.abs(sigmas[1:]) >= 1e-8, np.zeros(count, bool))[:count]
    draws = tuple(bool(n) and eta > 0.0 and s_noise > 0.0 for n in noisy)
    reads = Reading(np.ones(count), -plan.times)
    return Recipe(plan, reads, draws=draws, noise_dtype=torch.float32, wide="sample")


def consistency(scheduler, begin, options) -> Recipe:
    """CMStochasticIterativeScheduler."""
    config, count = scheduler.config, len(scheduler.host.times)
    sigmas = levels(scheduler)
    if len(sigmas) <= count:  # made, but without set_timesteps: the last one is not there
        sigmas = np.append(sigmas, sigmas[-1])
    least, most = float(config.sigma_min), float(config.sigma_max)
    data = float(config.sigma_data)
    grid = falling(sigmas)
    at = grid[:-1]
    skip = data**2 / ((at - least) ** 2 + data**2)
    out = (at - least) * data / np.sqrt(at**2 + data**2)
    following = np.clip(sigmas[1:], least, most)
    noise = float(config.s_noise) * np.sqrt(np.maximum(following**2 - least**2, 0.0))
    noise = noise * (count > 1)
    plan = compat.renoised_estimates(sigma_space(grid), grid, noise, "consistency")
    clamp = 1.0 if config.clip_denoised else None
    return Recipe(plan, Reading(skip, out), clamp, draws=(count > 1,) * count, wide=True)


def flow_map(scheduler, begin, options) -> Recipe:
    """FlowMapEulerDiscreteScheduler, without `r_timestep`."""
    flow = schedules.flow()
    plan = solvers.euler(flow, falling(levels(scheduler)))
    return Recipe(plan, Prediction(flow, "flow"), wide=True)


def minimax_h3(scheduler, begin, options) -> Recipe:
    """MiniMaxH3Scheduler, whose network predicts data minus noise."""
    grid = falling(levels(scheduler))
    plan = solvers.euler(schedules.flow(), grid)
    return Recipe(plan, Reading(np.ones(plan.nfe), grid[:-1]), wide="sample")
