"""An embedded solver on a fixed grid: the rows of every network call, in order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.plans.registers import X0_LEVEL, Z1, D, H, X, Y, entry_column
from diffast.solvers.core.noise_split import diffusive
from diffast.solvers.embedded.solver import EmbeddedSolver, Row, Step
from diffast.solvers.embedded.time_variable import TimeVariable


class GridStep(Step):
    """Steps of a grid, all at once: the numbers of `Step` from the levels of both ends."""

    @cached_property
    def h(self) -> Any:
        """Returns the steps in log-SNR; inf out of alpha = 0 and into sigma = 0."""
        start, end = self.start, self.end
        return np.log(end.alpha / start.alpha) - np.log(end.sigma / start.sigma)

    @cached_property
    def sde_split(self) -> tuple[Any, Any, Any]:
        """Returns (keep, pull, fresh), finite on every grid."""
        start, end = self.start, self.end
        down, up = diffusive(start.alpha, end.alpha, start.sigma, end.sigma, 1.0)
        keep = down / start.sigma
        return keep, end.alpha - start.alpha * keep, up


class GridCall(NamedTuple):
    """A network call of a grid and what follows it.

    Attributes:
        time: model time of the call.
        rows: {register: {column: weight}}, weights are floats. Columns: x (the network input), d,
            y, z1, and h1, h2, ..., the earlier entries, newest first. Registers: x (the next
            network input; after the last call the sample), h (the call's entry), y (the state at
            the start of the step, where a later call of the step needs it beside x). A register
            without a row keeps what it holds.
        span: the model times between which z1 is the noise of the path, or None without z1.
    """

    time: float
    rows: dict[str, Row]
    span: tuple[float, float] | None


def on_grid_rows(solver: EmbeddedSolver, schedule: Any, grid: Any) -> Iterator[GridCall]:
    """Yields the network calls of a solver that accepts every step of a grid.

    The rows after a call are composed with the row of the next network input, so each call has one
    set of rows over what is held when it is made. Rows that judge a step, and registers that
    nothing but a tolerance reads, are left out.

    The step into sigma = 0 ends at the last x0 estimate. The step out of alpha = 0 is Euler's where
    the solver does not start at noise alone. A solver with `reuses_last_call` makes no call at the
    end of the grid: the sample is what that call would be given.

    Args:
        solver: any embedded solver.
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.

    Raises:
        ValueError: a grid that `check_grid` refuses.
    """
    walk = _GridWalk(solver, schedule, check_grid(schedule, grid))
    made: list[str] = []  # the entries by name, newest first
    for n, call in walk.sequence():
        after = walk.after(n, call)
        following, source = walk.following(n, call)
        rows = {X: _composed(following, after)}
        if walk.keeps_state(n, call):
            rows[Y] = after[Y]
        entry = next((name for name in after if name.startswith("h")), None)
        if entry is not None:
            rows[H] = after[entry]
        rows = {name: _by_age(row, made) for name, row in rows.items()}
        if entry is not None:
            made.insert(0, entry)
        span = tuple(walk.grid[source : source + 2].tolist()) if Z1 in rows[X] else None
        yield GridCall(walk.time(n, call), rows, span)


def on_grid(solver: EmbeddedSolver, schedule: Any, grid: Any, **fields: Any) -> Plan:
    """Returns the plan of a solver that accepts every step of a grid.

    An x0 estimate that only the following call reads is the plan's y, not an entry. The plan of a
    solver whose rows are not `consistent` is checked for finite numbers alone.

    Args:
        solver: any embedded solver.
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        fields: further fields of `Plan`.

    Raises:
        ValueError: another kind of solver; a grid that `check_grid` refuses.
    """
    if not isinstance(solver, EmbeddedSolver):
        raise ValueError(
            f"on_grid: solver is a {type(solver).__name__} but must be an EmbeddedSolver, such as "
            "df.embedded.PEC()"
        )
    grid = check_grid(schedule, grid)
    fields = {"check": "full" if solver.consistent else "finite"} | fields
    calls = list(on_grid_rows(solver, schedule, grid))
    read = {column for call in calls for row in call.rows.values() for column in row}
    estimate = type(solver).entry is EmbeddedSolver.entry
    alone = estimate and "h1" in read and "h2" not in read and Y not in read
    states: list[Any] = ["keep"] * len(calls)
    for i, call in enumerate(calls):
        if alone:
            states[i] = _renamed(call.rows.get(H, {}), "h1", Y) or "keep"
        elif call.rows.get(Y) == {X: 1.0}:  # y is x from the call before on
            states[i - 1 if i else 0] = "x" if i else "keep"
        elif Y in call.rows:
            states[i] = call.rows[Y]
    stages = Stages(schedule, grid[0])
    times = [*(call.time for call in calls[1:]), float(grid[-1])]
    for call, to, y in zip(calls, times, states, strict=True):
        x, h = call.rows[X], call.rows.get(H)
        if alone:
            stages.add(call.time, to, _renamed(x, "h1", Y), y=y, y_at=X0_LEVEL, span=call.span)
        else:
            stages.add(call.time, to, x, y=y, y_at=call.time, h=h, span=call.span)
    return stages.plan(solver.name, len(grid) - 1, **fields)


def _renamed(row: Row, old: str, new: str) -> Row:
    return {new if name == old else name: weight for name, weight in row.items()}


class _GridWalk:
    """The calls (n, k) of a grid: call k of step n. Steps are regular, or have one call."""

    def __init__(self, solver: EmbeddedSolver, schedule: Any, grid: np.ndarray):
        self.solver, self.grid, self.steps = solver, grid, len(grid) - 1
        self.alpha, self.sigma = schedule.alpha(grid), schedule.sigma(grid)
        self.regular = self.sigma[1:] > 0.0
        if not solver.starts_at_noise:
            self.regular &= self.alpha[:-1] > 0.0
        self.place = np.cumsum(self.regular) - 1  # of a regular step among those
        variable = TimeVariable(schedule, solver.time_variable, solver.needs_slopes)
        with np.errstate(all="ignore"):
            self._make_tables(variable)

    def _make_tables(self, variable: TimeVariable) -> None:
        """Computes the rows of all regular steps, arrays [steps], and the times of their calls."""
        solver = self.solver
        start, end = (variable.nodes_at(t[self.regular]) for t in (self.grid[:-1], self.grid[1:]))
        reach = solver.reach(np, start.position, end.position)
        self.times, self.before, self.rows = [], [], []
        for k, part in enumerate((0.0, *solver.fractions)):
            if k == 0 or (part == 1.0 and reach is end.position):
                node = end if k else start
            else:
                there = reach if part == 1.0 else start.position + part * (reach - start.position)
                node = variable.nodes(there)
            step = GridStep(np, start, end, node)
            self.times.append(node.time)
            self.before.append(solver.rows_before(step, k)[X])
            self.rows.append(solver.rows_after(step, k))
        held = [row for name, row in self.rows[-1].items() if name == Y or name in solver.entries]
        # Whether calls after the first of a step read its state.
        self.reads_state = any(Y in row for row in (*self.before[2:], *held))

    def sequence(self) -> list[tuple[int, int]]:
        """Returns the calls in order."""
        found, fresh, reuses = [], True, self.solver.reuses_last_call
        for n, regular in enumerate(self.regular):
            if fresh or not reuses:
                found.append((n, 0))
            if regular:
                found += [(n, k) for k in range(1, self.solver.calls + 1)]
            fresh = not regular
        if reuses and self.regular[-1]:
            found.pop()
        return found

    def time(self, n: int, call: int) -> float:
        """Returns the model time of a call."""
        return float(self.grid[n] if call == 0 else self.times[call][self.place[n]])

    def after(self, n: int, call: int) -> dict[str, Row]:
        """Returns the rows of the state and the entry after a call, of floats."""
        state = {Y: {X: 1.0}} if call == 0 else {}
        if not self.regular[n]:
            return state
        names = (Y, *self.solver.entries)
        rows = {name: row for name, row in self.rows[call].items() if name in names}
        return state | {name: self._floats(row, n) for name, row in rows.items()}

    def following(self, n: int, call: int) -> tuple[Row, int]:
        """Returns the row of the next network input over what is held then, and z1's step."""
        solver = self.solver
        if self.regular[n] and call < solver.calls:
            return self._floats(self.before[call + 1], n), n
        if self.regular[n] and (n + 1 == self.steps or not solver.reuses_last_call):
            return {Y: 1.0}, n
        to = n + 1 if self.regular[n] else n
        if self.regular[to]:
            return self._floats(self.before[1], to), to
        if self.sigma[to + 1] == 0.0:
            return {D: 1.0}, to
        keep = self.sigma[to + 1] / self.sigma[to]
        return {X: float(keep), D: float(self.alpha[to + 1])}, to

    def keeps_state(self, n: int, call: int) -> bool:
        """Returns whether the call stands at a state that later calls read."""
        if call == 0:
            return self.reads_state and bool(self.regular[n])
        at_state = call == self.solver.calls and self.solver.reuses_last_call
        more = at_state and n + 1 < self.steps and self.regular[n + 1]
        return self.reads_state and bool(more)

    def _floats(self, row: Row, n: int) -> Row:
        place = self.place[n]
        return {c: float(w[place] if np.ndim(w) else w) for c, w in row.items()}


def _composed(row: Row, written: dict[str, Row]) -> Row:
    """Returns a row over registers after some were written as a row over those before."""
    total: Row = {}
    for name, weight in row.items():
        for column, part in written.get(name, {name: 1.0}).items():
            value = weight * part
            total[column] = total[column] + value if column in total else value
    return total


def _by_age(row: Row, made: list[str]) -> Row:
    """Returns the row with entries named by their age: h1 is the newest."""
    return {entry_column(made.index(c) + 1) if c in made else c: w for c, w in row.items()}
