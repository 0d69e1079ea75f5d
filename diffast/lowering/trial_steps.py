"""Trial steps of an embedded solver as tables of weights, every sample with its own.

An embedded solver's rows name registers. `lower_trial` settles once which tensors a run needs and
which tensor is moved where after a trial step. In every round the program then makes two tables:

    input table    for the network inputs: the noise z1 is written out over the Brownian path
    settle table   for what follows the answer: the estimate d is written out over the network's
                   input and answers (prediction type, guidance, clamp, hook)

Rows of samples at different calls are put into one table [B, rows, columns].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.lowering.estimate import COND, UNCOND, X0, estimate_row, written_out
from diffast.plan.registers import ERROR, Z1, X, Y
from diffast.solvers.embedded import EmbeddedSolver, Node, Step
from diffast.solvers.embedded.bridge import HELD, NEW, bridge
from diffast.solvers.embedded.solver import DRAWN, JUDGED, NEW_SIZE, SIZE, Row

# The path's increment, where a caller draws it as a tensor.
NOISE = "noise"

# The calls that samples may be at: (number, mask [B]); the mask is None where it is all samples.
Stages = list[tuple[int, Any]]


class TrialNoise(NamedTuple):
    """Where the noise of trial steps comes from.

    Attributes:
        kind: "fresh", "bridge", "path" or "none".
        rejected: number of rejected points that a sample remembers (of "bridge").
    """

    kind: str
    rejected: int

    @property
    def holds(self) -> bool:
        """Returns whether the path's value is held from trial step to trial step."""
        return self.kind in ("bridge", "path")


class Table(NamedTuple):
    """A table for `combine_table` or `combine_error`.

    Attributes:
        columns: names of the tensors it weighs.
        weights: [B, rows, columns] float64.
        noise: [B, rows, 1] float64 weights of fresh normals, or None.
    """

    columns: tuple[str, ...]
    weights: torch.Tensor
    noise: torch.Tensor | None


class SettleTable(NamedTuple):
    """A table for `combine_error`: the proposals, then the error, the sizes and the drawn noise.

    Attributes:
        table: the weights.
        tolerance: [B, 2] float64 (atol, rtol).
        measured: whether the last row is the drawn noise.
    """

    table: Table
    tolerance: torch.Tensor
    measured: bool


