"""Visits of a corrector as stages of a plan, and the history of a multistep plan across a visit.

Entries that a multistep plan remembers belong to the path that its state came from. A visit moves
the state to another path of the same law. An entry e of an earlier time is then wrong by about the
change of the entry at the visit itself, which is known: the visit's first call stands at the state
before, the plan's next call at the state after, both at one time. So where the plan reads e across
a visit, e + (new - old) is read in its place. The order of the plan is kept by that. `old` is one
more remembered entry.

This is possible where the entry of the plan's next call is a function of that call alone (its x
and its x0 estimate), which holds for all multistep solvers that remember estimates. Where it is
not, entries are read as they are. So are remembered gradients of guidance terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.plans.places import Place, last_reads
from diffast.plans.registers import (
    D_COND,
    D_RAW,
    D_UNCOND,
    MOMENTUM_LEVEL,
    NEW,
    ROWS,
    D,
    H,
    V,
    X,
    Y,
    column_key,
    entry_column,
)

Rows = dict[str, dict[str, float]]


@dataclass
class _Made:
    """A stage of the new plan.

    Attributes:
        rows: its rows.
        time: model times that are told.
        levels: {register: (alpha, sigma)}.
        span: as in the plan.
        guidance: scales of its calls, or None.
        gradient: model time that gradients are told, or None.
    """

    rows: Rows
    time: Any
    levels: dict[str, Any]
    span: Any
    guidance: Any
    gradient: float | None


def inserted(plan: Plan, visits: list[tuple[Place, list[Rows]]], name: str) -> Plan:
    """Returns the plan with the visits' stages added.

    Args:
        plan: any plan.
        visits: places in order, each with the rows of its calls.
        name: of the new plan.
    """
    check_plain_start("predictor_corrector", plan, "add the corrector first, then start it late")
    stages = _Walk(plan, visits).stages()
    written = {*plan.rows}.union(*(s.rows for s in stages))
    used = {*plan.columns}.union(*(row for s in stages for row in s.rows.values()))
    used |= written & {V}
    rows = tuple(r for r in ROWS if r in written)
    columns = tuple(sorted(used, key=column_key))
    index = {column: c for c, column in enumerate(columns)}
    matrix = np.zeros((len(stages), len(rows), len(columns)))
    levels = np.full((len(stages), len(rows), 2), np.nan)
    for i, stage in enumerate(stages):
        for register, row in stage.rows.items():
            r = rows.index(register)
            for column, weight in row.items():
                matrix[i, r, index[column]] = weight
        for register, level in stage.levels.items():
            levels[i, rows.index(register)] = level
    return replace(
        plan,
        name=name,
        rows=rows,
        columns=columns,
        matrix=matrix,
        levels=levels,
        times=np.array([stage.time for stage in stages]),
        spans=np.array([stage.span for stage in stages]),
        check="finite" if plan.check == "finite" else "x0",
        blocks=_blocks(plan, visits),
        guidance=None if plan.guidance is None else np.array([s.guidance for s in stages]),
        gradients=None if plan.gradients is None else np.array([s.gradient for s in stages]),
        made_for=None,
    )


class _Walk:
    """The stages of the new plan, made one after another."""

    def __init__(self, plan: Plan, visits: list[tuple[Place, list[Rows]]]):
        self.plan, self.visits = plan, visits
        self.rows = _rows_of(plan)
        self.crossed = _visits_crossed(plan, self.rows, visits)
        self.scales = {place.before: place.scale for place, _ in visits}
        self.made: list[tuple[str, int]] = []  # entries: ("plan", stage) or ("old", visit)
        self.own: list[int] = []  # the plan's stages that made one

    def stages(self) -> list[_Made]:
        """Returns all stages in order."""
        found: list[_Made] = []
        following = {place.before: number for number, (place, _) in enumerate(self.visits)}
        for i in range(self.plan.stages + 1):
            if i in following:
                found += self._visit(following[i])
            if i < self.plan.stages:
                found.append(self._stage(i))
        return found

    def _stage(self, i: int) -> _Made:
        """Returns the plan's stage i, with entries by their new ages.

        Where a visit follows, x is written at the level that the visit stands at.
        """
        plan = self.plan
        rows = {register: self._read(i, row) for register, row in self.rows[i].items() if row}
        if rows.get(H):
            self.made.append(("plan", i))
            self.own.append(i)
        levels = dict(zip(plan.rows, plan.levels[i], strict=True))
        scale = self.scales.get(i + 1, 1.0)
        if scale != 1.0:
            for name in (X, Y):
                if name in rows:
                    rows[name] = _scaled(rows[name], scale)
                    levels[name] = levels[name] * scale
        guidance = None if plan.guidance is None else plan.guidance[i]
        gradient = None if plan.gradients is None else plan.gradients[i]
        return _Made(rows, plan.times[i], levels, np.asarray(plan.spans)[i], guidance, gradient)

    def _read(self, i: int, row: dict[str, float]) -> dict[str, float]:
        out: dict[str, float] = {}

        def add(column: str, weight: float) -> None:
            out[column] = out.get(column, 0.0) + weight

        for column, weight in row.items():
            if column[0] != "h" or column == NEW:
                add(column, weight)
                continue
            maker = self.own[-int(column[1:])]
            add(self._age("plan", maker), weight)
            if any(part[0] == "g" for part in self.rows[maker][H]):
                continue  # an entry of gradients, which `new` and `old` are not
            for number in self.crossed:
                following = self.visits[number][0].before
                if maker < following <= i:
                    add(NEW if following == i else self._age("plan", following), weight)
                    add(self._age("old", number), -weight)
        return {column: weight for column, weight in out.items() if weight}

    def _age(self, kind: str, number: int) -> str:
        return entry_column(len(self.made) - self.made.index((kind, number)))

    def _visit(self, number: int) -> list[_Made]:
        """Returns the stages of a visit."""
        plan, (place, visit) = self.plan, self.visits[number]
        carried = {}
        if V in plan.rows and place.before:
            carried = {V: {V: 1.0}} if self.rows[place.before - 1].get(V) else {}
        inputs = plan.times.shape[1] if plan.times.ndim == 2 else 0
        time = np.append(place.time, np.full(inputs - 1, np.nan)) if inputs else place.time
        guidance = None
        if plan.guidance is not None:  # the scale of the plan's next call
            k = min(int(np.searchsorted(plan.calls, place.before)), len(plan.calls) - 1)
            scale = plan.guidance.reshape(plan.stages, -1)[plan.calls[k], 0]
            guidance = np.append(scale, np.full(inputs - 1, np.nan)) if inputs else scale
        stages = []
        for k, written in enumerate(visit):
            rows, level = carried | written, place.level
            if k + 1 == len(visit) and place.scale != 1.0:  # back to where the plan has x
                rows[X] = _scaled(rows[X], 1.0 / place.scale)
                level = tuple(part / place.scale for part in level)
            if Y in plan.rows:
                rows[Y] = rows[X]
            if k == 0 and number in self.crossed:
                entry = dict(self.rows[place.before][H])
                if X in entry:  # of x where the plan has it
                    entry[X] /= place.scale
                rows[H] = entry
                self.made.append(("old", number))
            levels = {r: MOMENTUM_LEVEL if r == V else level for r in rows if r != H}
            span, gradient = (place.time, place.time), place.time
            stages.append(_Made(rows, time, levels, span, guidance, gradient))
        return stages


def _scaled(row: dict[str, float], scale: float) -> dict[str, float]:
    return {column: scale * weight for column, weight in row.items()}


def _rows_of(plan: Plan) -> list[Rows]:
    """Returns the rows of each stage, weights other than 0 by column."""
    found: list[Rows] = [{name: {} for name in plan.rows} for _ in range(plan.stages)]
    places = np.nonzero(plan.matrix)
    weights = plan.matrix[places].tolist()
    for i, r, c, weight in zip(*(p.tolist() for p in places), weights, strict=True):
        found[i][plan.rows[r]][plan.columns[c]] = weight
    return found


def _visits_crossed(
    plan: Plan, rows: list[Rows], visits: list[tuple[Place, list[Rows]]]
) -> set[int]:
    """Returns the visits across which entries are read and can be moved along."""
    found = set()
    reads = last_reads(plan)
    called = np.any(plan.called, axis=1)
    for number, (place, _) in enumerate(visits):
        i = place.before
        if i == plan.stages or not called[i]:
            continue
        entry = rows[i].get(H) or {}
        if not entry or not entry.keys() <= {X, D, D_RAW, D_COND, D_UNCOND}:
            continue
        if any(maker < i <= last for maker, last in reads.items()):
            found.add(number)
    return found


def _blocks(plan: Plan, visits: list[tuple[Place, list[Rows]]]) -> np.ndarray | None:
    """Returns the first calls of the blocks; each visit is a block of its own."""
    if plan.blocks is None:
        return None
    before = [int(np.searchsorted(plan.calls, place.before)) for place, _ in visits]
    sizes = [len(visit) for _, visit in visits]
    added = np.cumsum([0, *sizes])
    firsts = {0}
    for first in plan.blocks.tolist():  # a visit before this call comes before it
        firsts.add(first + int(added[np.searchsorted(before, first, side="right")]))
    for call, size, shift in zip(before, sizes, added[:-1].tolist(), strict=True):
        firsts |= {call + shift, call + shift + size}
    total = plan.nfe + int(added[-1])
    return np.array(sorted(first for first in firsts if first < total))
