"""Solvers of the reverse SDE with one call a step: DDPM, DPM-Solver SDE in x0 and in noise.

The SDE whose noise fades at the rate eta per unit of lam has, for a constant x0, the exact step

    x_t = (sigma_t / sigma_s) exp(-eta h) x_s + alpha_t (1 - exp(-H)) x0
          + sigma_t sqrt(1 - exp(-2 eta h)) z,              h = lam_t - lam_s,  H = (1 + eta) h

The multistep methods integrate a polynomial through the last estimates in place of x0. The noise of
a step is one number, so its influence on x0 within the step is missing. Extrapolation adds it in
the next step (the weights of one estimate over two steps are those of the trapezoid rule), and the
variance converges with order 2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, one_call_plan
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Final, Form, Kind, Orders, builder
from diffast.solvers.core.multistep import check_choice, check_orders
from diffast.solvers.core.noise_split import check_eta, check_s_noise, diffusive, first_order_plan
from diffast.solvers.core.phi import phi

KINDS = ("midpoint", "heun")


@builder
def ddpm(
    schedule: Schedule, grid: ArrayLike, variance: Literal["small", "large"] = "small"
) -> Plan:
    """Returns ancestral sampling, Ho et al. 2020, algorithm 2. Weak order 1, 1 call a step.

    The mean is that of the posterior q(x_t | x_s, x0) (eq. 7) for any alpha and sigma:

        x_t = a (sigma_t / sigma_s)^2 x_s + (alpha_t beta / sigma_s^2) x0 + up z
        a = alpha_s / alpha_t,  beta = sigma_s^2 - a^2 sigma_t^2

        small:  up^2 = beta sigma_t^2 / sigma_s^2     the posterior's own; `ddim` with eta = 1
        large:  up^2 = beta                           the forward step's; the plan is then checked
                                                      for x0 alone, since points hold more noise

    No noise falls on a step into sigma_t = 0. A network that predicts its variance (Nichol and
    Dhariwal 2021) has this mean and, in place of up, a number an element: that is the executor's.

    Args:
        variance: "small" or "large".
    """
    check_choice("ddpm", "variance", variance, ("small", "large"))

    def split(alpha_s, alpha_t, sigma_s, sigma_t):
        down, up = diffusive(alpha_s, alpha_t, sigma_s, sigma_t, 1.0)
        if variance == "large":
            up = up * sigma_s / np.where(sigma_t > 0.0, sigma_t, 1.0)  # 0 at sigma_t = 0
        return down, up

    check = "full" if variance == "small" else "x0"
    return first_order_plan(f"ddpm({variance})", schedule, grid, split, check=check)


@builder
def dpmpp_2m_sde(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 1.0,
    kind: Kind = "midpoint",
    s_noise: float = 1.0,
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver++(2M) SDE. Weak order 2 (strong order 2 at eta = 0), 1 call a step.

    The first-order step (see the top of the file) plus w (d_s - d_r), with d_s and d_r the
    estimates at s and one step h' earlier, H = (1 + eta) h:

        midpoint:  w = alpha_t (1 - exp(-H)) h / (2 h')
        heun:      w = alpha_t (1 - (1 - exp(-H)) / H) h / h'

    Lu et al. 2022 (DPM-Solver++), section 4, where eta = 1; k-diffusion's sample_dpmpp_2m_sde. At
    eta = 0 it is `dpmpp_2m`. heun integrates the line through the two estimates exactly. w = 0
    where no line is to be had: in the first step, into sigma_t = 0, after a step out of alpha = 0.

    Args:
        orders: [N] order of each step, 1 or 2 (the first one 1); default 1, 2, 2 ...
    """
    check_choice("dpmpp_2m_sde", "kind", kind, KINDS)
    name = f"dpmpp_2m_sde({kind}, eta={eta:g})"
    given = orders, final
    return _data_sde(schedule, grid, eta, s_noise, given, 2, kind, 0.0, name)