@dataclass(frozen=True)
class TrialProgram:
    """What a run of an embedded solver binds to tensors.

    Attributes:
        prediction: gives `weights`, the x0 estimate from input and answer at a node.
        hook, clamp: whether a hook sees the x0 estimate, as a tensor of its own; whether it is
            clamped.
        held: names of the tensors that go with a sample from trial step to trial step.
        proposals: names of the tensors that a settle table writes.
        sources: names of the tensors that accepted rows are copied from.
        passing: names of the tensors that are made anew in every round, sources among them.
        moves: (call, source, target) by number in `sources` and `held`, three by three.
        memory: (source, targets ...): what a rejected step drew and where it is remembered.
    """

    solver: EmbeddedSolver
    prediction: Any
    noise: TrialNoise
    hook: bool
    clamp: bool
    held: tuple[str, ...]
    proposals: tuple[str, ...]
    sources: tuple[str, ...]
    passing: tuple[str, ...]
    moves: list[int]
    memory: list[int]

    @cached_property
    def rejected(self) -> tuple[str, ...]:
        """Returns the names of the remembered points."""
        return _rejected_names(self.noise)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Returns the names of all tensors that rows may weigh, in the order of the sums."""
        solver = self.solver
        held = (Y, *solver.carried, *solver.entries)
        return (*held, X, COND, UNCOND, X0, HELD, NEW, *self.rejected, NOISE)

    def input_table(self, step: Step, stages: Stages, rejected: dict, copies: int) -> Table:
        """Returns the table of the network inputs and, with a bridge, of the path's new values.

        A network input is written to several tensors, `copies`. The positions of remembered points,
        [B] by name, are inf where there is none.
        """
        parts = []
        for call, mask in stages:
            row, value = self.input_rows(step, call, rejected)
            parts.append((mask, [row] * copies + [value] * (self.noise.kind == "bridge")))
        return _assemble(step, parts, self.order)

    def input_rows(self, step: Step, call: int, rejected: dict) -> tuple[Row, Row]:
        """Returns the rows of the network input of a call and of the path's value at the end.

        The column z1 in them is a fresh normal number.
        """
        row = dict(self.solver.rows_before(step, call)[X])
        if not self.noise.holds or Z1 not in row:
            return row, {HELD: 1.0}
        weight = row.pop(Z1)
        if self.noise.kind == "path":
            return row | {NOISE: weight}, {}
        variable = "time" if self.solver.time_variable == "time" else "lam"
        drawn = bridge(step.xp, variable, step.start.position, step.end.position, rejected)
        on_new = weight * drawn.noise[NEW]
        row |= {name: on_new * part for name, part in drawn.value.items()}
        row[HELD] = row[HELD] + weight * drawn.noise[HELD]
        return row | {Z1: on_new * drawn.fresh}, drawn.value | {Z1: drawn.fresh}

    def estimate_table(self, step: Step, scale: Any) -> Table:
        """Returns the table of the x0 estimate alone; with a clamp its last column is 0."""
        table = _assemble(step, [(None, [self._estimate(step, scale)])], self.order)
        if not self.clamp:
            return table
        weights = torch.cat([table.weights, torch.zeros_like(table.weights[:, :, :1])], dim=2)
        return table._replace(weights=weights)

    def settle_table(self, step: Step, stages: Stages, scale: Any) -> SettleTable:
        """Returns the table of all that follows the network's answer.

        Without a hook, a clamp makes the x0 estimate the first row, and its clamped self the last
        column. The guidance scale is a float or an array [B].
        """
        estimate = self._estimate(step, scale)
        parts = [(mask, self.settle_rows(step, call, estimate)) for call, mask in stages]
        measured = any(rows[-1] for _, rows in parts)
        if not measured:
            parts = [(mask, rows[:-1]) for mask, rows in parts]
        table = _assemble(step, parts, self.order, X0 if self._fused else None)
        # Where no sample is judged in this round, any tolerance will do.
        judged = stages[-1][0] == self.solver.calls
        atol, rtol = self.solver.tolerance(step) if judged else (1.0, 0.0)
        tolerance = numbers(step, 1, 2, {(0, 0): atol, (0, 1): rtol})[:, 0]
        return SettleTable(table, tolerance, measured)

    def settle_rows(self, step: Step, call: int, estimate: Row) -> list[Row]:
        """Returns the rows of one call, {} where there is none; the last one is the drawn noise."""
        kept = {X0: 1.0} if self.hook or self.clamp else estimate
        rows = {n: written_out(r, kept) for n, r in self.solver.rows_after(step, call).items()}
        made = [row for name, row in rows.items() if name not in JUDGED and not _is_copy(row)]
        made += [{}] * (len(self.proposals) - len(made))
        judged = (ERROR,) if self.solver.error_form == "scalar" else (ERROR, SIZE, NEW_SIZE)
        judged = [rows.get(name, {}) for name in (*judged, DRAWN)]
        return [estimate, *made, *judged] if self._fused else [*made, *judged]

    @property
    def _fused(self) -> bool:
        """Returns whether the table makes and clamps the x0 estimate as its first row."""
        return self.clamp and not self.hook

    def _estimate(self, step: Step, scale: Any) -> Row:
        call = step.call
        a, b = self.prediction.weights(call.alpha, call.sigma, call.dalpha, call.dsigma)
        return estimate_row(a, b, scale)


def lower_trial(
    solver: EmbeddedSolver, prediction: Any, noise: TrialNoise, hook: bool, clamp: bool
) -> TrialProgram:
    """Returns the program of a solver's trial steps; the arguments are its fields."""
    rejected = _rejected_names(noise)
    held = (Y, *solver.carried, *solver.entries, *((HELD, *rejected) if noise.holds else ()))
    moves, most = [], 0
    for call, rows in enumerate(_example_rows(solver)):
        made = 0
        for name, row in rows.items():
            source = X if _is_copy(row) else f"proposal{made}"
            made += source != X
            moves.append((call, source, name))
        most = max(most, made)
    proposals = tuple(f"proposal{k}" for k in range(most))
    sources = (*proposals, X, *((NEW,) if noise.holds else ()))
    if noise.holds:
        moves.append((solver.calls, NEW, HELD))
    drawn = (NOISE,) if noise.kind == "path" else ()
    return TrialProgram(
        solver,
        prediction,
        noise,
        hook,
        clamp,
        held,
        proposals,
        sources,
        passing=(*sources, *drawn, *((X0,) if hook else ())),
        moves=[n for c, s, t in moves for n in (c, sources.index(s), held.index(t))],
        memory=[sources.index(NEW), *map(held.index, rejected)] if rejected else [],
    )


