"""The solvers that follow the network's part: which there are, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffast.plans import Plan
from diffast.solvers.core.multistep import check_order
from diffast.solvers.ode.adams import deis, exponential_adams, ipndm, lms
from diffast.solvers.ode.adams_clocks import adams
from diffast.solvers.ode.dpm_multistep import dpmpp_2m
from diffast.solvers.ode.euler import euler, heun
from diffast.solvers.ode.runge_kutta import rk4
from diffast.solvers.splitting.momentum import ghvb

# Those that have an order to choose, up to 4, and the others.
ORDERED = {
    "adams": adams,
    "lms": lms,
    "plms": ipndm,
    "deis": deis,
    "exponential_adams": exponential_adams,
    "ghvb": ghvb,
}
OTHERS = {"euler": euler, "dpmpp_2m": dpmpp_2m, "heun": heun, "rk4": rk4}
NAMES = (*ORDERED, *OTHERS)


def inner_plan(
    who: str, inner: str | Callable[..., Plan], order: int | None, schedule: Any, grid: np.ndarray
) -> tuple[str, Plan]:
    """Returns what people call the inner solver, and its plan.

    Args:
        who: the builder, for messages.
        inner: one of `NAMES`, or a function (schedule, grid) -> Plan.
        order: of those that have one to choose; None: 2 of "adams", 4 of the others.
        schedule: any schedule.
        grid: [N+1] model times, checked.

    Raises:
        ValueError: another name; an order for a solver that has none to choose; a plan that has not
            one state at each time of the grid, or that is for another grid.
    """
    if callable(inner):
        if order is not None:
            raise ValueError(
                f"{who}: order = {order}, but it must be None with a function as inner"
            )
        plan = inner(schedule, grid)
    elif inner in ORDERED:
        usual = 2 if inner == "adams" else 4  # higher ones of "adams" need more steps
        order = check_order(who, usual if order is None else order, 4)
        plan = ORDERED[inner](schedule, grid, order=order)
    elif inner in OTHERS:
        if order is not None:
            raise ValueError(
                f"{who}: order = {order}, but inner = {inner!r} has no order to choose"
            )
        plan = OTHERS[inner](schedule, grid)
    else:
        raise ValueError(
            f"{who}: inner = {inner!r}, but it must be a solver or one of {', '.join(NAMES)}"
        )
    if plan.gradients is not None:
        raise ValueError(f"{who}: the inner solver {plan.name} takes gradients itself")
    starts = _step_starts(plan)
    if starts.size + 1 != grid.size or not (plan.times[starts] == grid[:-1]).all():
        raise ValueError(
            f"{who}: the inner solver {plan.name} has one state at {starts.size} times, but the "
            f"grid has {grid.size - 1} steps, and guidance joins in between them"
        )
    label = plan.name if callable(inner) else inner if order is None else f"{inner} {order}"
    return label, plan


def _step_starts(plan: Plan) -> np.ndarray:
    """Returns the stages at which a step of the grid begins; none for plans with silent stages."""
    if plan.times.ndim > 1 or plan.nfe < plan.stages:
        return np.empty(0, dtype=np.int64)
    return plan.calls[plan.step_starts()]


def steps_of(plan: Plan) -> list[range]:
    """Returns the stages of each step of the grid, for a plan that `inner_plan` has passed."""
    starts = [*_step_starts(plan).tolist(), plan.stages]
    return [range(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
