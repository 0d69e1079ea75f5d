"""ER-SDE-Solvers: the extended reverse-time SDE with a noise scale that is an option."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, one_call_plan
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.noise_split import check_s_noise

# Gauss-Legendre points in log(rho). 1/phi has its nearest poles 3 away from the real line there, so
# a step over 15 in log(rho) is exact to rounding.
POINTS = 64

# Stands for the infinite rho at alpha = 0, where only phi(rho) / rho is asked for.
FAR = 1e30


@builder
def er_sde(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    noise_scale: Callable[[np.ndarray], np.ndarray] | None = None,
    s_noise: float = 1.0,
) -> Plan:
    """Returns ER-SDE-Solver-1, 2 or 3, Cui et al. 2023. Weak order 1, 2 and 2, 1 call a step.

    With rho = sigma/alpha, a noise scale phi(rho) and r = phi(rho_t) / phi(rho_s)
    ("Elucidating the solution space of extended reverse-time SDE", eq. 13 to 21),

        x_t = (alpha_t / alpha_s) r x_s + alpha_t (1 - r) d_s
              + alpha_t sqrt(rho_t^2 - r^2 rho_s^2) z
              + alpha_t (rho_t - rho_s + phi(rho_t) integral of 1 / phi) D                  order 2
              + alpha_t ((rho_t - rho_s)^2 / 2 + phi(rho_t) integral of (rho - rho_s) / phi) U    3

    integrals over rho from rho_t to rho_s, by Gauss-Legendre quadrature in log(rho);

        D = (d_s - d_r) / (rho_s - rho_r),     U = 2 (D - D before) / (rho_s - rho_q)

    and r, q one and two steps before s. phi = rho is the ODE, phi = rho^2 the reverse SDE. U is the
    published second derivative and D is not corrected by it, so order 3 is no parabola through
    three points: it shows order 2 as well (strong for the ODE, weak with noise). Lower orders in
    the first steps and where a node lies at alpha = 0; first order into sigma_t = 0 and out of
    alpha = 0.

    Args:
        order: 1, 2 or 3.
        noise_scale: phi, a function of float64 arrays of rho with phi(rho) / rho nowhere falling;
            default rho (exp(rho^0.3) + 10), the authors' recommendation.

    Raises:
        ValueError: another order; s_noise negative or not finite; a noise scale that is not
            positive, or falls below rho in a step (its noise would be imaginary); a grid that
            `check_grid` refuses.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"er_sde: order = {order!r}, but it must be 1, 2 or 3")
    s_noise, check = check_s_noise("er_sde", s_noise)
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    with np.errstate(divide="ignore"):
        rho = np.minimum(sigma / alpha, FAR)
    log_gain = _log_gain(noise_scale)
    steps = len(grid) - 1
    gain = np.append(log_gain(rho[:-1]), 0.0)
    if rho[-1] > 0.0:
        gain[-1] = log_gain(rho[-1])
    drop = np.diff(gain)  # log of r rho_s / rho_t
    if rho[-1] == 0.0:
        drop[-1] = 0.0
    if (drop > 1e-12).any():
        n = int(np.argmax(drop))
        raise ValueError(
            f"er_sde: noise_scale / rho = {np.exp(gain[n]):.6g} at rho = {rho[n]:.6g} and "
            f"{np.exp(gain[n + 1]):.6g} at {rho[n + 1]:.6g}, but it must not rise with the step"
        )
    drop = np.minimum(drop, 0.0)
    rows = np.zeros((steps, 5))
    rows[:, 0] = sigma[1:] / sigma[:-1] * np.exp(drop)
    rows[:, 1] = s_noise * sigma[1:] * np.sqrt(0.0 - np.expm1(2.0 * drop))
    rows[:, 2] = alpha[1:] - alpha[:-1] * rows[:, 0]
    before = None  # D of the step before, by (d_s, d_r, d_q)
    for n in range(1, steps):
        if order == 1 or alpha[n - 1] == 0.0:
            continue
        slope = np.array([1.0, -1.0, 0.0]) / (rho[n] - rho[n - 1])
        if sigma[n + 1] > 0.0:
            first, second = _integrals(log_gain, rho[n], rho[n + 1], gain[n + 1])
            rows[n, 2:] += sigma[n + 1] * first * slope
            if order == 3 and before is not None:
                bend = (slope - np.roll(before, 1)) * (2.0 / (rho[n] - rho[n - 2]))
                rows[n, 2:] += sigma[n + 1] * second * bend
        before = slope
    x = {"x": rows[:, 0], "z1": rows[:, 1], **entries(rows[:, 2:])}
    return one_call_plan(f"er_sde({order})", schedule, grid, x, check=check)


def _integrals(log_gain, rho_s, rho_t, gain_t):
    """Returns the factors of D and U over sigma_t.

    In u = log(rho), with g = phi / rho, they are the integrals of (exp(u) - rho_s)^j k(u), j = 0
    and 1, k = g(rho_t) / g - exp(u) / rho_t: the terms in rho_t - rho_s are integrals as well.
    """
    node, weight = _quadrature()
    low, high = np.log(rho_t), np.log(rho_s)
    u = 0.5 * (low + high) + 0.5 * (high - low) * node
    rho = np.exp(u)
    kernel = np.exp(gain_t - log_gain(rho)) - rho / rho_t
    kernel *= 0.5 * (high - low) * weight
    return kernel.sum(), (rho - rho_s) @ kernel


@cache
def _quadrature():
    return np.polynomial.legendre.leggauss(POINTS)


def _log_gain(noise_scale):
    """Returns the function rho -> log(phi(rho) / rho)."""
    if noise_scale is None:
        return lambda rho: np.logaddexp(rho**0.3, np.log(10.0))

    def log_gain(rho):
        with np.errstate(over="ignore"):
            scale = np.asarray(noise_scale(rho), dtype=np.float64)
        if not (scale > 0.0).all():
            raise ValueError(
                f"er_sde: noise_scale = {scale.min()} for rho in [{np.min(rho):.6g}, "
                f"{np.max(rho):.6g}], but it must be positive"
            )
        return np.log(np.minimum(scale, np.finfo(np.float64).max)) - np.log(rho)

    return log_gain
