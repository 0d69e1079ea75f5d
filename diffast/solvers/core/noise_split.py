"""Noise splits: how much of a stochastic step's noise is kept, and how much is fresh.

Both splits return `down`, the level of what is left of the noise in the state, and `up`, that of
the fresh noise, with down^2 + up^2 = sigma_t^2. A first-order step is then, with no alpha_s in a
denominator,

    x_t = (down / sigma_s) x_s + (alpha_t - alpha_s down / sigma_s) x0 + up z

Both splits are equal at eta = 0 (nothing is fresh) and at eta = 1, where down / sigma_t = exp(-h),
h = lam_t - lam_s. Levels are numbers or arrays; alpha_s and sigma_t may be 0.
"""

from __future__ import annotations

import numpy as np

from diffast.grids import check_grid
from diffast.plans import one_call_plan


def ancestral(alpha_s, alpha_t, sigma_s, sigma_t, eta):
    """Returns (down, up) with up = eta sigma_t sqrt(1 - exp(-2h)).

    Song et al. 2021 ("Denoising diffusion implicit models"), eq. 16; k-diffusion's ancestral step.

    Args:
        eta: 0 to 1.
    """
    shrink = alpha_s * sigma_t / (alpha_t * sigma_s)  # exp(-h)
    up = eta * sigma_t * np.sqrt((1.0 - shrink) * (1.0 + shrink))
    # 1 - eta^2 (1 - exp(-2h)), written so that eta = 1 leaves exp(-h) uncancelled
    down = sigma_t * np.sqrt((1.0 - eta) * (1.0 + eta) + (eta * shrink) ** 2)
    return down, up


def diffusive(alpha_s, alpha_t, sigma_s, sigma_t, eta):
    """Returns (down, up) with down = sigma_t exp(-eta h), up = sigma_t sqrt(1 - exp(-2 eta h)).

    The exact solution of the SDE whose noise fades at the rate eta per unit of lam,
    d(x/alpha) = (1 + eta) (x0 - x/alpha) dlam + sqrt(2 eta) (sigma/alpha) dW (k-diffusion's
    "DPM-Solver++ SDE"; SA-Solver, Xue et al. 2023, with tau^2 = eta; SEEDS, Gonzalez et al. 2023).

    Args:
        eta: 0 or more; number, or array of the steps' shape.
    """
    shrink = alpha_s * sigma_t / (alpha_t * sigma_s)  # exp(-h)
    kept = shrink**eta
    with np.errstate(divide="ignore", invalid="ignore"):
        decay = np.where(np.equal(eta, 0.0), 0.0, eta * np.log(shrink))  # -eta h
    return sigma_t * kept, sigma_t * np.sqrt(0.0 - np.expm1(2.0 * decay))


def shared(sigma_t, share):
    """Returns (down, up) with down = share sigma_t."""
    return sigma_t * share, sigma_t * np.sqrt((1.0 - share) * (1.0 + share))


def first_order_plan(name, schedule, grid, split, s_noise=1.0, check="full"):
    """Returns the plan of first-order steps: split(alpha_s, alpha_t, sigma_s, sigma_t) [N] each."""
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    down, up = split(alpha[:-1], alpha[1:], sigma[:-1], sigma[1:])
    keep = down / sigma[:-1]
    x = {"x": keep, "d": alpha[1:] - alpha[:-1] * keep, "z1": s_noise * up}
    return one_call_plan(name, schedule, grid, x, check=check)


def check_bounded_eta(name, eta) -> float:
    """Returns eta as a float; ValueError outside [0, 1], where `ancestral` could exceed sigma_t."""
    if not 0 <= eta <= 1:
        raise ValueError(
            f"{name}: eta = {eta}, but it must lie in [0, 1]: the fresh noise, "
            "eta sigma_t sqrt(1 - exp(-2h)), may not exceed sigma_t at any h"
        )
    return float(eta)


def check_eta(name, eta, option="eta") -> float:
    """Returns eta as a float; ValueError if it is negative or not finite."""
    if not 0 <= eta < np.inf:
        raise ValueError(f"{name}: {option} = {eta}, but it must be finite and not negative")
    return float(eta)


def check_s_noise(name, s_noise):
    """Returns s_noise as a float and what a plan with it can be checked for; see `check_eta`."""
    s_noise = check_eta(name, s_noise, "s_noise")
    return s_noise, "full" if s_noise == 1.0 else "x0"
