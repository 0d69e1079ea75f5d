"""The registers of a stage, and how rows written by name become a plan's matrices.

A stage is one matrix. Its columns are what a row may weigh, its rows are what the stage writes:

    column      what it holds when the stage begins                               written by row
    y           the step's state, where it is another tensor than x               y
    v           a momentum of unit mass                                           v
    x           what the network was called on                                    x
    h0          the entry that this stage's own row h makes                       h
    h1 .. hH    entries of earlier stages, newest first                           -
    d           the x0 estimate for x, after a clamp or a hook                    -
    d_raw       the x0 estimate for x as the network gave it                      -
    g1, g2 ..   gradients of guidance terms at x                                  -
    z1, z2      two independent fresh normals, N(0, I)                            -

Row "error" is an embedded error estimate, written as the error itself. All rows of a stage see the
same columns: nothing is overwritten before every row is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffast.plan.plan import Plan

X, Y, V, H, D, D_RAW, ERROR = "x", "y", "v", "h", "d", "d_raw", "error"
Z1, Z2 = "z1", "z2"
NEW = "h0"  # the entry that the stage itself makes

# Rows in the order in which a plan holds them: an entry first, since the others may weigh it.
ROWS = (H, Y, V, X, ERROR)

# Levels that are no model time: (alpha, sigma) of an x0 estimate and of a momentum.
X0_LEVEL, MOMENTUM_LEVEL, ERROR_LEVEL = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)

_COLUMN = re.compile(r"y|v|x|h\d+|d|d_raw|g[1-9]\d*|z1|z2")
_ENTRIES = tuple(f"h{age}" for age in range(64))
_FIXED = {"y": 0, "v": 1, "x": 2, "d": 4, "d_raw": 5, "z1": 7, "z2": 8}

Row = Mapping[str, Any]


@cache
def column_key(name: str) -> tuple[int, int]:
    """Returns what columns are sorted by.

    Raises:
        ValueError: a name that is no column.
    """
    if not _COLUMN.fullmatch(name):
        raise ValueError(
            f"plan: a row weighs {name!r}, but the columns are y, v, x, h0, h1 .., d, d_raw, "
            "g1 .., z1 and z2"
        )
    if name in _FIXED:
        return _FIXED[name], 0
    return (3 if name[0] == "h" else 6), int(name[1:])


def entry_column(age: int) -> str:
    """Returns the column of the entry that was made `age` stages with entries ago."""
    return _ENTRIES[age] if age < len(_ENTRIES) else f"h{age}"


def pack(rows: Mapping[str, Row], stages: int) -> tuple[tuple, tuple, np.ndarray]:
    """Returns (row names, column names, matrix [S, R, C]) of rows {register: {column: weight}}.

    Args:
        rows: a weight is a number or an array [S].
        stages: S.
    """
    names = tuple(name for name in ROWS if name in rows)
    used = {column for row in rows.values() for column in row}
    # A register that is written can be read, and keeps its value by a weight of 1 on itself.
    used |= {name for name in names if name in (X, Y, V)}
    columns = tuple(sorted(used, key=column_key))
    matrix = np.zeros((stages, len(names), len(columns)))
    for r, name in enumerate(names):
        for column, weight in rows[name].items():
            matrix[:, r, columns.index(column)] = weight
    return names, columns, matrix


def levels_of(schedule: Any, times: Any) -> np.ndarray:
    """Returns (alpha, sigma) at model times, [..., 2] float64."""
    times = np.asarray(times, dtype=np.float64)
    pair = (np.asarray(level(times), np.float64) for level in (schedule.alpha, schedule.sigma))
    return np.stack([np.broadcast_to(level, times.shape) for level in pair], axis=-1)


def one_call_plan(
    name: str,
    schedule: Any,
    grid: np.ndarray,
    x: Row,
    *,
    h: Row | None = None,
    y: Row | None = None,
    y_at: tuple[float, float] | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of a method with one network call a step; weights are numbers or arrays [N].

    Args:
        name: what people call it.
        schedule: any schedule.
        grid: [N+1] model times, checked.
        x: row of the next x.
        h: row of the entry; None: {"d": 1} where x weighs entries.
        y: row of the step's state, where it is no x.
        y_at: the (alpha, sigma) that y holds.
        options: further fields of `Plan`.
    """
    from diffast.plan.plan import Plan

    if h is None and any(column[0] == "h" for column in x):
        h = {D: 1.0}
    rows = {name: row for name, row in ((H, h), (Y, y), (X, x)) if row is not None}
    names, columns, matrix = pack(rows, len(grid) - 1)
    levels = np.full((len(grid) - 1, len(names), 2), np.nan)
    levels[:, names.index(X)] = levels_of(schedule, grid[1:])
    if y is not None:
        levels[:, names.index(Y)] = y_at
    fields = {"times": grid[:-1], "end": grid[-1], "steps": len(grid) - 1, "name": name} | options
    return Plan(
        schedule=schedule, rows=names, columns=columns, matrix=matrix, levels=levels, **fields
    )