def _rejected_names(noise: TrialNoise) -> tuple[str, ...]:
    return tuple(f"rejected{k}" for k in range(noise.rejected))


def _is_copy(row: Row) -> bool:
    """Returns whether the row is the network input itself."""
    return set(row) == {X} and isinstance(row[X], float) and row[X] == 1.0


def _example_rows(solver: EmbeddedSolver) -> list[dict[str, Row]]:
    """Returns the rows of registers after each call, of a step of any numbers: for their names."""
    start, end = (
        Node(np.float64(p), 0.5, np.float64(p), 0.6, 0.8, -1.0, 1.0, 1.0) for p in (-0.6, -0.5)
    )
    step = Step(np, start, end, end)
    rows = [solver.rows_after(step, call) for call in range(solver.calls + 1)]
    return [{n: row for n, row in found.items() if n not in JUDGED} for found in rows]


def _assemble(step: Step, parts: list, order: tuple[str, ...], last: str | None = None) -> Table:
    """Returns the table of several calls, (mask [B] or None, rows) with as many rows each.

    Sums have the order of the names. The column `last` is the clamped row, and no tensor.
    """
    used = {name for _, rows in parts for row in rows for name in row}
    columns = tuple(name for name in order if name in used and name != last)
    index = {name: k for k, name in enumerate(columns)} | ({last: len(columns)} if last else {})
    cells: dict[tuple[int, int], Any] = {}
    fresh: dict[tuple[int, int], Any] = {}
    for mask, rows in parts:
        for r, row in enumerate(rows):
            for name, value in row.items():
                if mask is not None:
                    value = step.xp.where(mask, value, 0.0)
                at, key = (fresh, (r, 0)) if name == Z1 else (cells, (r, index[name]))
                at[key] = at[key] + value if key in at else value
    height = len(parts[0][1])
    weights = numbers(step, height, len(columns) + (last is not None), cells)
    return Table(columns, weights, numbers(step, height, 1, fresh) if fresh else None)


def numbers(step: Step, height: int, width: int, cells: dict) -> torch.Tensor:
    """Returns [B, height, width] float64, 0 but for cells: numbers or arrays [B] by (row, column).

    The step gives the array module, B and the device.
    """
    position = step.start.position
    if step.xp is np:
        table = np.zeros((len(position), height, width))
        for (r, c), value in cells.items():
            table[:, r, c] = value
        return torch.from_numpy(table)
    zero = torch.zeros((), dtype=torch.float64, device=position.device).expand(len(position))
    columns = [zero] * (height * width)
    for (r, c), value in cells.items():
        if not isinstance(value, torch.Tensor):
            value = zero + value
        columns[r * width + c] = value
    return torch.stack(columns, dim=1).reshape(len(position), height, width)
