"""First-order solvers: one call a step, one x0 estimate remembered.

    x_t = (sigma_down / sigma_s) x_s + (alpha_t - alpha_s sigma_down / sigma_s) x0 + sigma_up z

with sigma_down^2 + sigma_up^2 = sigma_t^2. No denominator holds alpha_s (0 where flow starts).
"""

from __future__ import annotations

from functools import partial

from numpy.typing import ArrayLike

from diffast.plan import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.noise_split import (
    ancestral,
    check_bounded_eta,
    check_s_noise,
    first_order_plan,
)


@builder
def euler(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns Euler's method in sigma/alpha: DDIM with eta = 0. Order 1, 1 call a step.

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0 (Song et al. 2021,
    "Denoising diffusion implicit models", eq. 12). The same map as Euler in sigma space,
    DPM-Solver-1, DPM-Solver++-1, DEIS-1, UniP-1 and Euler on a flow's velocity.

    Raises:
        ValueError: a grid that `check_grid` refuses.
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
