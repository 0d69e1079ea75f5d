"""Trial steps of an embedded solver over the tensors that a run binds.

An embedded solver's rows name registers. `lower_trial` settles once which tensors a run needs and
which tensor is moved where after a trial step. The rows of the program name those tensors:

    input rows    of the network inputs: the noise z1 is written out over the Brownian path
    settle rows   of what follows the answer: the estimate d is written out over the network's
                  input and answers (prediction type, guidance, clamp, hook)

`traced_steps.py` turns the rows into programs that write every sample's own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from diffast.lowering.estimate import COND, UNCOND, X0, estimate_row, written_out
from diffast.plans.registers import ERROR, Z1, X, Y
from diffast.solvers.embedded import EmbeddedSolver, Node, Step
from diffast.solvers.embedded.bridge import HELD, NEW, bridge
from diffast.solvers.embedded.solver import DRAWN, JUDGED, NEW_SIZE, SIZE, Row

# The path's increment, where a caller draws it as a tensor.
NOISE = "noise"


class TrialTerm(NamedTuple):
    """A guidance term of a run.

    Attributes:
        through: what its gradient is taken through, see `diffast.guidance.Guide`.
        scale: None where it depends on the time.
    """

    through: str
    scale: float | None


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
        terms: guidance terms, whose gradients g1, g2 .. join the x0 estimate.
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
    terms: tuple[TrialTerm, ...] = ()

    @cached_property
    def rejected(self) -> tuple[str, ...]:
        """Returns the names of the remembered points."""
        return _rejected_names(self.noise)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Returns the names of all tensors that rows may weigh, in the order of the sums."""
        solver = self.solver
        held = (Y, *solver.carried, *solver.entries)
        gradients = tuple(f"g{k}" for k in range(1, len(self.terms) + 1))
        return (*held, X, COND, UNCOND, *gradients, X0, HELD, NEW, *self.rejected, NOISE)

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

    def settle_rows(self, step: Step, call: int, estimate: Row, gradients: Row) -> list[Row]:
        """Returns the rows of one call, {} where there is none; the last one is the drawn noise."""
        kept = ({X0: 1.0} if self.hook or self.clamp else estimate) | gradients
        rows = {n: written_out(r, kept) for n, r in self.solver.rows_after(step, call).items()}
        made = [row for name, row in rows.items() if name not in JUDGED and not _is_copy(row)]
        made += [{}] * (len(self.proposals) - len(made))
        judged = (ERROR,) if self.solver.error_form == "scalar" else (ERROR, SIZE, NEW_SIZE)
        judged = [rows.get(name, {}) for name in (*judged, DRAWN)]
        return [estimate, *made, *judged] if self.fused else [*made, *judged]

    @property
    def fused(self) -> bool:
        """Returns whether the table makes and clamps the x0 estimate as its first row."""
        return self.clamp and not self.hook

    def estimate(self, step: Step, scale: Any) -> Row:
        """Returns the row of the x0 estimate; the guidance scale is a float or an array [B]."""
        call = step.call
        a, b = self.prediction.weights(call.alpha, call.sigma, call.dalpha, call.dsigma)
        return estimate_row(a, b, scale)

    def gradients(self, step: Step, scales: Sequence[Any]) -> Row:
        """Returns the row of the gradients in the x0 estimate, for the terms' scales.

        Scale sigma^2 / alpha, 0 where alpha is 0; or the scale, see `Guide.weights`.
        """
        row, xp = {}, step.xp
        for k, (term, scale) in enumerate(zip(self.terms, scales, strict=True), 1):
            alpha, sigma = step.call.alpha, step.call.sigma
            weight = scale
            if term.through != "x0":
                weight = xp.where(alpha > 0.0, scale * (sigma * sigma) / alpha, 0.0)
            row[f"g{k}"] = weight
        return row


def lower_trial(
    solver: EmbeddedSolver,
    prediction: Any,
    noise: TrialNoise,
    hook: bool,
    clamp: bool,
    terms: tuple[TrialTerm, ...] = (),
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
        terms=terms,
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