class Stages:
    """A plan's stages as they are added one after another, rows written by name.

    Args:
        schedule: any schedule.
        start: model time of the initial state, which x and y hold at first.
    """

    def __init__(self, schedule: Any, start: float):
        """Begins without a stage."""
        self.schedule, self.start = schedule, float(start)
        self.times: list[float] = []
        self.written: list[dict[str, Row]] = []
        self.stands: list[dict[str, Any]] = []  # register -> model time or (alpha, sigma)
        self.spans: list[tuple[float, float] | None] = []
        self.end = self.start

    def __len__(self) -> int:
        """Returns how many stages there are."""
        return len(self.times)

    def add(
        self,
        time: float | None,
        to: float,
        x: Row,
        *,
        y: Row | str = X,
        y_at: Any = None,
        h: Row | None = None,
        v: Row | str | None = None,
        error: Row | None = None,
        span: tuple[float, float] | None = None,
    ) -> None:
        """Adds a stage.

        Args:
            time: model time of the network call; None: the stage calls no network.
            to: model time at which x stands after it.
            x: row of x.
            y: row of y; "x": y becomes the same tensor as x; "keep": y stays.
            y_at: where a row y stands: a model time, or (alpha, sigma).
            h: row of the new entry; None: {"d": 1} if any stage of the plan weighs entries.
            v: row of the momentum; "keep"; None: no momentum is held after the stage.
            error: row of the error estimate.
            span: model times (from, to) of the Brownian increment that z1 stands for.
        """
        if y == "keep":
            at = self.stands[-1][Y] if self.stands else self.start
        else:
            at = to if y == X else y_at
        written: dict[str, Any] = {X: x, Y: y, V: v, H: h, ERROR: error}
        self.times.append(np.nan if time is None else float(time))
        self.written.append(written)
        self.stands.append({X: to, Y: at, V: MOMENTUM_LEVEL, ERROR: ERROR_LEVEL})
        self.spans.append(span)
        self.end = float(to)

    def plan(self, name: str, steps: int, **options: Any) -> Plan:
        """Returns the plan of all stages.

        Args:
            name: what people call it.
            steps: number of grid intervals.
            options: further fields of `Plan`.
        """
        from diffast.plan.plan import Plan

        rows = self._rows()
        names = tuple(name for name in ROWS if name in rows)
        used = {name for name in names if name in (X, Y, V)}
        used.update(*(stage for row in rows.values() for stage in row))
        columns = tuple(sorted(used, key=column_key))
        stages, width = len(self.times), len(columns)
        index = {column: k for k, column in enumerate(columns)}
        places, weights = [], []
        for r, register in enumerate(names):
            for i, row in enumerate(rows[register]):
                first = (i * len(names) + r) * width
                places += [first + index[column] for column in row]
                weights += row.values()
        matrix = np.zeros((stages, len(names), width))
        matrix.reshape(-1)[places] = weights
        levels = np.full((stages, len(names), 2), np.nan)
        for r, register in enumerate(names):
            if register != H:
                levels[:, r] = self._levels(register)
        spans = None
        if any(span is not None for span in self.spans):
            spans = [(np.nan, np.nan) if span is None else span for span in self.spans]
        fields = {"times": self.times, "end": self.end, "start": self.start, "spans": spans}
        return Plan(
            schedule=self.schedule,
            rows=names,
            columns=columns,
            matrix=matrix,
            levels=levels,
            name=name,
            steps=steps,
            **(fields | options),
        )

    def _rows(self) -> dict[str, list[Row]]:
        """Returns the rows of every written register, stage by stage; y only if it ever parts."""
        apart = any(stage[Y] != X for stage in self.written)
        rows: dict[str, list[Row]] = {X: [stage[X] for stage in self.written]}
        if apart:
            rows[Y] = [self._settled(stage, Y) for stage in self.written]
        else:
            rows[X] = [_without_y(row) for row in rows[X]]
        if any(stage[V] is not None for stage in self.written):
            rows[V] = [self._settled(stage, V) for stage in self.written]
        if any(stage[ERROR] is not None for stage in self.written):
            rows[ERROR] = [stage[ERROR] or {} for stage in self.written]
        columns = set().union(*(stage for row in rows.values() for stage in row))
        entries = {column for column in columns if column[0] == "h"}
        given = any(stage[H] is not None for stage in self.written)
        if not given and entries == {NEW}:  # nothing is remembered
            rows = {name: [_renamed(stage, NEW, D) for stage in row] for name, row in rows.items()}
        elif given or entries:
            rows[H] = [
                {D: 1.0} if stage[H] is None and time == time else stage[H] or {}
                for stage, time in zip(self.written, self.times, strict=True)
            ]
            if not apart:
                rows[H] = [_without_y(row) for row in rows[H]]
        return rows

    @staticmethod
    def _settled(stage: dict[str, Any], register: str) -> Row:
        row = stage[register]
        if row is None:
            return {}
        if isinstance(row, str):
            return stage[X] if row == X else {register: 1.0}
        return row

    def _levels(self, register: str) -> np.ndarray:
        stands = [stage[register] for stage in self.stands]
        pairs = [i for i, level in enumerate(stands) if isinstance(level, (tuple, list))]
        if not pairs:
            return levels_of(self.schedule, stands)
        found = np.empty((len(stands), 2))
        found[pairs] = [stands[i] for i in pairs]
        timed = sorted({*range(len(stands))} - {*pairs})
        if timed:
            found[timed] = levels_of(self.schedule, [stands[i] for i in timed])
        return found


def _without_y(row: Row) -> Row:
    return _renamed(row, Y, X)


def _renamed(row: Row, old: str, new: str) -> Row:
    """Returns the row with the weight of `old` added to that of `new`."""
    if old not in row:
        return row
    row = dict(row)
    weight = row.pop(old)
    row[new] = row[new] + weight if new in row else weight
    return row


def entries(weights: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Returns the part of a row that weighs entries, newest first, of weights [N, n] or [n].

    Args:
        weights: of the entries h{first}, h{first + 1} ...
        first: age of the first one; 0 is the stage's own entry.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim == 1:
        weights = weights.tolist()
        return {entry_column(first + k): weight for k, weight in enumerate(weights)}
    return {entry_column(first + k): weights[..., k] for k in range(weights.shape[-1])}
