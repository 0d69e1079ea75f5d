"""Exponential Adams-Bashforth: the x0 estimate as a polynomial in lam, integrated exactly."""

from __future__ import annotations

from diffast.plan import Plan
from diffast.solvers.core.multistep import build, check_order


def exponential_adams(schedule, grid, order=3, orders=None, start="rise") -> Plan:
    """Returns exponential Adams-Bashforth in lam. Orders 1 to 4, 1 call a step.

    With h = lam_t - lam_s, d_j the x0 estimates remembered, and L_j Lagrange's polynomials in
    u = lam - lam_s (Hochbruck & Ostermann 2010, "Exponential integrators", section 2.7),

        x_t = (sigma_t / sigma_s) x_s + alpha_t sum_j d_j integral_0^h exp(-(h - u)) L_j(u) du

    which are combinations of phi_1 ... phi_4 at -h. Order 2 is `dpmpp_2m` of kind "heun", order 3
    `dpmpp_3m` of form "exact".

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order. "single" has the full order, from pure noise too, with 1 more call
    (order 3) or 4 (order 4).

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        order: 1 to 4.
        orders: [N] orders of the steps, each at most `order` and what is remembered.
        start: "rise" or "single".

    Raises:
        ValueError: an option outside of these; a grid that `check_grid` refuses.
    """
    order = check_order("exponential_adams", order, 4)
    name = f"exponential_adams(order={order})"
    return build(schedule, grid, name, order, "data", "lam", orders=orders, start=start)


def res_2m(schedule, grid, orders=None) -> Plan:
    """Returns RES 2M: `exponential_adams` of order 2, which is `dpmpp_2m` of kind "heun".

    Order 2, 1 call a step. Zhang et al. 2023 ("Improved order analysis and design of exponential
    integrator for diffusion models sampling"), multistep with the exact phi_2.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        orders: [N] orders of the steps, each at most 2 and what is remembered.

    Raises:
        ValueError: other orders; a grid that `check_grid` refuses.
    """
    return build(schedule, grid, "res_2m", 2, "data", "lam", orders=orders)


def res_3m(schedule, grid, orders=None, start="rise") -> Plan:
    """Returns RES 3M: `exponential_adams` of order 3, one by two names. 1 call a step.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        orders: [N] orders of the steps, each at most 3 and what is remembered.
        start: "rise" (order 2 in the limit) or "single" (order 3, 1 more call).

    Raises:
        ValueError: an option outside of these; a grid that `check_grid` refuses.
    """
    return build(schedule, grid, "res_3m", 3, "data", "lam", orders=orders, start=start)
