"""DEIS: the noise estimate as a polynomial in log rho or in rho, integrated exactly."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plan import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.multistep import build, check_choice, check_order


@builder
def deis(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    clock: Literal["logrho", "sigma"] = "logrho",
    orders: ArrayLike | None = None,
    start: Literal["rise", "single"] = "rise",
) -> Plan:
    """Returns DEIS (tAB-DEIS, rhoAB-DEIS). Orders 1 to 4, 1 call a step, remembers slopes.

    With rho = sigma/alpha and eps_j remembered at s_j (Zhang & Chen 2023, eq. 14, 15, where eps is
    a polynomial in some clock and the integral is taken in rho),

        x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j eps_j integral L_j drho

    where L_j are Lagrange's polynomials in log rho ("logrho") or in rho ("sigma"; rhoAB-DEIS, the
    same map as `lms`). Both integrals are closed forms. Order 2 in log rho is DPM-Solver-2M with
    kind "heun". Into sigma_t = 0 a step is Euler's unless `orders` asks for more.

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order (order 3, N = 80 to 640: slopes of 2.2 to 2.9). "single" has the
    full order, from pure noise too, with 1 more call (order 3) or 4 (order 4).

    Args:
        clock: "logrho" or "sigma".
    """
    order = check_order("deis", order, 4)
    ticks = {"logrho": "lam", "sigma": "rho"}[
        check_choice("deis", "clock", clock, ("logrho", "sigma"))
    ]
    name = f"deis(order={order}, clock={clock})"
    return build(schedule, grid, name, order, "noise", ticks, orders=orders, start=start)
