"""DPM-Solver multistep: exponential integrators in lam for the noise estimate, one call a step."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plan import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.multistep import build, check_choice
from diffast.solvers.ode.dpmpp import FORMS, KINDS, taylor


@builder
def dpm_solver_2m(
    schedule: Schedule,
    grid: ArrayLike,
    kind: Literal["midpoint", "heun"] = "midpoint",
    orders: ArrayLike | None = None,
    start: Literal["rise", "single"] = "rise",
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
    rule = taylor("exact", kind)
    name = f"dpm_solver_2m({kind})"
    return build(schedule, grid, name, 2, "noise", "lam", predict=rule, orders=orders, start=start)


@builder
def dpm_solver_3m(
    schedule: Schedule,
    grid: ArrayLike,
    form: Literal["exact", "compat"] = "exact",
    kind: Literal["midpoint", "heun"] = "heun",
    orders: ArrayLike | None = None,
    start: Literal["rise", "single"] = "rise",
) -> Plan:
    """Returns DPM-Solver(3M), noise form. Order 3 (see start) or, form="compat", 2; 1 call a step.

    With D1 and D2 as in `dpmpp_3m`, of slopes,

        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1 eps_s + phi_2 D1 + c phi_3 D2)   at h

        exact:   c = 2, the parabola's integral (`deis` of order 3 in log rho)
        compat:  c = 1, the numbers in use (see `dpmpp_3m`)

    Steps of order 2 are `dpm_solver_2m` of that kind.

    start: as for `dpmpp_3m`; "single" adds 1 call, and 1 more where the run starts at alpha = 0
    and goes over to slopes at alpha = sigma.

    Args:
        form: "exact" or "compat".
        kind: "midpoint" or "heun", of steps of order 2.
        orders: [N] orders of the steps, each at most 3 and what is remembered.
    """
    check_choice("dpm_solver_3m", "form", form, FORMS)
    check_choice("dpm_solver_3m", "kind", kind, KINDS)
    return build(
        schedule,
        grid,
        f"dpm_solver_3m({form})",
        3,
        "noise",
        "lam",
        predict=taylor(form, kind),
        orders=orders,
        start=start,
    )
