"""One propagation through a plan's matrices: every row as weights of what a run starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffast.plan.registers import D_RAW, Z1, Z2, D, H, V, X, Y

if TYPE_CHECKING:
    from diffast.plan.plan import Plan


def unroll(plan: Plan) -> dict[str, np.ndarray]:
    """Returns every row of every stage as weights of what a run starts from, [S, 1+S+n S] each.

    Column 0 is the initial state, column 1+j the x0 estimate of stage j, column 1+S+j the normal z1
    of stage j and, of a plan that draws two normals, column 1+2S+j its z2. Row i is zero at every
    j > i. With it all points follow from all x0 estimates by one matrix product, whatever the
    solver. Gradients of guidance terms count as 0.

    Args:
        plan: any plan, S stages.
    """
    return propagate(plan, estimates=True)


def propagate(plan: Plan, estimates: bool) -> dict[str, np.ndarray]:
    """Returns the rows of `unroll`, with or without the columns of the x0 estimates.

    Without them a plan that draws no noise has one column: what the noise check needs, at a cost
    that grows with S and not with its square.
    """
    stages = plan.stages
    at = {name: k for k, name in enumerate(plan.columns)}
    normals = [z for z in (Z1, Z2) if z in at and plan.matrix[:, :, at[z]].any()]
    if normals:
        normals = [Z1, Z2] if Z2 in normals else [Z1]
    width = 1 + stages * (estimates + len(normals))
    if width == 1:
        made = _scalars(plan, at)
    else:
        made = np.empty((stages, len(plan.rows), width))
        fresh = [(at.get(z), 1 + stages * (estimates + n)) for n, z in enumerate(normals)]
        if estimates:
            fresh += [(at.get(name), 1) for name in (D, D_RAW)]
        _vectors(plan, at, [(c, first) for c, first in fresh if c is not None], made)
    return {name: made[:, r] for r, name in enumerate(plan.rows)}


def _places(plan, at):
    """Returns the places of h0, of older entries by age, and of states: (column, row) pairs."""
    ages = {int(name[1:]): c for name, c in at.items() if name[0] == "h"}
    new = ages.pop(0, None)
    states = [(at[name], plan.rows.index(name)) for name in (X, Y, V) if name in at]
    return new, ages, states


def _vectors(plan, at, fresh, made):
    """Fills made [S, R, width].

    Args:
        plan: any plan.
        at: the columns' places.
        fresh: (place, first) of columns that stand for a source of their own in every stage.
        made: what is written.
    """
    new, ages, states = _places(plan, at)
    held = np.zeros((len(at), made.shape[2]))  # what each column holds, as weights of the sources
    for column, _ in states:
        held[column, 0] = 1.0
    if V in at:  # it holds nothing at first
        held[at[V]] = 0.0
    columns, rows = (list(places) for places in zip(*states, strict=True))
    columns = columns[0] if len(columns) == 1 else columns
    rows = rows[0] if len(rows) == 1 else rows
    entries = np.zeros((max(ages, default=0) + 1, made.shape[2]))  # the newest first
    taken, order = [*ages.values()], [age - 1 for age in ages]
    remembers = H in plan.rows and (plan.matrix[:, 0].any(axis=1)).tolist()
    for i, row in enumerate(plan.matrix):
        for column, first in fresh:
            held[column, first + i - 1] = 0.0
            held[column, first + i] = 1.0
        if new is not None:
            np.matmul(row[0], held, out=held[new])
        np.matmul(row, held, out=made[i])
        if taken and remembers[i]:
            entries[1:] = entries[:-1]
            entries[0] = made[i, 0]
            held[taken] = entries[order]
        held[columns] = made[i, rows]


def _scalars(plan, at):
    """Returns made [S, R, 1], where the initial state is the only source."""
    new, ages, states = _places(plan, at)
    held, entries = [0.0] * len(at), []
    for column, _ in states:
        held[column] = 1.0
    if V in at:  # it holds nothing at first
        held[at[V]] = 0.0
    remembers = H in plan.rows and plan.matrix[:, 0].any(axis=1).tolist()
    places = np.nonzero(plan.matrix)  # stage by stage, row by row: the entry's first
    bounds = np.searchsorted(places[0], np.arange(plan.stages + 1)).tolist()
    terms = [*zip(*(p.tolist() for p in places[1:]), plan.matrix[places].tolist(), strict=True)]
    made = [[0.0] * len(plan.rows) for _ in range(plan.stages)]
    for i, written in enumerate(made):
        for r, column, weight in terms[bounds[i] : bounds[i + 1]]:
            written[r] += weight * held[column]
            if new is not None and r == 0:
                held[new] = written[0]
        if remembers and remembers[i]:
            entries.insert(0, written[0])
            for age, column in ages.items():
                held[column] = entries[age - 1] if age <= len(entries) else 0.0
        for column, r in states:
            held[column] = written[r]
    return np.array(made)[:, :, None]
