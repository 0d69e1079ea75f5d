"""First-order solvers: one call a step, one x0 estimate remembered.

    x_t = (sigma_down / sigma_s) x_s + (alpha_t - alpha_s sigma_down / sigma_s) x0 + sigma_up z

with sigma_down^2 + sigma_up^2 = sigma_t^2: no alpha_s in a denominator (it is 0 where flow starts).
"""

from __future__ import annotations

import numpy as np

from diffast.grids import check_grid
from diffast.plan import Plan


def euler(schedule, grid) -> Plan:
    """Returns Euler's method in sigma/alpha: DDIM with eta = 0. Order 1, 1 call a step.

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0 (Song et al. 2021,
    "Denoising diffusion implicit models", eq. 12). The same map as Euler in sigma space,
    DPM-Solver-1, DPM-Solver++-1, DEIS-1, UniP-1 and Euler on a flow's velocity.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.

    Raises:
        ValueError: a grid that `check_grid` refuses.
    """
    return _first_order(schedule, grid, 0.0, "euler")


def ddim(schedule, grid, eta=0.0) -> Plan:
    """Returns DDIM with noise of strength eta. Order 1, weak order 1 if eta > 0, 1 call a step.

    Song et al. 2021, eq. 12 and 16. Their eta sqrt((1 - a_t)/(1 - a_s)) sqrt(1 - a_s/a_t) with
    a = alpha^2 is eta sigma_t sqrt(1 - exp(-2h)), h = lam_t - lam_s, which holds for any alpha and
    sigma: at eta = 1 the deviation of the posterior q(x_t | x_s, x0) (ancestral sampling, DDPM).

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        eta: 0 for none to 1 for ancestral.

    Raises:
        ValueError: eta outside [0, 1] (above, the noise could exceed sigma_t); a grid that
            `check_grid` refuses.
    """
    return _first_order(schedule, grid, _check_eta("ddim", eta), f"ddim(eta={eta:g})")


def euler_ancestral(schedule, grid, eta=1.0) -> Plan:
    """Returns an Euler step down to a lower noise level, then fresh noise up. Weak order 1, 1 call.

    With rho = sigma/alpha: rho_up^2 = eta^2 rho_t^2 (rho_s^2 - rho_t^2) / rho_s^2 and
    rho_down^2 = rho_t^2 - rho_up^2 (k-diffusion's sigmas, where alpha = 1). rho_t/rho_s is exp(-h),
    so alpha_t rho_up is the noise of `ddim` for every eta, not only 1: one map by two names.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        eta: 0 for Euler to 1 for ancestral.

    Raises:
        ValueError: eta outside [0, 1]; a grid that `check_grid` refuses.
    """
    eta = _check_eta("euler_ancestral", eta)
    return _first_order(schedule, grid, eta, f"euler_ancestral(eta={eta:g})")


def _check_eta(name, eta):
    if not 0 <= eta <= 1:
        raise ValueError(
            f"{name}: eta = {eta}, but it must lie in [0, 1]: the fresh noise, "
            "eta sigma_t sqrt(1 - exp(-2h)), may not exceed sigma_t at any h"
        )
    return float(eta)


def _first_order(schedule, grid, eta, name):
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    alpha_s, alpha_t, sigma_s, sigma_t = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    shrink = alpha_s * sigma_t / (alpha_t * sigma_s)  # exp(-h)
    up = eta * sigma_t * np.sqrt((1.0 - shrink) * (1.0 + shrink))
    # 1 - eta^2 (1 - exp(-2h)), written so that eta = 1 leaves exp(-h) uncancelled
    down = sigma_t * np.sqrt((1.0 - eta) * (1.0 + eta) + (eta * shrink) ** 2)
    keep = down / sigma_s
    rows = np.stack([keep, up, alpha_t - alpha_s * keep], axis=1)
    steps = len(rows)
    return Plan(
        schedule=schedule,
        times=grid[:-1],
        end=grid[-1],
        read=np.tile([0.0, 1.0], (steps, 1)),
        point=rows,
        anchor=rows,
        anchor_at=np.arange(1, steps + 1),
        steps=steps,
        name=name,
    )
