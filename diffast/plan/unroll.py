"""Propagation through a plan's matrices: every row as weights of initial state and noises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffast.plan.registers import ERROR, NEW, Z1, Z2, H, X, Y, input_number

if TYPE_CHECKING:
    from diffast.plan.plan import Plan


def unroll(plan: Plan) -> dict[str, np.ndarray]:
    """Returns every row of every stage as weights of what a run starts from, [S, W] each.

    W = 1 + (E + n) S with E network inputs and n normals a stage. Column 0 is the initial state,
    column 1+j the x0 estimate of stage j (those of x2 follow, if the plan has it), then come the
    normals z1 of all stages and, of a plan that draws two, z2. Row i is zero at every later stage.
    With it all x follow from all x0 estimates by one matrix product, whatever the solver. Gradients
    of guidance terms count as 0.

    Args:
        plan: any plan, S stages.
    """
    return propagate(plan, estimates=True)


def propagate(plan: Plan, estimates: bool) -> dict[str, np.ndarray]:
    """Returns the rows of `unroll`, with or without the columns of the x0 estimates.

    Without them a plan that draws no noise has one column: what the noise check needs, at a cost
    that grows with S and not with its square.
    """
    held = _Held(plan, estimates)
    out = {name: np.zeros((plan.stages, held.width)) for name in plan.rows}
    for i in range(plan.stages):
        held.begin(i)
        if H in plan.rows:
            out[H][i] = held.remember(plan.matrix[i, 0])
        made = plan.matrix[i] @ held.columns
        for r, name in enumerate(plan.rows):
            if name != H:
                out[name][i] = made[r]
        held.write(out, i)
    return out


class _Held:
    """What each column holds, as weights of the sources: the state, estimates, normals."""

    def __init__(self, plan: Plan, estimates: bool):
        stages, names = plan.stages, plan.columns
        self.place = {name: c for c, name in enumerate(names)}
        normals = _normals(plan)
        inputs = plan.called.shape[1] * estimates
        self.width = 1 + stages * (inputs + len(normals))
        self.columns = np.zeros((len(names), self.width))
        # The columns that hold one source of a stage: (column, place of that source at stage 0).
        self.sources = [
            (self.place[z], 1 + stages * (inputs + n))
            for n, z in enumerate(normals)
            if z in self.place
        ]
        if estimates:
            self.sources += [
                (c, 1 + stages * input_number(n)) for n, c in self.place.items() if n[0] == "d"
            ]
        for name in (X, Y):
            if name in self.place:
                self.columns[self.place[name], 0] = 1.0
        self.ages = [(int(n[1:]), c) for n, c in self.place.items() if n[0] == "h" and n != NEW]
        oldest = max((age for age, _ in self.ages), default=0)
        self.entries = np.zeros((oldest + 1, self.width))  # [age - 1], the newest first
        self.carried = [n for n in plan.rows if n not in (H, ERROR)]

    def begin(self, i: int) -> None:
        """Puts the sources of stage i and the older entries into their columns."""
        for c, first in self.sources:
            self.columns[c] = 0.0
            self.columns[c, first + i] = 1.0
        for age, c in self.ages:
            self.columns[c] = self.entries[age - 1]

    def remember(self, row: np.ndarray) -> np.ndarray:
        """Makes the stage's entry; returns it."""
        entry = row @ self.columns
        if NEW in self.place:
            self.columns[self.place[NEW]] = entry
        if row.any():
            self.entries[1:] = self.entries[:-1]
            self.entries[0] = entry
        return entry

    def write(self, made: dict[str, np.ndarray], i: int) -> None:
        """Puts what stage i wrote into the columns."""
        for name in self.carried:
            self.columns[self.place[name]] = made[name][i]


def _normals(plan: Plan) -> list[str]:
    """Returns the normals that a plan draws; one that draws z2 alone has both."""
    drawn = [z for z in (Z1, Z2) if any(plan.weights(row, z).any() for row in plan.rows)]
    return [Z1, Z2] if Z2 in drawn else drawn
