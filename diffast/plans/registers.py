"""The registers of a stage, and how rows written by name become a plan's matrices.

A stage is one matrix. Its columns are what a row may weigh, its rows are what the stage writes:

    column      what it holds when the stage begins                               written by row
    y           the step's state, where it is another tensor than x               y
    v           a momentum of unit mass                                           v
    x           what the network was called on                                    x
    x2 ..       further inputs, for stages that call the network on several       x2 ..
    h0          the entry that this stage's own row h makes                       h
    h1 .. hH    entries of earlier stages, newest first                           -
    d           the x0 estimate for x, after a clamp or a hook                    -
    d_raw       the x0 estimate for x as the network gave it                      -
    d_cond      that of the conditional branch alone, without guidance            -
    d_uncond    that of the unconditional branch alone                            -
    d2 ..       the estimates for x2 .., and d2_raw, d2_cond .. likewise          -
    g1, g2 ..   gradients of guidance terms at x                                  -
    z1, z2      two independent fresh normals, N(0, I)                            -

Row "error" is an embedded error estimate, written as the error itself. All rows of a stage see the
same columns: nothing is overwritten before every row is done.

g1 is the gradient in x of a log-density, such as that of a label given x, without its scale. A plan
that weighs g1 alone has all guidance terms of the denoiser there, each times its own scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffast.plans.plan import Plan

X, Y, V, H, D, D_RAW, ERROR = "x", "y", "v", "h", "d", "d_raw", "error"
D_COND, D_UNCOND, G = "d_cond", "d_uncond", "g1"
X2 = "x2"
Z1, Z2 = "z1", "z2"
NEW = "h0"  # the entry that the stage itself makes

# Rows in the order in which a plan holds them: an entry first, since the others may weigh it.
ROWS = (H, Y, V, "x2", "x3", "x4", X, ERROR)

# Levels that are no model time: (alpha, sigma) of an x0 estimate and of a momentum.
X0_LEVEL, MOMENTUM_LEVEL, ERROR_LEVEL = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)

_COLUMN = re.compile(r"(y|v|x[2-4]?|h(0|[1-9][0-9]*)|d[2-4]?(_raw|_cond|_uncond)?|g[1-9]|z1|z2)")
# Groups of columns in their order; numbers sort within a group.
_ENTRIES = tuple(f"h{age}" for age in range(64))
_GROUPS = {"y": 0, "v": 1, "x": 2, "h": 3, "d": 4, "d_raw": 5, "g": 6, "z": 7}
_GROUPS |= {"d_cond": 5.25, "d_uncond": 5.5}

Row = Mapping[str, Any]


@cache
def column_key(name: str) -> tuple[float, int]:
    """Returns what columns are sorted by.

    Raises:
        ValueError: a name that is no column.
    """
    if not _COLUMN.fullmatch(name):
        raise ValueError(
            f"plan: a row weighs {name!r}, but the columns are y, v, x, x2 .., h0, h1 .., d, d2 "
            ".., d_raw, d_cond, d_uncond, d2_raw .., g1 .. g9, z1 and z2"
        )
    number, _, kind = name[1:].partition("_")
    return _GROUPS[name[0] + (f"_{kind}" if kind else "")], int(number or 0)


def input_register(number: int) -> str:
    """Returns the register of a stage's input, by its number from 0: x, x2, x3 .."""
    return X if not number else f"x{number + 1}"


@cache
def input_number(register: str) -> int:
    """Returns the number of the input that x, x2 .. or one of its estimates d, d2_raw .. is for."""
    return int(register[1:].partition("_")[0] or 1) - 1


def entry_column(age: int) -> str:
    """Returns the column of the entry that was made `age` stages with entries ago."""
    return _ENTRIES[age] if age < len(_ENTRIES) else f"h{age}"


