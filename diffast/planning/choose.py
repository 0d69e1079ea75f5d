"""`df.plan`: the plan to start with, from the table of measurements."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import numpy as np

from diffast import grids, solvers
from diffast.planning.kinds import Wanted, wanted_of
from diffast.planning.rows import Row, gaussian_error, plan_of, times_of, whole_times
from diffast.planning.table import rows_of, standard_of
from diffast.plans import Plan

# The error on Gaussian data up to which a learned row fits any schedule.
FITS = 0.05
# A learned row is taken for up to so many times its calls; a standard method can use them all.
WORTH = 1.35
MOST = 1000  # calls; beyond this number nothing was measured


def plan(
    denoiser: Any,
    calls: int = 10,
    *,
    stochastic: bool = False,
    guidance: float | None = None,
    standard: bool = False,
) -> Plan:
    """Returns the plan to start with for a network and a number of network calls.

    The choice is read from a table of measurements by kind of schedule, number of calls and
    guidance; docs/planning.md shows the table. For 5 to 20 calls the plan is a multistep
    method with weights and levels that were learned over many problems at once; for other numbers,
    and with guidance, it is the solver and grid with the least worst ratio of errors. `Plan.name`
    says which. A guided call of both branches counts as one.

    Args:
        denoiser: a `df.Denoiser`, or a schedule alone.
        calls: network calls, 1 to 1000. The plan has this many, or fewer where the method needs
            another number (`Plan.nfe` says how many).
        stochastic: a plan with fresh noise in its steps.
        guidance: scale of classifier-free guidance; None: the denoiser's, 1 for a schedule. From
            1.5 on methods that were measured with guidance are taken.
        standard: only solvers of `df.solvers`, no learned weights.

    Raises:
        TypeError: for a first argument that is neither a denoiser nor a schedule.
        ValueError: for calls outside of 1 to 1000; for more calls than a network of whole times has
            levels.
    """
    count = whole_calls("plan", calls)
    wanted = wanted_of(denoiser, guidance)
    if wanted.whole and count > _levels(wanted):
        raise ValueError(
            f"plan: calls = {count}, but the network takes whole numbers as times and the schedule "
            f"has {_levels(wanted)} of them"
        )
    if not stochastic and not standard:
        learned = _learned(wanted, count)
        if learned is not None:
            return learned
    return _standard(wanted, count, stochastic)


def _learned(wanted: Wanted, count: int) -> Plan | None:
    """Returns the plan of the row with the most calls that fits the schedule; None: there is none.

    A row fits where its error on Gaussian data is small, or not far above that of shorter rows.
    """
    rows = rows_of(wanted.kind, wanted.guided)
    if not rows or count > max(rows):
        return None
    chosen, least = None, np.inf
    for calls, row in rows.items():
        times = times_of(row, wanted.schedule, wanted.whole) if calls <= count else None
        if times is None:
            break
        error = gaussian_error(row, wanted.schedule, times)
        if chosen is None or error <= max(FITS, 2.0 * least):
            chosen = calls, row, times
        least = min(least, error)
    if chosen is None or chosen[0] * WORTH < count:
        return None
    calls, row, times = chosen
    name = f"plan({_named(wanted)}, calls={calls}, learned)"
    return plan_of(row, wanted.schedule, times, name)


def whole_calls(who: str, calls: Any) -> int:
    """Returns the number of calls as an int; ValueError for what is none."""
    try:
        count = operator.index(calls)
    except TypeError:
        count = 0
    if isinstance(calls, bool) or not 1 <= count <= MOST:
        raise ValueError(
            f"{who}: calls = {calls!r}, but it must be a whole number from 1 to {MOST}"
        )
    return count


def _levels(wanted: Wanted) -> int:
    """Returns how many whole times there are."""
    first, last = float(wanted.schedule.t_start), float(wanted.schedule.t_min)
    return int(np.floor(max(first, last)) - np.ceil(min(first, last))) + 1


def _named(wanted: Wanted) -> str:
    return f"{wanted.kind}, guided" if wanted.guided else wanted.kind


def _standard(wanted: Wanted, count: int, stochastic: bool) -> Plan:
    """Returns the plan of the solver that the table names; all of them take one call a step."""
    name, options, spacing = standard_of(wanted.kind, wanted.guided, stochastic, count)
    grid = grid_of(spacing, wanted.schedule, count)
    if wanted.whole:
        rounded = whole_times(grid, float(wanted.schedule.t_min))
        assert rounded is not None  # there are enough, see `plan`
        grid = rounded
    made = getattr(solvers, name)(wanted.schedule, grid, **options)
    return replace(made, name=f"plan({_named(wanted)}, calls={count}, {made.name}, {spacing})")


def grid_of(spacing: str, schedule: Any, count: int) -> np.ndarray:
    """Returns the grid of a name of the table: "karras", or a grid even in a power of tau.

    "flow^p" has tau_n = tau_0 (1 - n/N)^p with tau = sigma / (alpha + sigma).
    """
    head, _, power = spacing.partition("^")
    if head == "flow":
        shares = (np.arange(count, 0, -1) / count) ** float(power or 1)
        row = Row(tuple(shares.tolist()), ((),) * count)
        times = times_of(row, schedule, whole=False)
        assert times is not None
        return times
    return getattr(grids, head)(schedule, count)