@builder
def dpmpp_3m_sde(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 1.0,
    s_noise: float = 1.0,
    orders: Orders = None,
    form: Form = "compat",
    kind: Kind = "heun",
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver++(3M) SDE. Weak order 2, 1 call a step; at eta = 0 strong order 2 or 3.

    In u = (lam - lam_s) / h the parabola through the last three estimates is d_s + D1 u + D2 u^2;
    with H = (1 + eta) h and phi_k at -H, the first-order step plus

        compat:  alpha_t H (phi_2 D1 + phi_3 D2)      k-diffusion's sample_dpmpp_3m_sde
        exact:   alpha_t H (phi_2 D1 + 2 phi_3 D2)    the parabola's integral

    (Lu et al. 2022, DPM-Solver++; H phi_3 is 1/2 - phi_2, which vanishes with h). The compatible
    weight of D2 is half the integral's, so at eta = 0 it shows order 2 and the exact one order 3,
    beside what the first two steps leave: they have one and two estimates, errors of h^2 and h^3.
    Steps with two estimates are `dpmpp_2m_sde` of that kind; one estimate, into sigma_t = 0 and out
    of alpha = 0, first order.

    Args:
        orders: [N] order of each step, 1 to 3 and at most what is remembered; default 1, 2, 3 ...
    """
    check_choice("dpmpp_3m_sde", "form", form, ("compat", "exact"))
    check_choice("dpmpp_3m_sde", "kind", kind, KINDS)
    name = f"dpmpp_3m_sde({form}, eta={eta:g})"
    curve = 1.0 if form == "compat" else 2.0
    given = orders, final
    return _data_sde(schedule, grid, eta, s_noise, given, 3, kind, curve, name)


@builder
def dpm_solver_2m_sde(
    schedule: Schedule,
    grid: ArrayLike,
    kind: Kind = "midpoint",
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver(2M) SDE, exponential in the noise estimate. Weak order 2, 1 call a step.

    With e = (x - alpha d) / sigma at s and r, h = lam_t - lam_s, h' the step before,

        x_t = (alpha_t / alpha_s) x_s - 2 sigma_t (exp(h) - 1) e_s - w (e_s - e_r)
              + sigma_t sqrt(exp(2h) - 1) z

        midpoint:  w = sigma_t (exp(h) - 1) h / h'
        heun:      w = 2 sigma_t ((exp(h) - 1) / h - 1) h / h'

    the reverse SDE (eta = 1) solved for a constant e (Lu et al. 2022, DPM-Solver++, appendix;
    diffusers' "sde-dpmsolver"). Even for a true e a point holds noise of level sigma_t only up to
    O(h^2), so the plan is checked for x0 alone, and a large step (exp(h) of 2 and more) adds noise:
    it is here for comparison. Where the formula has no value, which is into sigma_t = 0 and out of
    alpha_s = 0, the step is the first-order one in x0; w = 0 there and where e_r is missing.

    Args:
        orders: [N] order of each step, 1 or 2 (the first one 1); default 1, 2, 2 ...
    """
    check_choice("dpm_solver_2m_sde", "kind", kind, KINDS)
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    steps = len(grid) - 1
    orders = check_orders("dpm_solver_2m_sde", orders, 2, steps, final)
    h = np.diff(schedule.lam(grid))
    rows, read = np.zeros((steps, 4)), np.tile([0.0, 1.0], (steps, 1))
    for n in range(steps):
        alpha_s, alpha_t, sigma_s, sigma_t = alpha[n], alpha[n + 1], sigma[n], sigma[n + 1]
        if not np.isfinite(h[n]):
            down, up = diffusive(alpha_s, alpha_t, sigma_s, sigma_t, 1.0)
            rows[n, :3] = down / sigma_s, up, alpha_t - alpha_s * down / sigma_s
            continue
        read[n] = 1.0 / sigma_s, -alpha_s / sigma_s
        grown = sigma_t * np.expm1(h[n])
        w = 0.0
        if orders[n] == 2 and np.isfinite(h[n - 1]):
            gain = grown * h[n] if kind == "midpoint" else 2.0 * (grown - sigma_t * h[n])
            w = gain / h[n - 1]
        up = sigma_t * np.sqrt(np.expm1(2.0 * h[n]))
        rows[n] = alpha_t / alpha_s, up, -2.0 * grown - w, w
    x = {"x": rows[:, 0], "z1": rows[:, 1], **entries(rows[:, 2:])}
    h = {"x": read[:, 0], "d": read[:, 1]}
    return one_call_plan(f"dpm_solver_2m_sde({kind})", schedule, grid, x, h=h, check="x0")


def _data_sde(schedule, grid, eta, s_noise, given, most, kind, curve, name):
    builder, (orders, final) = name.partition("(")[0], given
    eta = check_eta(builder, eta)
    s_noise, check = check_s_noise(builder, s_noise)
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    down, up = diffusive(alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], eta)
    keep = down / sigma[:-1]
    new = alpha[1:] - alpha[:-1] * keep  # alpha_t (1 - exp(-H))
    h = np.diff(schedule.lam(grid))
    steps = len(h)
    orders = check_orders(builder, orders, most, steps, final)
    rows = np.zeros((steps, 2 + most))
    rows[:, 0], rows[:, 1], rows[:, 2] = keep, s_noise * up, new
    for n in range(steps):
        # estimates at finite distances in lam
        reach = 1
        while reach < orders[n] and np.isfinite(h[n - reach : n + 1]).all():
            reach += 1
        if reach > 1:
            lags = h[n - reach + 1 : n + 1]
            rows[n, 2 : 2 + reach] += _corrections(lags, eta, new[n], alpha[n + 1], kind, curve)
    x = {"x": rows[:, 0], "z1": rows[:, 1], **entries(rows[:, 2:])}
    return one_call_plan(name, schedule, grid, x, check=check)


def _corrections(h, eta, new, alpha_t, kind, curve):
    """Returns what a step of order len(h) adds to the weights of (d_s, d_r, d_q).

    Args:
        h: steps in lam, the present one last; 2 or 3.
        new: alpha_t (1 - exp(-H)).
        curve: factor on phi_3 for a parabola, 2 for its integral.
    """
    total = (1.0 + eta) * h[-1]  # H
    bend = alpha_t * total * phi(2, total)
    r0 = h[-2] / h[-1]
    if len(h) == 2:
        return (0.5 * new if kind == "midpoint" else bend) * np.array([1.0, -1.0]) / r0
    r1 = h[-3] / h[-1]
    first, before = np.array([1.0, -1.0, 0.0]) / r0, np.array([0.0, 1.0, -1.0]) / r1
    second = (first - before) / (r0 + r1)  # D2, by (d_s, d_r, d_q)
    third = alpha_t * total * phi(3, total)
    return bend * (first + r0 * second) + curve * third * second
