"""Unrolling a plan: every row as weights of what a run starts from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Unrolled(NamedTuple):
    """Rows as weights of (state at times[0], x0 estimates d_0..d_{S-1}, noises z_0..z_{S-1}).

    Of a plan with `second` weights S second noises follow: [S, 1+3S].
    """

    point: np.ndarray  # [S, 1+2S]
    anchor: np.ndarray  # [S, 1+2S]
    error: np.ndarray | None  # [S, 1+2S]


def unroll(plan) -> Unrolled:
    """Returns every point, anchor and error row as weights of what a run starts from.

    Column 0 is the state before stage 0 (after the plan's opening), column 1+j the x0 estimate d_j
    of stage j, column 1+S+j its noise z_j, column 1+2S+j its second noise if the plan has any; row
    i is zero at every j > i. With it all points follow from all x0 estimates by one matrix product,
    whatever the solver.

    Args:
        plan: any plan, S stages.
    """
    return _unrolled(plan, estimates=True, noises=True)


def unroll_noise(plan) -> Unrolled:
    """Returns the same rows without the columns of the x0 estimates: [S, 1+S], or [S, 1+2S].

    Of a plan without fresh noise only the first one, [S, 1]: what the noise check needs, at a cost
    that grows with S and not with its square.

    Args:
        plan: any plan, S stages.
    """
    tables = [plan.point, plan.anchor] + ([] if plan.error is None else [plan.error])
    fresh = plan.second is not None or any(table[:, 1].any() for table in tables)
    return _unrolled(plan, estimates=False, noises=fresh)


def _unrolled(plan, estimates: bool, noises: bool) -> Unrolled:
    stages, columns = plan.point.shape
    tables = [plan.point, plan.anchor] + ([] if plan.error is None else [plan.error])
    weights = np.stack(tables, axis=1)  # [S, R, 2+H]
    first_noise = 1 + stages * estimates
    second = None if plan.second is None or not noises else plan.second
    first_second = first_noise + stages * noises
    width = first_second + stages * (second is not None)
    out = np.empty((stages, len(tables), width))
    inputs = np.zeros((columns, width))  # anchor, noise, history
    inputs[0, 0] = 1.0
    x = inputs[0].copy()
    for i in range(stages):
        inputs[3:] = inputs[2:-1]
        np.multiply(x, plan.read[i, 0], out=inputs[2])
        if estimates:
            inputs[2, 1 + i] += plan.read[i, 1]
        if noises:
            inputs[1, first_noise + i - 1] = 0.0
            inputs[1, first_noise + i] = 1.0
        np.matmul(weights[i], inputs, out=out[i])
        if second is not None:
            out[i, :2, first_second + i] = second[i]
        if plan.direct is not None:
            out[i, :2] += plan.direct[i, :, :1] * x
            if estimates:
                out[i, :2, 1 + i] += plan.direct[i, :, 1]
        x, inputs[0] = out[i, 0], out[i, 1]
    return Unrolled(out[:, 0], out[:, 1], None if plan.error is None else out[:, 2])
