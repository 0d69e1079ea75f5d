"""Silent stages, which evaluate nothing, multiplied into the stage before them.

A silent stage puts noise back before a call, or goes on from what was evaluated before. In a plan
it has a matrix of its own. Executors see one matrix an evaluation (a network call, gradients of
guidance terms, or both): the silent stages after an evaluation are multiplied into its matrix,
those before the first one are the opening.
"""

from __future__ import annotations

import numpy as np

from diffast.plans import Plan
from diffast.plans.registers import ERROR, NEW, Z1, Z2, H, V, X, Y

Rows = dict[str, dict[str, float]]  # {register: {column: weight}}, without zeros


def without_silent_stages(plan: Plan) -> tuple[tuple[float, float] | None, list[Rows]]:
    """Returns the opening's weights (keep, fresh), or None, and the rows of each evaluation.

    Raises:
        ValueError: a silent stage that cannot be joined to the call before it.
    """
    stages = _rows_of(plan)
    evaluated = {*plan.evaluations.tolist()}
    first = int(plan.evaluations[0])
    joined: list[Rows] = []
    for i in range(first, plan.stages):
        if i in evaluated:
            joined.append(stages[i])
        else:
            joined[-1] = _product(plan, i, joined[-1], stages[i])
    return _opening(plan, stages[:first]) if first else None, joined


def _rows_of(plan: Plan) -> list[Rows]:
    found: list[Rows] = [{r: {} for r in plan.rows if r != ERROR} for _ in range(plan.stages)]
    places = np.nonzero(plan.matrix)
    weights = plan.matrix[places].tolist()
    for i, r, c, weight in zip(*(p.tolist() for p in places), weights, strict=True):
        if plan.rows[r] != ERROR:
            found[i][plan.rows[r]][plan.columns[c]] = weight
    return found


def _opening(plan: Plan, stages: list[Rows]) -> tuple[float, float]:
    keep, fresh = 1.0, 0.0
    for rows in stages:
        row = dict(rows[X])
        # y and x are both the initial state here
        factor, noise = row.pop(Y, 0.0) + row.pop(X, 0.0), row.pop(Z1, 0.0)
        apart = Y in rows and rows[Y] != rows[X]
        if row or apart or rows.get(H) or rows.get(V) or (fresh and noise):
            raise ValueError(
                f"{plan.name}: the stages before the first network call do more than scale the "
                "state and add one normal, but that is all an opening can do"
            )
        keep, fresh = factor * keep, factor * fresh + noise
    return keep, fresh


def _product(plan: Plan, i: int, before: Rows, after: Rows) -> Rows:
    """Returns the rows of a call and of the silent stage i behind it as one stage's."""
    if after.get(H):
        raise ValueError(
            f"{plan.name}: stage {i} calls no network but makes an entry, and the call before it "
            "may make one too: 1 an executor can hold"
        )
    normals = _normals(plan, i, before, after)
    makes = bool(before.get(H))

    def multiplied(row: dict[str, float]) -> dict[str, float]:
        out: dict[str, float] = {}
        for column, weight in row.items():
            if column in before and column != H:
                parts = before[column]
            elif column in normals:
                parts = {normals[column]: 1.0}
            else:  # an old entry, a stage younger where the call made one of its own
                age = int(column[1:]) - makes
                parts = {f"h{age}" if age else NEW: 1.0}
            for name, part in parts.items():
                out[name] = out.get(name, 0.0) + weight * part
        return {name: weight for name, weight in out.items() if weight != 0.0}

    rows = {name: multiplied(row) for name, row in after.items() if name != H}
    return ({H: before[H]} if H in before else {}) | rows


def _normals(plan: Plan, i: int, before: Rows, after: Rows) -> dict[str, str]:
    """Returns which normal of the call's stage each normal of the silent stage becomes."""
    free = [z for z in (Z1, Z2) if not any(z in row for row in before.values())]
    wanted = [z for z in (Z1, Z2) if any(z in row for row in after.values())]
    if len(wanted) > len(free):
        raise ValueError(
            f"{plan.name}: stage {i} calls no network and draws {len(wanted)} normals, but of the "
            f"2 of the call before it {len(free)} are free"
        )
    return dict(zip(wanted, free, strict=False))
