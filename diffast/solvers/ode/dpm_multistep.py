"""DPM-Solver(++) multistep: exponential integrators in lam for x0 or eps, one call a step."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, one_call_plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Final, Form, Kind, Orders, Start, builder
from diffast.solvers.core.integrals import adams, moments
from diffast.solvers.core.multistep import build, check_choice, check_orders

FORMS, KINDS = ("exact", "compat"), ("midpoint", "heun")


@builder
def dpmpp_2m(
    schedule: Schedule,
    grid: ArrayLike,
    kind: Kind = "midpoint",
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver++(2M). Order 2, 1 call a step, remembers 2 estimates.

    With h = lam_t - lam_s, h' the step before, and estimates d_s, d_r at s and one step earlier,

        x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) d_s + w (d_s - d_r)

        midpoint:  w = alpha_t (1 - exp(-h)) h / (2 h')          (Lu et al. 2022, algorithm 2)
        heun:      w = alpha_t (h - (1 - exp(-h))) / h'          (the other Taylor form there)

    heun integrates the line through d_r and d_s exactly (phi_2): exponential Adams-Bashforth, "RES
    2M". w = 0, which is Euler's step, where no line is to be had: in the first step, into
    sigma_t = 0 (h infinite), and after a step out of alpha = 0 (h' infinite; on `flow` from t = 1
    in even times the error then falls as N^-2 log N).

    Args:
        orders: [N] orders of the steps, 1 or 2 (the first one 1); 1 is Euler's step.
    """
    check_choice("dpmpp_2m", "kind", kind, KINDS)
    grid = check_grid(schedule, grid)
    wanted = np.array(check_orders("dpmpp_2m", orders, 2, len(grid) - 1, final))
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    keep = sigma[1:] / sigma[:-1]
    new = alpha[1:] - alpha[:-1] * keep  # alpha_t (1 - exp(-h))
    h = np.diff(lam)
    w = np.zeros_like(h)
    line = np.flatnonzero(np.isfinite(h[1:]) & (wanted[1:] == 2)) + 1
    gain = 0.5 * new * h if kind == "midpoint" else alpha[1:] * h - new
    w[line] = gain[line] / h[line - 1]
    x = {"x": keep, "d": new + w, "h1": -w}
    return one_call_plan(f"dpmpp_2m({kind})", schedule, grid, x)


@builder
def dpmpp_3m(
    schedule: Schedule,
    grid: ArrayLike,
    form: Form = "exact",
    kind: Kind = "heun",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver++(3M). Order 3 (see start) or, form="compat", 2; 1 call a step.

    With v = (lam - lam_s) / h, and x0 = d_s + D1 v + D2 v^2 the parabola through the three newest
    estimates, at lam distances h, h', h'' (r0 = h'/h, r1 = h''/h),

        D1 = D + r0/(r0 + r1) (D - D'),  D2 = (D - D')/(r0 + r1),  D = (d_s - d_r)/r0,
        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1 d_s + phi_2 D1 + c phi_3 D2)   at -h

        exact:   c = 2, the parabola's integral (UniP-3, `exponential_adams`)
        compat:  c = 1, the numbers published with DPM-Solver++ (Lu et al. 2022) and in use since.
                 The h^3 term is then off by half of D2, so the error falls as N^-2.

    The second step, and a later one that `orders` lowers to 2, is `dpmpp_2m` of that kind. Into
    sigma_t = 0 a step is Euler's; after a step out of alpha = 0 the orders rise anew.

    start: "rise" takes orders 1, 2, 3 ...; the first step's h^2 then decides, so that the error
    falls as N^-2 in the limit (N = 80 to 640: slopes of 1.8 to 3.1). "single" makes the first step
    of 2 calls, which keeps order 3, from pure noise too.
    """
    return _third("dpmpp_3m", schedule, grid, "data", form, kind, orders, start, final)


@builder
def dpm_solver_2m(
    schedule: Schedule,
    grid: ArrayLike,
    kind: Kind = "midpoint",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver(2M), noise form. Order 2, 1 call a step, remembers 2 slopes.

    With h = lam_t - lam_s, h' the step before, and eps_s, eps_r at s and one step earlier (the
    Taylor forms of Lu et al. 2022, "DPM-Solver", eq. 3.4 in multistep use),

        x_t = (alpha_t / alpha_s) x_s - sigma_t (exp(h) - 1) eps_s - w (eps_s - eps_r)

        midpoint:  w = sigma_t (exp(h) - 1) h / (2 h')
        heun:      w = sigma_t (exp(h) - 1 - h) / h'        (the line's integral; `deis` of order 2)

    Euler's step first, into sigma_t = 0, and out of alpha_s = 0, where the slope says nothing of x0
    and the second step is Euler's, too. From alpha = 0 the error then falls as N^-2 log N (`flow`
    in even times); start="single" keeps to x0 as a polynomial in alpha/sigma there until
    alpha = sigma, and the log is gone.

    Args:
        orders: [N] orders of the steps, 1 or 2 (the first one 1). 2 into sigma_t = 0 is taken for
            "heun", whose w is finite there, and is 1 for "midpoint".
        start: "rise", or "single", which makes a difference from alpha = 0 only.
    """
    check_choice("dpm_solver_2m", "kind", kind, KINDS)
    name, rule = f"dpm_solver_2m({kind})", taylor("exact", kind)
    own = {"predict": rule, "orders": orders, "start": start, "final": final}
    return build(schedule, grid, name, 2, "noise", "lam", **own)


@builder
def dpm_solver_3m(
    schedule: Schedule,
    grid: ArrayLike,
    form: Form = "exact",
    kind: Kind = "heun",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns DPM-Solver(3M), noise form. Order 3 (see start) or, form="compat", 2; 1 call a step.

    With D1 and D2 as in `dpmpp_3m`, of slopes,

        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1 eps_s + phi_2 D1 + c phi_3 D2)   at h

        exact:   c = 2, the parabola's integral (`deis` of order 3 in log rho)
        compat:  c = 1, the numbers in use (see `dpmpp_3m`)

    Steps of order 2 are `dpm_solver_2m` of that kind.

    start: as for `dpmpp_3m`; "single" adds 1 call, and 1 more where the run starts at alpha = 0
    and goes over to slopes at alpha = sigma.
    """
    return _third("dpm_solver_3m", schedule, grid, "noise", form, kind, orders, start, final)


def _third(name, schedule, grid, which, form, kind, orders, start, final):
    check_choice(name, "form", form, FORMS)
    check_choice(name, "kind", kind, KINDS)
    rule, title = taylor(form, kind), f"{name}({form})"
    own = {"predict": rule, "orders": orders, "start": start, "final": final}
    return build(schedule, grid, title, 3, which, "lam", **own)


def taylor(form, kind):
    """Returns DPM-Solver's rule for the weights of up to three estimates, as `build` wants it.

    Args:
        form: "exact" or "compat": the second moment of the parabola, or half of it.
        kind: "heun": the line's first moment; "midpoint": h/2 of the first-order weight instead.
    """

    def predict(which, clock, s, others, t):
        if len(others) == 1 and kind == "midpoint":
            whole = moments(which, clock, s, t, 0)[0]
            # h is infinite only where the noise form steps into sigma_t = 0
            h = t.lam - s.lam
            w = 0.5 * whole * h / (s.lam - others[0].lam) if np.isfinite(h) else 0.0
            return [whole + w, -w]
        return adams(which, clock, s, others, t, share=1.0 if form == "exact" else 0.5)

    return predict
