"""Recipes of the schedulers in sigma space (alpha = 1) and of those for flow matching."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffast import schedules, solvers
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.reading import Reading, edm_reading, sigma_reading
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import (
    clamp_of,
    ends_of_steps,
    falling,
    levels,
    predicts,
    sigma_space,
)
from diffast.model.denoiser import Prediction
from diffast.solvers import compat


def _churned(scheduler, sigmas, reading, options) -> Recipe:
    """Euler in sigma space with diffusers' churn."""
    churn, low, high, s_noise = options
    grid = falling(sigmas)
    space = sigma_space(sigmas)
    reads = reading(grid[:-1])
    most = min(churn / (len(scheduler.sigmas) - 1), math.sqrt(2.0) - 1.0)
    gamma = np.where((grid[:-1] >= low) & (grid[:-1] <= high), most, 0.0)
    if not gamma.any():
        return Recipe(solvers.euler(space, grid), reads, wide=True)
    churned = reading(grid[:-1], (1.0 + gamma) * grid[:-1])
    plan = compat.late_churn(
        space, grid, gamma, s_noise, (reads.a, reads.b), (churned.a, churned.b)
    )
    fresh = churned.a * s_noise * grid[:-1] * np.sqrt(gamma * (2.0 + gamma))
    estimates = tuple(zip(churned.a, churned.b, fresh, strict=True))
    return Recipe(plan, reads, draws=tuple((gamma > 0).tolist()), wide=True, estimates=estimates)


def euler(scheduler, begin, options) -> Recipe:
    """EulerDiscreteScheduler."""
    reading = sigma_reading(predicts(scheduler.config))
    return _churned(scheduler, levels(scheduler), reading, options)


def edm_euler(scheduler, begin, options) -> Recipe:
    """EDMEulerScheduler."""
    return _churned(scheduler, levels(scheduler), edm_reading(scheduler.config), options)


def euler_ancestral(scheduler, begin, options) -> Recipe:
    """EulerAncestralDiscreteScheduler."""
    grid = falling(levels(scheduler))
    plan = solvers.euler_ancestral(sigma_space(grid), grid)
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    return Recipe(plan, reads, draws=(True,) * plan.nfe, wide=True)


def heun(scheduler, begin, options) -> Recipe:
    """HeunDiscreteScheduler."""
    grid = falling(ends_of_steps(levels(scheduler)))
    plan = compat.slope_pairs(sigma_space(grid), grid)
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    return Recipe(plan, reads, clamp_of(scheduler.config))


def dpm_2(scheduler, begin, options) -> Recipe:
    """KDPM2DiscreteScheduler."""
    grid = falling(ends_of_steps(levels(scheduler)))
    # each stands there twice, and both calls of a step read the second one's place
    middles = scheduler.sigmas_interpol.detach().cpu().double().numpy()
    middles = middles[1 : 2 * len(grid) - 2 : 2]
    if grid[-1] == 0.0 != middles[-1]:
        raise ValueError(f"sigmas end in 0, but sigmas_interpol in {middles[-1]:g}")
    plan = compat.slope_pairs(sigma_space(grid), grid, middles)
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    return Recipe(plan, reads)


def lms(scheduler, begin, options) -> Recipe:
    """LMSDiscreteScheduler."""
    (order,) = options
    if begin and order > 1:
        raise ValueError(
            f"the run starts at {begin}, where diffusers weighs one slope by weights of several"
        )
    grid = falling(levels(scheduler)[begin:])
    steps = len(grid) - 1
    orders = [min(order, i + 1) for i in range(steps)]  # up to the end, into sigma = 0 too
    plan = solvers.lms(sigma_space(grid), grid, order=order, orders=orders)
    reads = sigma_reading(predicts(scheduler.config))(plan.times)
    return Recipe(plan, reads, begin=begin)


def flow_euler(scheduler, begin, options) -> Recipe:
    """FlowMatchEulerDiscreteScheduler: it takes s_churn and does not use it."""
    sigmas, flow = levels(scheduler), schedules.flow()
    inverted, drawing = (
        setting(scheduler.config, name) for name in ("invert_sigmas", "stochastic_sampling")
    )
    if inverted and drawing:
        raise ValueError(
            "invert_sigmas and stochastic_sampling are both set, but the sigmas that one inverts "
            "are the noise levels of the other"
        )
    if inverted:
        # times run from 0 (noise) to 1 (data) there, so the velocity has the other sign
        grid = 1.0 - sigmas
        reads = Reading(np.ones(len(grid) - 1), grid[:-1])
    else:
        grid = sigmas
        reads = Prediction(flow, "flow")
    grid = falling(grid)
    if drawing:
        plan = solvers.lcm(flow, grid)
        draws = (True,) * plan.nfe
        return Recipe(plan, reads, draws=draws, noise_dtype=torch.float32, wide=True)
    return Recipe(solvers.euler(flow, grid), reads, wide=True)


def flow_heun(scheduler, begin, options) -> Recipe:
    """FlowMatchHeunDiscreteScheduler."""
    if options[0]:
        raise ValueError(f"s_churn is {options[0]}, but a flow's sigma cannot be raised above 1")
    flow = schedules.flow()
    plan = compat.slope_pairs(flow, falling(ends_of_steps(levels(scheduler))))
    return Recipe(plan, Prediction(flow, "flow"), wide=True)
