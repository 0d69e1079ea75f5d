"""One propagation through a plan's matrices: every row as weights of what a run starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffast.plan.registers import D_RAW, NEW, Z1, Z2, D, H, V, X, Y

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
    names = {name: k for k, name in enumerate(plan.columns)}
    normals = [z for z in (Z1, Z2) if z in names and plan.matrix[:, :, names[z]].any()]
    if normals:
        normals = [Z1, Z2] if Z2 in normals else [Z1]
    first = {z: 1 + stages * (estimates + n) for n, z in enumerate(normals)}
    width = 1 + stages * (estimates + len(normals))
    out = {name: np.zeros((stages, width)) for name in plan.rows}
    held = np.zeros((len(names), width))  # what each column holds, as weights of the sources
    for name in (X, Y):
        if name in names:
            held[names[name], 0] = 1.0
    ages = sorted(int(name[1:]) for name in names if name[0] == "h" and name != NEW)
    oldest = ages[-1] if ages else 0
    entries = np.zeros((oldest + 1, width))  # [age - 1], the newest first
    for i in range(stages):
        if estimates:
            for name in (D, D_RAW):
                if name in names:
                    held[names[name], 1 : i + 1] = 0.0
                    held[names[name], 1 + i] = 1.0
        for z in normals:
            if z in names:
                held[names[z]] = 0.0
                held[names[z], first[z] + i] = 1.0
        for age in ages:
            held[names[f"h{age}"]] = entries[age - 1]
        if H in plan.rows:
            row = plan.matrix[i, 0]
            entry = row @ held
            out[H][i] = entry
            if NEW in names:
                held[names[NEW]] = entry
            if row.any():
                entries[1:] = entries[:-1]
                entries[0] = entry
        made = plan.matrix[i] @ held
        for r, name in enumerate(plan.rows):
            if name != H:
                out[name][i] = made[r]
        for name in (X, Y, V):
            if name in plan.rows and name in names:
                held[names[name]] = out[name][i]
    return out
