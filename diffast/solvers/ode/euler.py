"""First-order solvers: one call a step, one x0 estimate remembered.

    x_t = (sigma_down / sigma_s) x_s + (alpha_t - alpha_s sigma_down / sigma_s) x0 + sigma_up z

with sigma_down^2 + sigma_up^2 = sigma_t^2. No denominator holds alpha_s (0 where flow starts).
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plan import Plan, one_call_plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.noise_split import ancestral, check_bounded_eta, check_s_noise


@builder
def euler(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns Euler's method in sigma/alpha: DDIM with eta = 0. Order 1, 1 call a step.

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0 (Song et al. 2021,
    "Denoising diffusion implicit models", eq. 12). The same map as Euler in sigma space,
    DPM-Solver-1, DPM-Solver++-1, DEIS-1, UniP-1 and Euler on a flow's velocity.

    Raises:
        ValueError: a grid that `check_grid` refuses.
    """
    return _first_order(schedule, grid, 0.0, 1.0, "full", "euler")


@builder
def ddim(schedule: Schedule, grid: ArrayLike, eta: float = 0.0, s_noise: float = 1.0) -> Plan:
    """Returns DDIM with noise of strength eta. Order 1, weak order 1 if eta > 0, 1 call a step.

    Song et al. 2021, eq. 12 and 16. Their eta sqrt((1 - a_t)/(1 - a_s)) sqrt(1 - a_s/a_t) with
    a = alpha^2 is eta sigma_t sqrt(1 - exp(-2h)), h = lam_t - lam_s, which holds for any alpha and
    sigma: at eta = 1 the deviation of the posterior q(x_t | x_s, x0) (ancestral sampling, DDPM).

    Args:
        eta: 0 for none to 1 for ancestral.
        s_noise: factor on the fresh noise; other than 1, points no longer have the schedule's noise
            level and the plan is checked for x0 alone.

    Raises:
        ValueError: eta outside [0, 1] (above, the noise could exceed sigma_t); s_noise negative or
            not finite; a grid that `check_grid` refuses.
    """
    eta = check_bounded_eta("ddim", eta)
    return _first_order(schedule, grid, eta, *check_s_noise("ddim", s_noise), f"ddim(eta={eta:g})")


def _first_order(schedule, grid, eta, s_noise, check, name):
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    down, up = ancestral(alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], eta)
    keep = down / sigma[:-1]
    x = {"x": keep, "d": alpha[1:] - alpha[:-1] * keep, "z1": s_noise * up}
    return one_call_plan(name, schedule, grid, x, check=check)
