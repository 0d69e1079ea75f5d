"""Guidance stages put between the stages of another solver's plan, its entries renumbered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import NEW, ROWS, H, V, X, Y, column_key, entry_column

# A column, or an entry by its maker: (maker, its number), whatever its age will be.
Key = str | tuple[str, int]
Row = Mapping[Any, float]
Weights = dict[Any, float]  # of a Row

OWN = "inner"  # the maker of the inner plan's entries


class Weave:
    """A plan that grows from the stages of an inner plan and further ones.

    Args:
        who: the builder, for messages.
        inner: the plan whose stages are taken.
    """

    def __init__(self, who: str, inner: Plan):
        """Begins without a stage; x stands where the inner plan starts."""
        check_plain_start(who, inner, "split the plan first, then start it late")
        self.who, self.source = who, inner
        start = np.array([f(np.array(inner.start)) for f in _levels(inner.schedule)], np.float64)
        self.standing: dict[str, Any] = {X: start, Y: start}
        self.stages: list[dict[str, dict[str, float]]] = []
        self.levels: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.told: list[float] = []
        self.spans: list[Any] = []
        self.made: dict[Key, int] = {}  # entries and their number
        self.apart = Y in inner.rows  # whether y is ever another tensor than x
        kept = inner.matrix[:, 0].any(axis=1) & (H in inner.rows)
        self.before = np.cumsum(kept) - kept  # inner entries before each inner stage

    def row_of(self, i: int, register: str) -> Weights:
        """Returns a row of inner stage i, its entries by their maker."""
        if register not in self.source.rows:
            return {}
        weights = self.source.matrix[i, self.source.rows.index(register)].tolist()
        found: Weights = {}
        for column, weight in zip(self.source.columns, weights, strict=True):
            if weight:
                age = int(column[1:]) if column[0] == H else 0
                found[(OWN, int(self.before[i]) - age) if age else column] = weight
        return found

    def take(
        self, i: int, rows: Mapping[str, Row] | None = None, v_at: tuple[float, float] | None = None
    ) -> None:
        """Adds inner stage i.

        Args:
            i: its number.
            rows: rows in place of its own.
            v_at: the (alpha, sigma) that a row v among `rows` holds.
        """
        own = {name: self.row_of(i, name) for name in self.source.rows}
        levels = {name: self.source.levels[i, r] for r, name in enumerate(self.source.rows)}
        levels |= {} if v_at is None else {V: v_at}
        entry = (OWN, int(self.before[i])) if own.get(H) else None
        self._add({**own, **(rows or {})}, levels, entry)
        self.times.append(float(self.source.times[i]))
        self.told.append(np.nan)
        self.spans.append(np.asarray(self.source.spans)[i])

    def guide(
        self, time: float, x: Row, *, y: Row | None = None, h: Row | None = None, entry=None
    ) -> None:
        """Adds a stage that evaluates gradients alone; x stays at its level.

        Args:
            time: model time that the guidance terms are told.
            x: row of x.
            y: row of y; None: y is x.
            h: row of the entry.
            entry: who makes the entry, (maker, number).
        """
        rows = {X: x} | ({H: h} if h else {}) | ({Y: y} if y else {})
        if self.stages and self.stages[-1].get(V):
            rows[V] = {V: 1.0}
        self._add(rows, {}, entry)
        self.times.append(np.nan)
        self.told.append(float(time))
        self.spans.append((np.nan, np.nan))

    def _add(self, rows: Mapping[str, Row], levels: Mapping[str, Any], entry: Key | None) -> None:
        count = len(self.made)
        rows = dict(rows)
        if Y in rows and rows[Y] != rows[X]:
            self.apart = True
        rows.setdefault(Y, rows[X])
        if entry is not None:
            self.made[entry] = count

        def column(key: Key) -> str:
            if isinstance(key, str):
                return key
            return NEW if key == entry else entry_column(count - self.made[key])

        named = {r: {column(k): w for k, w in row.items() if w} for r, row in rows.items()}
        self.stages.append(named)
        self.standing = {**self.standing, **levels}
        if Y not in levels and rows[Y] == rows[X]:
            self.standing[Y] = self.standing[X]
        self.levels.append(dict(self.standing))

    def plan(self, name: str, **fields: Any) -> Plan:
        """Returns the plan; further fields of `Plan` replace those of the inner plan."""
        dropped = set() if self.apart else {Y}
        written = {name for rows in self.stages for name, row in rows.items() if row} - dropped
        names = tuple(n for n in ROWS if n in written)
        stages = [{n: row for n, row in rows.items() if n in written} for rows in self.stages]
        if dropped:
            stages = [{n: _on_x(row) for n, row in rows.items()} for rows in stages]
        used = set().union(*[row for rows in stages for row in rows.values()])
        columns = tuple(sorted(used | (written - {H}), key=column_key))
        matrix = np.zeros((len(stages), len(names), len(columns)))
        levels = np.full((len(stages), len(names), 2), np.nan)
        for i, rows in enumerate(stages):
            for r, register in enumerate(names):
                for key, weight in rows.get(register, {}).items():
                    matrix[i, r, columns.index(key)] += weight
                if register != H and register in self.levels[i]:
                    levels[i, r] = self.levels[i][register]
        source = self.source
        own = {"start": source.start, "end": source.end, "check": source.check}
        own |= {"steps": source.steps, "spans": self.spans, "times": self.times}
        return Plan(
            schedule=source.schedule,
            name=name,
            rows=names,
            columns=columns,
            matrix=matrix,
            levels=levels,
            gradients=np.array(self.told),
            **(own | fields),
        )


def _levels(schedule: Any):
    return schedule.alpha, schedule.sigma


def _on_x(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the row with x in place of y, where the two are always one."""
    found: dict[str, float] = {}
    for column, weight in row.items():
        column = X if column == Y else column
        found[column] = found.get(column, 0.0) + weight
    return found


def summed(row: Row, other: Row, factor: float) -> Weights:
    """Returns row + factor * other."""
    found: Weights = dict(row)
    for key, weight in other.items():
        found[key] = found.get(key, 0.0) + factor * weight
    return found
