"""Momentum for multistep methods: GHVB, and a heavy ball on any of them.

Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn 2023, "Diffusion sampling with momentum for
mitigating divergence artifacts" (arXiv 2307.11118). A velocity v, a moving average of slopes, takes
the slopes' place. It damps what an explicit method of high order amplifies: the stable steps grow
as the damping b falls from 1, where there is none.
"""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.core.docs import splitting_builder
from diffast.solvers.core.integrals import keep, levels_at, moments
from diffast.solvers.core.multistep import check_order

HIGHEST = 5


def damped_weights(order: int, b: float) -> list[float]:
    """Returns GHVB's weights of the velocities, newest first; they add up to 1.

    With e constant along v_{n+1} = (1 - b) v_n + b e_n the mean has the order of Adams-Bashforth on
    e, order 1 to 5; b = 1 is Adams-Bashforth for even steps.
    """
    rows = {
        1: ([1.0], 1.0),
        2: ([2 + b, -(2 - b)], 2 * b),
        3: ([18 + 5 * b, -(24 - 8 * b), 6 - b], 12 * b),
        4: ([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)], 24 * b),
        5: (
            [1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b],
            720 * b,
        ),
    }
    numerators, whole = rows[order]
    older = [value / whole for value in numerators[1:]]
    return [1.0 - sum(older), *older]


def check_damping(who: str, damping: float) -> float:
    """Returns the damping as a float; ValueError unless it is in (0, 1]."""
    try:
        value = float(damping)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{who}: damping = {damping!r}, but it must be in (0, 1]")
    return value


@splitting_builder
def ghvb(schedule: Schedule, grid: ArrayLike, order: int = 4, damping: float = 0.8) -> Plan:
    """Returns GHVB: Adams-Bashforth on a velocity. Order 2 on smooth grids, 1 call a step.

    "Generalised heavy ball": with eps_n the slope of x/alpha in rho = sigma/alpha, b the damping,

        v_{n+1} = (1 - b) v_n + b eps_n,      v_1 = eps_0
        x_t = (alpha_t / alpha_s) x_s + alpha_t (rho_t - rho_s) sum_j c_j(b) v_{n+1-j}

    with c = (2 + b, -(2 - b)) / (2 b), (18 + 5 b, -(24 - 8 b), 6 - b) / (12 b) and so on, which for
    even steps in rho has the order of Adams-Bashforth (arXiv 2307.11118, section 4.2, there
    "GHVB 3.8" is order 4 with b = 0.8). b = 1 is `ipndm`. The orders rise 1, 2, 3 ... in the first
    steps. Into sigma_t = 0 the step is the last x0 estimate. Out of alpha_s = 0 it is Euler's and
    is not remembered.

    Args:
        order: 1 to 5; 1 is a heavy ball on Euler's method, of order 1.
    """
    order, b = check_order("ghvb", order, HIGHEST), check_damping("ghvb", damping)
    grid = check_grid(schedule, grid)
    levels, stages, made = levels_at(schedule, grid), Stages(schedule, grid[0]), 0
    for n, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        if s.alpha == 0.0 or t.sigma == 0.0:
            row = {"x": keep("data", s, t), "d": moments("data", "lam", s, t, 0)[0]}
            stages.add(grid[n], grid[n + 1], row, h={})
            continue
        share = b if made else 1.0
        entry = {"x": share / s.sigma, "d": -share * s.alpha / s.sigma}
        if made:
            entry["h1"] = 1.0 - b
        made += 1
        whole = moments("noise", "rho", s, t, 0)[0]
        weights = damped_weights(min(order, made), b)
        row = {"x": keep("noise", s, t)}
        row |= {f"h{age}": whole * weight for age, weight in enumerate(weights)}
        stages.add(grid[n], grid[n + 1], row, h=entry)
    return stages.plan(f"ghvb(order={order}, damping={b:g})", len(grid) - 1)
