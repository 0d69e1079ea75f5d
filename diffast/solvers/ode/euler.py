"""Euler's method, with and without noise, and Heun's, which corrects it by a second call.

A step of first order, one call and one x0 estimate, is

    x_t = (sigma_down / sigma_s) x_s + (alpha_t - alpha_s sigma_down / sigma_s) x0 + sigma_up z

with sigma_down^2 + sigma_up^2 = sigma_t^2. No denominator holds alpha_s (0 where flow starts).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Clock, builder, plain_builder
from diffast.solvers.core.noise_split import (
    ancestral,
    check_bounded_eta,
    check_s_noise,
    first_order_plan,
)
from diffast.solvers.core.one_step import check_clock, from_slopes, one_step


@plain_builder
def euler(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns Euler's method in sigma/alpha: DDIM with eta = 0. Order 1, 1 call a step.

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0 (Song et al. 2021,
    "Denoising diffusion implicit models", eq. 12). The same map as Euler in sigma space,
    DPM-Solver-1, DPM-Solver++-1, DEIS-1, UniP-1 and Euler on a flow's velocity.
    """
    return first_order_plan("euler", schedule, grid, partial(ancestral, eta=0.0))


@builder
def ddim(schedule: Schedule, grid: ArrayLike, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Returns DDIM with noise of strength eta. Order 1, weak order 1 if eta > 0, 1 call a step.

    Song et al. 2021, eq. 12 and 16. Their eta sqrt((1 - a_t)/(1 - a_s)) sqrt(1 - a_s/a_t) with
    a = alpha^2 is eta sigma_t sqrt(1 - exp(-2h)), h = lam_t - lam_s, which holds for any alpha and
    sigma: at eta = 1 the deviation of the posterior q(x_t | x_s, x0) (ancestral sampling, DDPM).

    Args:
        eta: 0 for none to 1 for ancestral; above, the noise could exceed sigma_t.
    """
    eta = check_bounded_eta("ddim", eta)
    split, noise = partial(ancestral, eta=eta), check_s_noise("ddim", s_noise)
    return first_order_plan(f"ddim(eta={eta:g})", schedule, grid, split, *noise)


@builder
def heun(schedule: Schedule, grid: ArrayLike, clock: Clock = "rho") -> Plan:
    """Returns the trapezoid rule in rho = sigma/alpha. Order 2, 2 calls a step.

    Karras et al. 2022, algorithm 1 (algorithm 2 without churn), for x/alpha and rho in place of x
    and sigma: with the slope (x/alpha - x0) / rho at both ends of the step,

        x_e = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) d_s        (Euler)
        x_t = x_e + w (d_t - d_s),      w = alpha_t (rho_s / rho_t - 1) / 2

    where d_t is the x0 estimate for x_e. Where w has no value the step is Euler's, one call: into
    sigma_t = 0 (2N-1 calls in all), and out of alpha_s = 0 (the first step of `flow` from t = 1; in
    even times the error then falls as N^-2 log N). w grows with the ratio rho_s / rho_t of a step:
    42 from 0.17 to 0.002, so much it multiplies the rounding of the estimates.

    clock "flow" is the same rule for y = x / (alpha + sigma) in sigma / (alpha + sigma), so on
    `flow` for a flow model's velocity in its own time; out of alpha_s = 0 it keeps its two calls.

    Args:
        clock: "rho", "flow" or None ("flow" where alpha + sigma = 1 on the grid).
    """
    if check_clock("heun", schedule, check_grid(schedule, grid), clock) == "flow":
        return one_step("heun", schedule, grid, _trapezoid, "flow")
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    stages = Stages(schedule, grid[0])
    for n in range(len(grid) - 1):
        alpha_s, alpha_t, sigma_s, sigma_t = alpha[n], alpha[n + 1], sigma[n], sigma[n + 1]
        s, t = grid[n], grid[n + 1]
        keep = sigma_t / sigma_s
        new = alpha_t - alpha_s * keep
        predicted = {"y": keep, "d": new}
        if sigma_t == 0.0 or alpha_s == 0.0:
            stages.add(s, t, predicted)
            continue
        # alpha_t (rho_s / rho_t - 1) = alpha_t new / (alpha_s keep), uncancelled
        w = 0.5 * alpha_t * new / (alpha_s * keep)
        stages.add(s, t, predicted, y="keep")
        stages.add(t, t, {"y": keep, "d": w, "h1": new - w})
    return stages.plan("heun", len(grid) - 1)


def _trapezoid(ratio):
    nodes = ratio[:, None]
    weights = np.zeros((len(ratio), 2, 1))
    weights[:, 1, 0] = 0.5 * (ratio - 1.0)
    return nodes, from_slopes(weights, nodes)
