"""Exponential Runge-Kutta methods: dy = (x0 - y) dh, the linear part exact, x0 interpolated in h.

With h = log(q_s / q_t), the time variables of `one_step` and weights made of phi_k = phi_k(-h),

    y_i = exp(-c_i h) y_s + h sum_j a_ij(h) d_j,      y_t = exp(-h) y_s + h sum_j b_j(h) d_j

where the weights of the first estimate follow from the others, as sum_j a_ij = c_i phi_1(-c_i h)
and sum_j b_j = phi_1. They hold for any h: no step is too large for stability.

The step into sigma_t = 0 is Euler's, one call: the sample is then the last x0 estimate. The step
out of alpha_s = 0 is made in "flow", where h is finite. On `flow` this is the default, and the
order then holds from pure noise too. With "rho" the first steps in lam = log(alpha/sigma) stay
large when N grows: from t = 1 in even times the error falls as N^-2 at best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids.checks import check_share
from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Clock, builder
from diffast.solvers.core.one_step import one_step
from diffast.solvers.core.phi import phi


@builder
def res_2s(schedule: Schedule, grid: ArrayLike, c2: float = 0.5, clock: Clock = None) -> Plan:
    """Returns the two-stage exponential method, "RES 2S". Order 2, 2 calls a step.

    a_21 = c2 phi_1(-c2 h); b_2 = phi_2 / c2 (Hochbruck & Ostermann 2005, "Explicit exponential
    Runge-Kutta methods for semilinear parabolic problems", section 5.1; Zhang et al. 2023,
    "Improved order analysis and design of exponential integrator for diffusion models sampling"):
    the line through both estimates integrated exactly, for any h.
    """
    c2 = check_share("res_2s", "c2", c2)
    method = _method((c2,), lambda h: ([phi(2, h) / c2],))
    return one_step("res_2s", schedule, grid, method, clock)


@builder
def res_3s(
    schedule: Schedule, grid: ArrayLike, c2: float = 1 / 3, c3: float = 2 / 3, clock: Clock = None
) -> Plan:
    """Returns the three-stage exponential method, "RES 3S". Order 3, 3 calls a step.

        a_32 = gamma c2 phi_2(-c2 h) + (c3^2 / c2) phi_2(-c3 h)
        b_2 = gamma phi_2 / (gamma c2 + c3),      b_3 = phi_2 / (gamma c2 + c3)
        gamma = (3 c3^2 - 2 c3) / ((2 - 3 c2) c2)

    (Hochbruck & Ostermann 2005, section 5.2, with 2 (gamma c2 + c3) = 3 (gamma c2^2 + c3^2); for
    c3 = 2/3 gamma is 0, and b_2 with it.) Fulfils their order conditions for any h.

    Raises:
        ValueError: an option outside of these; c2 = c3 or c2 = 2/3 where c3 is not 2/3, for which
            the order conditions have no solution; a grid that `check_grid` refuses.
    """
    c2, c3 = check_share("res_3s", "c2", c2), check_share("res_3s", "c3", c3)
    if c3 == 2 / 3:
        gamma = 0.0
    elif c2 in (c3, 2 / 3):
        raise ValueError(f"res_3s: c2 = {c2}, but it must differ from c3 = {c3} and 2/3")
    else:
        gamma = (3.0 * c3**2 - 2.0 * c3) / ((2.0 - 3.0 * c2) * c2)

    def rows(h):
        a32 = gamma * c2 * phi(2, c2 * h) + c3**2 / c2 * phi(2, c3 * h)
        b3 = phi(2, h) / (gamma * c2 + c3)
        return [a32], [gamma * b3, b3]

    return one_step("res_3s", schedule, grid, _method((c2, c3), rows), clock)


@builder
def etdrk3(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns ETD3RK, which is Kutta's third-order method as h -> 0. Order 3, 3 calls a step.

    c = (1/2, 1), a_32 = 2 phi_1; b_2 = 4 phi_2 - 8 phi_3, b_3 = 4 phi_3 - phi_2
    (Cox & Matthews 2002, eq. 23-25).
    """

    def rows(h):
        line, bend = phi(2, h), phi(3, h)
        return [2.0 * phi(1, h)], [4.0 * line - 8.0 * bend, 4.0 * bend - line]

    return one_step("etdrk3", schedule, grid, _method((0.5, 1.0), rows), clock)


@builder
def etdrk4(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns ETD4RK, which is the classical method as h -> 0. Order 4, 4 calls a step.

        c = (1/2, 1/2, 1),      a_32 = phi_1(-h/2) / 2,      a_42 = 0,      a_43 = phi_1(-h/2)
        b_2 = b_3 = 2 phi_2 - 4 phi_3,      b_4 = 4 phi_3 - phi_2

    (Cox & Matthews 2002, eq. 26-29).
    """

    def rows(h):
        half = phi(1, 0.5 * h)
        return [0.5 * half], [0.0, half], _simpson(h)

    return one_step("etdrk4", schedule, grid, _method((0.5, 0.5, 1.0), rows), clock)


@builder
def krogstad4(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns Krogstad's ETDRK4-B, the classical method as h -> 0. Order 4, 4 calls a step.

    c = (1/2, 1/2, 1), a_32 = phi_2(-h/2), a_42 = 0, a_43 = 2 phi_2, and the b of `etdrk4`
    (Krogstad 2005, "Generalized integrating factor methods for stiff PDEs"): stages of second
    order in place of first, so smaller errors at large h.
    """

    def rows(h):
        return [phi(2, 0.5 * h)], [0.0, 2.0 * phi(2, h)], _simpson(h)

    return one_step("krogstad4", schedule, grid, _method((0.5, 0.5, 1.0), rows), clock)


def _simpson(h):
    """Returns b_2, b_3, b_4 of the parabola through start, middle (twice) and end."""
    line, bend = phi(2, h), phi(3, h)
    middle = 2.0 * line - 4.0 * bend
    return [middle, middle, 4.0 * bend - line]


def _method(places, rows):
    """Returns the method, see `one_step`: calls at those parts c of h, and h times rows(h).

    Left out are the weights of the first estimate, and the row of the second call, which has no
    other.
    """

    def method(ratio):
        h = -np.log(ratio)
        gain = np.zeros((len(h), len(places) + 1, len(places)))
        for i, row in enumerate(rows(h), 1):
            for j, weight in enumerate(row):
                gain[:, i, j] = h * weight
        return ratio[:, None] ** np.array(places), gain  # exactly ratio where c = 1

    return method
