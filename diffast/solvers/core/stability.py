"""The warning of builders: a plan with so few steps that it throws its samples out of the data."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec

import numpy as np

from diffast.grids.checks import check_grid
from diffast.plans import Plan
from diffast.plans.overshoot import PlanWarning, is_unstable, overshoot

Options = ParamSpec("Options")

# How many steps the search for a stable number goes up to, and how many in a row must be stable.
MOST_STEPS, IN_A_ROW = 40, 3

_silent: ContextVar[bool] = ContextVar("_silent", default=False)
_warned: set[tuple[str, int]] = set()  # (name, steps) of plans that people were warned of


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it builders neither probe plans nor warn: for plans that others have chosen."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def probed(build: Callable[Options, Plan]) -> Callable[Options, Plan]:
    """Returns the builder, with a `PlanWarning` for an unstable plan, once for (name, steps)."""

    @wraps(build)
    def build_and_probe(*args: Options.args, **options: Options.kwargs) -> Plan:
        if _silent.get():
            return build(*args, **options)
        with unchecked():  # a builder that calls another one warns in its own name
            plan = build(*args, **options)
            if (plan.name, plan.steps) in _warned or not is_unstable(plan):
                return plan
            said = _message(build, args, options, plan)
        warnings.warn(said, PlanWarning, stacklevel=2)
        _warned.add((plan.name, plan.steps))
        return plan

    return build_and_probe


def _message(build, args, options, plan):
    out = overshoot(plan)
    far = f", by {out:.2g} times the data's spread" if out < np.inf else ""
    enough = _stable_steps(build, args, options, plan)
    more = "" if enough is None else f" This grid divided into {enough} steps is stable."
    return (
        f"{plan.name}: {plan.steps} steps ({plan.nfe} network calls) are unstable on this grid: "
        f"samples of a test problem end outside of the data{far}.{more} With as few calls, a "
        "multistep solver such as df.solvers.adams on df.grids.default(schedule, calls) is stable."
    )


def _stable_steps(build, args, options, plan):
    """Returns the least number of steps that is stable on the grid made finer, or None."""
    bound = inspect.signature(build).bind(*args, **options)
    schedule, grid = bound.arguments["schedule"], bound.arguments["grid"]
    grid = check_grid(schedule, grid)
    stable = 0
    for steps in range(plan.steps + 1, MOST_STEPS + IN_A_ROW):
        bound.arguments["grid"] = _finer(schedule, grid, steps)
        try:
            finer = build(*bound.args, **bound.kwargs)
        except ValueError:  # options for another number of steps
            return None
        stable = 0 if is_unstable(finer) else stable + 1
        if stable == IN_A_ROW:
            return steps - IN_A_ROW + 1
    return None


def _finer(schedule, grid, steps):
    """Returns a grid of more steps with the spacing of this one, between points linear in lam."""
    lam = schedule.lam(grid)
    inside = np.isfinite(lam)
    places = np.flatnonzero(inside)
    count = steps + 1 - int(np.sum(~inside))
    at = np.linspace(places[0], places[-1], count)
    times = np.atleast_1d(schedule.time(np.interp(at, places, lam[inside])))
    times[[0, -1]] = grid[places[[0, -1]]]
    return np.concatenate([grid[: places[0]], times, grid[places[-1] + 1 :]])