def pack(rows: Mapping[str, Row], stages: int) -> tuple[tuple, tuple, np.ndarray]:
    """Returns (row names, column names, matrix [S, R, C]) of rows {register: {column: weight}}.

    A weight is a number or an array [S].
    """
    names, columns = _names([rows])
    matrix = np.zeros((stages, len(names), len(columns)))
    for r, name in enumerate(names):
        for column, weight in rows[name].items():
            matrix[:, r, columns.index(column)] = weight
    return names, columns, matrix


def _names(stages: Sequence[Mapping[str, Row]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the rows of all stages, and of the columns that these weigh."""
    written = set().union(*stages)
    used = set().union(*[row for rows in stages for row in rows.values()])
    # A register that is written can be read, and keeps its value by a weight of 1 on itself.
    used |= written - {H, ERROR}
    return tuple(n for n in ROWS if n in written), tuple(sorted(used, key=column_key))


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

    The grid is [N+1] model times, checked. x, h and y are rows. Without h it is {"d": 1} where x
    weighs entries. y holds the (alpha, sigma) `y_at`. Options are further fields of `Plan`.
    """
    from diffast.plans.plan import Plan

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
    """A plan's stages as they are added one after another, rows written by name."""

    def __init__(self, schedule: Any, start: float):
        """Begins without a stage; x and y hold the initial state, at the model time `start`."""
        self.schedule, self.start = schedule, float(start)
        self.times: list[float | tuple[float, ...]] = []
        self.gradients: list[float] = []
        self.rows: list[dict[str, Any]] = []
        self.stands: list[dict[str, Any]] = []  # register -> model time or (alpha, sigma)
        self.spans: list[tuple[float, float]] = []
        self.end = self.start
        self.apart = False  # whether y is ever another tensor than x

    def __len__(self) -> int:
        """Returns how many stages there are."""
        return len(self.times)

    def add(
        self,
        time: float | tuple[float, ...] | None,
        to: float,
        x: Row,
        *,
        y: Row | str = X,
        y_at: Any = None,
        h: Row | None = None,
        v: Row | str | None = None,
        v_at: tuple[float, float] = MOMENTUM_LEVEL,
        x2: Row | None = None,
        x2_at: float | None = None,
        error: Row | None = None,
        span: tuple[float, float] | None = None,
        gradient: float | None = None,
    ) -> None:
        """Adds a stage.

        Args:
            time: model time of the network call; None: the stage calls no network; (t, t2): it
                calls the network on x and x2 at once.
            to: model time at which x stands after it.
            x: row of x.
            y: row of y; "x": y becomes the same tensor as x; "keep": y stays.
            y_at: where a row y stands: a model time, or (alpha, sigma).
            h: row of the new entry; None: {"d": 1} if any stage of the plan weighs entries.
            v: row of the momentum; "keep"; None: no momentum is held after the stage.
            v_at: the (alpha, sigma) that v holds: (0, 0) where v keeps a gradient.
            x2: row of a second input of the next call.
            x2_at: model time at which x2 stands.
            error: row of the error estimate.
            span: model times (from, to) of the Brownian increment that z1 stands for.
            gradient: model time that the guidance gradients at x are told; None: the time of the
                call, if a row weighs a gradient. A stage may evaluate gradients and no network.
        """
        rows = {X: x, Y: y, V: v, H: h, X2: x2, ERROR: error}
        rows = {name: row for name, row in rows.items() if row is not None}
        at = self.stands[-1][Y] if y == "keep" and self.stands else self.start
        at = to if y == X else at if y == "keep" else y_at
        self.apart |= y != X
        for name in (Y, V):
            if rows.get(name) == "keep":
                rows[name] = {name: 1.0}
        if y == X:
            rows[Y] = x
        self.times.append(np.nan if time is None else time)
        self.gradients.append(np.nan if gradient is None else gradient)
        self.rows.append(rows)
        x2_at = to if x2_at is None else x2_at
        self.stands.append({X: to, Y: at, V: v_at, X2: x2_at, ERROR: ERROR_LEVEL})
        self.spans.append(span or (np.nan, np.nan))
        self.end = float(to)

    def plan(self, name: str, steps: int, **options: Any) -> Plan:
        """Returns the plan of all stages, of so many grid intervals; options are fields of it."""
        from diffast.plans.plan import Plan

        stages = self._settled()
        names, columns = _names(stages)
        levels = np.full((len(stages), len(names), 2), np.nan)
        for r, register in enumerate(names):
            if register != H:
                levels[:, r] = self._levels(register)
        fields = {
            "times": self._times(),
            "start": self.start,
            "end": self.end,
            "spans": self.spans,
            "gradients": self.gradients,
            "rows": names,
            "columns": columns,
            "matrix": _matrix(stages, names, columns),
            "levels": levels,
        }
        return Plan(schedule=self.schedule, name=name, steps=steps, **(fields | options))

    def _settled(self) -> list[dict[str, Row]]:
        """Returns the rows of each stage: y only if it ever parts from x, h only if it is read."""
        read = set().union(*[row for rows in self.rows for row in rows.values()])
        read = {column for column in read if column[0] == "h"}
        remembers = any(H in rows for rows in self.rows) or read - {NEW}
        names = ({} if self.apart else {Y: X}) | ({NEW: D} if not remembers else {})
        stages = []
        for rows, time in zip(self.rows, self.times, strict=True):
            if remembers and H not in rows and time == time:  # no silent stage
                rows = rows | {H: {D: 1.0}}
            if names:
                kept = {name: row for name, row in rows.items() if self.apart or name != Y}
                rows = {name: _renamed(row, names) for name, row in kept.items()}
            stages.append(rows)
        return stages

    def _times(self) -> np.ndarray:
        """Returns the times as a plan holds them, [S] or [S, E]."""
        inputs = max(len(t) if isinstance(t, tuple) else 1 for t in self.times)
        if inputs == 1:
            return np.array(self.times, dtype=np.float64).reshape(-1)
        times = np.full((len(self.times), inputs), np.nan)
        for i, time in enumerate(self.times):
            times[i, : np.size(time)] = time
        return times

    def _levels(self, register: str) -> np.ndarray:
        stands = [stage[register] for stage in self.stands]
        pairs = [i for i, level in enumerate(stands) if isinstance(level, tuple)]
        if not pairs:
            return levels_of(self.schedule, stands)
        found = np.empty((len(stands), 2))
        found[pairs] = [stands[i] for i in pairs]
        timed = sorted({*range(len(stands))} - {*pairs})
        if timed:
            found[timed] = levels_of(self.schedule, [stands[i] for i in timed])
        return found


def _matrix(stages: list[dict[str, Row]], names: tuple, columns: tuple) -> np.ndarray:
    """Returns the matrix [S, R, C] of rows by name."""
    index = {column: k for k, column in enumerate(columns)}
    places, weights = [], []
    for i, rows in enumerate(stages):
        for r, register in enumerate(names):
            row, first = rows.get(register, {}), (i * len(names) + r) * len(columns)
            places += [first + index[column] for column in row]
            weights += row.values()
    matrix = np.zeros(len(stages) * len(names) * len(columns))
    matrix[places] = weights
    return matrix.reshape(len(stages), len(names), len(columns))


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    """Returns the row with other columns; weights that then fall together are added."""
    if names.keys().isdisjoint(row):
        return row
    renamed: dict[str, Any] = {}
    for column, weight in sorted(row.items(), key=lambda item: item[0] in names):
        column = names.get(column, column)
        renamed[column] = renamed[column] + weight if column in renamed else weight
    return renamed


def entries(weights: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    """Returns the part of a row that weighs entries, newest first, of weights [N, n] or [n].

    They are those of h{first}, h{first + 1} ..; h0 is the stage's own entry.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim == 1:
        return {entry_column(first + k): weight for k, weight in enumerate(weights.tolist())}
    return {entry_column(first + k): weights[..., k] for k in range(weights.shape[-1])}
