"""Solvers for distilled networks of few steps: each step renews all or part of the noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, one_call_plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder, plain_builder
from diffast.solvers.core.noise_split import first_order_plan, shared


@plain_builder
def lcm(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns multistep consistency sampling: x_t = alpha_t d_s + sigma_t z. 1 call a step.

    Song et al. 2023 ("Consistency models"), algorithm 1; Luo et al. 2023 (LCM), algorithm 3. The
    boundary scalings c_skip and c_out belong to what the network predicts, not to the plan. For a
    network that is no consistency function no order: the error does not fall with the step count,
    since x0 estimates at the clean end are samples only if the network maps to samples. The same as
    `ddim` with eta = 1 from pure noise (alpha_s = 0), and a flow's "stochastic sampling" in
    diffusers.
    """
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid[1:]), schedule.sigma(grid[1:])
    return one_call_plan("lcm", schedule, grid, {"d": alpha, "z1": sigma})


@builder
def tcd(schedule: Schedule, grid: ArrayLike, gamma: float = 0.3) -> Plan:
    """Returns strategic stochastic sampling of a trajectory consistency model. 1 call a step.

    Zheng et al. 2024 ("Trajectory consistency distillation"), algorithm 4: from s by Euler's step
    to m, cleaner than t, then fresh noise up to t. With rho = sigma/alpha,

        x_t = (alpha_t rho_m / sigma_s) x_s + (alpha_t - alpha_s ...) d_s
              + alpha_t sqrt(rho_t^2 - rho_m^2) z

    m = (1 - gamma) t, rounded down to a whole number on schedules with training indices (as
    diffusers' scheduler has it, where a grid ends at index 0, not at -1); on others it is the share
    1 - gamma of the way from t_end to t in model time. gamma = 0 is `euler` on whole indices;
    gamma = 1 is `lcm` where t_end is clean, and stops at index 0 where there are indices. No order:
    the error does not fall with the step count (see `lcm`).

    Args:
        gamma: 0 for no fresh noise to 1 for all that time 0 leaves.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"tcd: gamma = {gamma}, but it must lie in [0, 1]")
    grid = check_grid(schedule, grid)
    if getattr(schedule, "timesteps", None) is None:
        inner = schedule.t_end + (1.0 - gamma) * (grid[1:] - schedule.t_end)
    else:
        inner = np.floor((1.0 - gamma) * grid[1:])
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    # rho_m / rho_t; into sigma_t = 0 nothing is kept
    share = np.zeros(len(inner))
    noisy = sigma[1:] > 0.0
    share[noisy] = (schedule.sigma(inner) * alpha[1:])[noisy]
    share[noisy] /= (schedule.alpha(inner) * sigma[1:])[noisy]
    split = shared(sigma[1:], np.minimum(share, 1.0))
    return first_order_plan(f"tcd(gamma={gamma:g})", schedule, grid, lambda *ends: split)
