"""Exponential Adams-Bashforth: the x0 estimate as a polynomial in lam, integrated exactly."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plan import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.multistep import build, check_order


@builder
def exponential_adams(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    orders: ArrayLike | None = None,
    start: Literal["rise", "single"] = "rise",
) -> Plan:
    """Returns exponential Adams-Bashforth in lam. Orders 1 to 4, 1 call a step.

    With h = lam_t - lam_s, d_j the x0 estimates remembered, and L_j Lagrange's polynomials in
    u = lam - lam_s (Hochbruck & Ostermann 2010, "Exponential integrators", section 2.7),

        x_t = (sigma_t / sigma_s) x_s + alpha_t sum_j d_j integral_0^h exp(-(h - u)) L_j(u) du

    which are combinations of phi_1 ... phi_4 at -h. Order 2 is `dpmpp_2m` of kind "heun", order 3
    `dpmpp_3m` of form "exact".

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order. "single" has the full order, from pure noise too, with 1 more call
    (order 3) or 4 (order 4).
    """
    order = check_order("exponential_adams", order, 4)
    name = f"exponential_adams(order={order})"
    return build(schedule, grid, name, order, "data", "lam", orders=orders, start=start)
