"""Propagation through a plan's matrices: every row as weights of initial state and noises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from diffast.plans.registers import ERROR, Z1, Z2, H, X, Y, input_number, levels_of

if TYPE_CHECKING:
    from diffast.plans.plan import Plan


def unroll(plan: Plan) -> dict[str, np.ndarray]:
    """Returns every row of every stage as weights of what a run starts from, [S, W] each.

    W = 1 + (E + n) S with E network inputs and n normals a stage. Column 0 is the initial state,
    column 1+j the x0 estimate of stage j (those of x2 follow, if the plan has it), then come the
    normals z1 of all stages and, of a plan that draws two, z2. Row i is zero at every later stage.
    With it all x follow from all x0 estimates by one matrix product, whatever the solver. Gradients
    of guidance terms count as 0, and the branches' estimates d_cond and d_uncond as the guided one.

    Args:
        plan: any plan, S stages.

    Raises:
        ValueError: a plan with entries before its first stage, which are no multiple of the state.
    """
    if plan.initial is not None and plan.initial.entries:
        raise ValueError(
            f"unroll: {plan.name} starts with {plan.initial.entries} entries of a Gaussian law, "
            "but rows over the initial state and the x0 estimates have no place for them"
        )
    return propagate(plan, estimates=True)


def propagate(plan: Plan, estimates: bool) -> dict[str, np.ndarray]:
    """Returns the rows of `unroll`, with or without the columns of the x0 estimates.

    Without them a plan that draws no noise has one column.
    """
    normals, inputs = _normals(plan), plan.called.shape[1] * estimates
    if inputs or normals:
        width = 1 + plan.stages * (inputs + len(normals))
        made = np.empty((plan.stages, len(plan.rows), width))
        for i, rows in enumerate(_propagated(plan, _sources(plan, inputs, normals), width)):
            made[i] = rows
    else:
        made = _of_the_state(plan)
    return {name: made[:, r] for r, name in enumerate(plan.rows)}


def noise_of(plan: Plan) -> dict[str, np.ndarray]:
    """Returns what each row holds of the initial state and of fresh noise, [S, 2] each.

    Of fresh noise it is the deviation, the root of the sum of squares over all normals so far. Row
    by row, so that the memory grows with S and not with its square.
    """
    normals = _normals(plan)
    if not normals:
        made = _of_the_state(plan)
        found = np.concatenate([made, np.zeros_like(made)], axis=2)
    else:
        found = np.empty((plan.stages, len(plan.rows), 2))
        width = 1 + plan.stages * len(normals)
        for i, rows in enumerate(_propagated(plan, _sources(plan, 0, normals), width)):
            found[i, :, 0] = rows[:, 0]
            found[i, :, 1] = np.sqrt(np.einsum("rw,rw->r", rows[:, 1:], rows[:, 1:]))
    return {name: found[:, r] for r, name in enumerate(plan.rows)}


def _normals(plan: Plan) -> list[str]:
    """Returns the normals that a plan draws; one that draws z2 alone has both."""
    drawn = [z for z in (Z1, Z2) if z in plan.columns]
    drawn = [z for z in drawn if plan.matrix[:, :, plan.columns.index(z)].any()]
    return [Z1, Z2] if Z2 in drawn else drawn


def _sources(plan: Plan, inputs: int, normals: list[str]) -> list[tuple[int, int]]:
    """Returns the columns that hold a source of their own in every stage.

    Each as (column, place of its source at stage 0), of estimates of `inputs` inputs and normals.
    """
    found = []
    for column, name in enumerate(plan.columns):
        if name in normals:
            found.append((column, 1 + plan.stages * (inputs + normals.index(name))))
        elif name[0] == "d" and inputs:
            found.append((column, 1 + plan.stages * input_number(name)))
    return found


def _given(plan: Plan) -> list[float]:
    """Returns the entries before the first stage as shares of the initial noise, newest first."""
    if plan.initial is None:
        return []
    _, sigma = levels_of(plan.schedule, plan.start)
    return (plan.initial.known()[1] / sigma)[::-1].tolist()


class _Places:
    """Where the columns of registers and entries are."""

    def __init__(self, plan: Plan):
        ages = {int(name[1:]): c for c, name in enumerate(plan.columns) if name[0] == "h"}
        self.new = ages.pop(0, None)
        # what nobody weighs is not remembered
        self.ages = {age: c for age, c in ages.items() if plan.matrix[:, :, c].any()}
        carried = [name for name in plan.rows if name not in (H, ERROR)]
        self.columns = [plan.columns.index(name) for name in carried]
        self.rows = [plan.rows.index(name) for name in carried]
        self.first = [plan.columns.index(name) for name in (X, Y) if name in plan.columns]
        entry = plan.matrix[:, 0].any(axis=1) & (H in plan.rows)
        self.entry = entry.tolist()


def _propagated(plan: Plan, sources: list[tuple[int, int]], width: int) -> Iterator[np.ndarray]:
    """Yields the rows of each stage over all sources, [R, width]; the next one overwrites them."""
    at = _Places(plan)
    made = np.empty((len(plan.rows), width))
    held = np.zeros((len(plan.columns), width))  # what each column holds
    held[at.first, 0] = 1.0
    entries = np.zeros((max(at.ages, default=0) + 1, width))  # [age - 1], the newest first
    taken, order = [*at.ages.values()], [age - 1 for age in at.ages]
    given = _given(plan)[: len(entries)]
    entries[: len(given), 0] = given
    held[taken] = entries[order]
    for i, rows in enumerate(plan.matrix):
        for column, first in sources:
            held[column, first + i - 1] = 0.0
            held[column, first + i] = 1.0
        if at.new is not None:
            np.matmul(rows[0], held, out=held[at.new])
        np.matmul(rows, held, out=made)
        if taken and at.entry[i]:
            entries[1:] = entries[:-1]
            entries[0] = made[0]
            held[taken] = entries[order]
        held[at.columns] = made[at.rows]
        yield made


def _of_the_state(plan: Plan) -> np.ndarray:
    """Returns the rows of all stages where the initial state is the only source, [S, R, 1]."""
    at = _Places(plan)
    held, entries = [0.0] * len(plan.columns), _given(plan)
    for column in at.first:
        held[column] = 1.0
    for age, column in at.ages.items():
        held[column] = entries[age - 1] if age <= len(entries) else 0.0
    stages, *places = np.nonzero(plan.matrix)  # stage by stage, in each the entry's row first
    bounds = np.searchsorted(stages, np.arange(plan.stages + 1)).tolist()
    weights = plan.matrix[stages, *places].tolist()
    terms = [*zip(*(place.tolist() for place in places), weights, strict=True)]
    made = [[0.0] * len(plan.rows) for _ in range(plan.stages)]
    for i, written in enumerate(made):
        for r, column, weight in terms[bounds[i] : bounds[i + 1]]:
            written[r] += weight * held[column]
            if r == 0 and at.new is not None:
                held[at.new] = written[0]
        if at.entry[i]:
            entries.insert(0, written[0])
            for age, column in at.ages.items():
                held[column] = entries[age - 1] if age <= len(entries) else 0.0
        for column, r in zip(at.columns, at.rows, strict=True):
            held[column] = written[r]
    return np.array(made)[:, :, None]
