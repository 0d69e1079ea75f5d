"""DPM-Solver and DPM-Solver++ singlestep: one to three calls a step, placed evenly in log q.

With d the x0 estimate, f = (y - d) / q the slope dy/dq (eps for "rho") and
h = log(q_s / q_t), the solution of dy/dq = (y - d) / q is either of

    data:    y_t = exp(-h) y_s + integral_0^h exp(v - h) d(v) dv
    noise:   y_t = y_s - q_s integral_0^h exp(-v) f(v) dv

and d or f is a polynomial in v through the calls of the step, with D1 and D2 its first and second
derivative per step (Lu et al. 2022: "DPM-Solver", section 3; "DPM-Solver++", section 4):

    data:    y_t = exp(-h) y_s + (1 - exp(-h)) d_s + h phi_2(-h) D1 + h phi_3(-h) D2
    noise:   y_t = y_s + (q_t - q_s) f_s - q_t h phi_2(h) D1 - q_t h phi_3(h) D2

Time variables, the step into sigma_t = 0 (Euler's, one call) and the step out of alpha_s = 0 are
those of `one_step`. With "rho" these are the papers' methods: x/alpha, and h the step in lam. On
`flow` the default is "flow", with h the step in -log(sigma).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.grids.checks import check_share
from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Clock, Kind, Orders, builder
from diffast.solvers.core.multistep import check_choice
from diffast.solvers.core.one_step import (
    block_rows,
    check_clock,
    clock_level,
    clock_of_step,
    euler_method,
    from_slopes,
    one_step,
    plan_of_blocks,
)
from diffast.solvers.core.phi import phi

# Places of the inner calls of DPM-Solver-2 and -3 within a step, in h (Lu et al. 2022, algorithms 1
# and 2), by order. diffast/solvers/embedded/dpm.py has its nodes and weights from them, too.
PLACES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}

KINDS = ("midpoint", "heun")


@builder
def dpm_solver_2s(schedule: Schedule, grid: ArrayLike, r: float = 0.5, clock: Clock = None) -> Plan:
    """Returns DPM-Solver-2, the noise form. Order 2, 2 calls a step.

    Lu et al. 2022, algorithm 1 (r = 1/2) and 4 (any r): a call at h r, D1 = (f_1 - f_s) / r, and
    (exp(h) - 1) / 2 in place of h phi_2(h). Into sigma_t = 0 Euler's step, as k-diffusion; out of
    alpha_s = 0 by the clock "flow".
    """
    method = _method("noise", "midpoint", check_share("dpm_solver_2s", "r", r))
    return one_step("dpm_solver_2s", schedule, grid, method, clock)


@builder
def dpm_solver_3s(
    schedule: Schedule,
    grid: ArrayLike,
    r1: float = 1 / 3,
    r2: float = 2 / 3,
    kind: Kind = "midpoint",
    clock: Clock = None,
) -> Plan:
    """Returns DPM-Solver-3, the noise form. Order 3 for r2 = 2/3, else 2; 3 calls a step.

    Lu et al. 2022, algorithm 2 (r1 = 1/3, r2 = 2/3) and 5: calls at h r1 and h r2, the second from
    the line through the first two slopes. The step has, by kind,

        midpoint:  D1 = (f_2 - f_s) / r2, D2 = 0                    (the algorithm)
        heun:      the parabola through f_s, f_1 and f_2

    f_1 comes from an Euler step, so order 3 asks that its weight vanish as h -> 0: r2 = 2/3, in
    either kind. Into sigma_t = 0 and out of alpha_s = 0: see `dpm_solver_2s`.
    """
    method = _third("dpm_solver_3s", "noise", kind, r1, r2)
    return one_step("dpm_solver_3s", schedule, grid, method, clock)


@builder
def dpmpp_2s(schedule: Schedule, grid: ArrayLike, r: float = 0.5, clock: Clock = None) -> Plan:
    """Returns DPM-Solver++(2S), the data form. Order 2, 2 calls a step.

    Lu et al. 2022, "DPM-Solver++", algorithm 1: a call at h r, D1 = (d_1 - d_s) / r, and
    (1 - exp(-h)) / 2 in place of h phi_2(-h); `res_2s` has the latter. Into sigma_t = 0 Euler's
    step, as k-diffusion; out of alpha_s = 0 by the clock "flow".
    """
    method = _method("data", "midpoint", check_share("dpmpp_2s", "r", r))
    return one_step("dpmpp_2s", schedule, grid, method, clock)


@builder
def dpmpp_3s(
    schedule: Schedule,
    grid: ArrayLike,
    r1: float = 1 / 3,
    r2: float = 2 / 3,
    kind: Kind = "midpoint",
    clock: Clock = None,
) -> Plan:
    """Returns DPM-Solver++(3S), the data form. Order 3 for r2 = 2/3, else 2; 3 calls a step.

    `dpm_solver_3s` with x0 estimates in place of slopes (Lu et al.'s code; their paper stops at
    2S). kind "midpoint" has D1 = (d_2 - d_s) / r2 and is `res_3s` for r2 = 2/3; "heun" has the
    parabola, with D2 = 2 ((d_2 - d_s)/r2 - (d_1 - d_s)/r1) / (r2 - r1), the second derivative
    itself. Into sigma_t = 0 and out of alpha_s = 0: see `dpmpp_2s`.
    """
    method = _third("dpmpp_3s", "data", kind, r1, r2)
    return one_step("dpmpp_3s", schedule, grid, method, clock)


def fast_orders(calls: int) -> tuple[int, ...]:
    """Returns the orders of the steps on which DPM-Solver-fast spends that many calls.

    floor(calls / 3) + 1 steps: 3, ..., 3 and then 2, 1 if 3 divides calls, else the rest (Lu et al.
    2022, section 3.4). An order is also the number of its calls.

    Raises:
        ValueError: calls < 1.
    """
    if calls < 1:
        raise ValueError(f"fast_orders: calls = {calls}, but it must be at least 1")
    threes, rest = divmod(calls, 3)
    return (3,) * threes + (rest,) if rest else (3,) * (threes - 1) + (2, 1)


@builder
def dpm_fast(
    schedule: Schedule, grid: ArrayLike, orders: Orders = None, clock: Clock = None
) -> Plan:
    """Returns DPM-Solver-fast: `dpm_solver_3s` steps, then lower orders to use up a budget.

    k-diffusion's `sample_dpm_fast` with eta = 0, for a budget of n calls from rho_max to rho_min:

        orders = fast_orders(n)
        grid = uniform_logsnr(schedule, len(orders), sigma_min, sigma_max, to_zero=False)

    Three calls a step but in the last two; order 2 over a whole grid with the single first-order
    step that a budget divisible by 3 has, order 3 where none is below 2. Into sigma_t = 0 the step
    is Euler's, one call, whatever its order; out of alpha_s = 0 by the clock "flow".

    Args:
        orders: N numbers 1, 2 or 3; by default `fast_orders(3 (N-1))`: 3 ... 3, 2, 1.
    """
    steps = len(check_grid(schedule, grid)) - 1
    if orders is None:
        orders = fast_orders(max(3 * (steps - 1), 1))
    orders = _check_orders("dpm_fast", orders)
    if len(orders) != steps:
        raise ValueError(f"dpm_fast: {len(orders)} orders, but the grid has {steps} steps")
    second, third = (_method("noise", "midpoint", *PLACES[order]) for order in (2, 3))
    methods = [(euler_method, second, third)[order - 1] for order in orders]
    return one_step("dpm_fast", schedule, grid, methods, clock)


@builder
def singlestep(
    schedule: Schedule,
    grid: ArrayLike,
    orders: ArrayLike = 2,
    form: Literal["data", "noise"] = "data",
    kind: Kind = "midpoint",
    clock: Clock = None,
) -> Plan:
    """Returns singlestep DPM-Solver(++) whose inner calls are grid points. One call an interval.

    Blocks of 1, 2 or 3 intervals are one step of that order each. Within a block every grid point
    is computed from the block's start with all estimates since then: the first by Euler, the second
    by the second-order formula, the third by the third-order one, with r given by the grid. So the
    network sees the points that diffusers' `DPMSolverSinglestepScheduler` shows it. kind "midpoint"
    has half of (1 - exp(-h)) in second order and no D2 in third, "heun" the phi functions; the
    second point of a block of 3 is of the same kind, unlike `dpmpp_3s`. Third order needs blocks
    that are even in h.

    Into sigma_t = 0 the point is the last x0 estimate, wherever in a block it is, as if the last
    interval were a block of 1. Blocks out of alpha_s = 0 go by the clock "flow".

    Args:
        orders: lengths of the blocks, 1 to 3, adding up to N; or one number for all, the last
            block being as long as intervals are left.
        form: "data" (dpmsolver++) or "noise" (dpmsolver).
    """
    check_choice("singlestep", "form", form, ("data", "noise"))
    check_choice("singlestep", "kind", kind, KINDS)
    grid = check_grid(schedule, grid)
    ticks = check_clock("singlestep", schedule, grid, clock)
    steps = len(grid) - 1
    given: Any = orders
    if np.ndim(given) == 0:
        _check_orders("singlestep", [given])
        whole, rest = divmod(steps, int(given))
        given = [int(given)] * whole + [rest] * (rest > 0)
    lengths = _check_orders("singlestep", given)
    if sum(lengths) != steps:
        raise ValueError(
            f"singlestep: orders add up to {sum(lengths)}, but the grid has {steps} intervals"
        )
    blocks, n = [], 0
    for order in lengths:
        times = grid[None, n : n + order + 1]
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        by = clock_of_step(ticks, alpha[0, 0])
        level = clock_level(by, alpha, sigma)[1]
        # a last level of 0 gets a number here and its row below
        ratios = np.where(level > 0.0, level, 0.5 * level[:, -2:-1])[:, 1:] / level[:, :1]
        gain = _gain(form, kind, kind, ratios)
        if sigma[0, -1] == 0.0:
            gain[0, -1] = 0.0
            gain[0, -1, order - 2 :] = 1.0
        keep, weights = block_rows(schedule, by, times, gain)
        blocks.append((times[0, :-1], keep[0], weights[0]))
        n += order
    name = f"singlestep({form}, {kind}, clock={ticks})"
    return plan_of_blocks(name, schedule, grid, blocks)


def _method(form, kind, *places):
    """Returns the method, see `one_step`, with inner calls at those parts of h."""

    def method(ratio):
        ratios = ratio[:, None] ** np.array([*places, 1.0])
        return ratios[:, :-1], _gain(form, kind, "heun", ratios)

    return method


def _third(name, form, kind, r1, r2):
    check_choice(name, "kind", kind, KINDS)
    r1, r2 = check_share(name, "r1", r1), check_share(name, "r2", r2)
    if not r1 < r2:
        raise ValueError(f"{name}: r2 = {r2}, but it must be above r1 = {r1}")
    return _method(form, kind, r1, r2)


def _gain(form, kind, kind_inner, ratios):
    """Returns [N, k, k-1] weights of the differences of estimates, see `one_step`.

    Args:
        kind: of the last point.
        kind_inner: of the second of three points.
        ratios: [N, k] q_i / q_s of the points, k <= 3.
    """
    h = -np.log(ratios)
    count = h.shape[1]
    weights = np.zeros((*h.shape, count - 1))
    if count > 1:
        line = _line(form, kind if count == 2 else kind_inner, h[:, 1])
        weights[:, 1, 0] = line * h[:, 1] / h[:, 0]
    if count == 3:
        r1, r2 = h[:, 0] / h[:, 2], h[:, 1] / h[:, 2]
        line = _line(form, "heun", h[:, 2])
        if kind == "midpoint":
            weights[:, 2, 1] = line / r2
        else:
            bend = 2.0 * _bend(form, h[:, 2])
            weights[:, 2, 0] = (r2 * line - bend) / (r1 * (r2 - r1))
            weights[:, 2, 1] = (bend - r1 * line) / (r2 * (r2 - r1))
    return weights if form == "data" else from_slopes(-weights, ratios[:, :-1])


def _line(form, kind, h):
    """Returns the weight of D1: h phi_2(-h), or exp(-h) h phi_2(h), or what midpoint puts there."""
    if kind == "midpoint":
        return -0.5 * np.expm1(-h)
    return h * phi(2, h) if form == "data" else h * (phi(1, h) - phi(2, h))


def _bend(form, h):
    """Returns the weight of D2: h phi_3(-h) or exp(-h) h phi_3(h)."""
    if form == "data":
        return h * phi(3, h)
    return h * (0.5 * phi(1, h) - phi(2, h) + phi(3, h))


def _check_orders(name, orders):
    for order in orders:
        if order not in (1, 2, 3):
            raise ValueError(f"{name}: order = {order}, but it must be 1, 2 or 3")
    return [int(order) for order in orders]
