"""The meaning of a Plan, in plain numpy float64: what every other executor is tested against."""

import numpy as np


def run(plan, denoise, x, noise=None, second=None):
    """Returns every point of a run, [S+1, ...] float64: the initial state, then one a stage.

    Args:
        plan: any plan.
        denoise: (x, t) -> x0 estimate, same shape as x.
        x: initial state, standing at plan.times[0].
        noise: stage index -> N(0, I) numbers of the shape of x (-1: those of the opening); 0 if
            not given.
        second: the same for the second normal of a stage.
    """
    points = [np.asarray(x, dtype=np.float64)]
    if tuple(plan.opening) != (1.0, 0.0):
        z = 0.0 if noise is None or not plan.opening[1] else noise(-1)
        points = [plan.opening[0] * points[0] + plan.opening[1] * z]
    anchor = points[0]
    history = []
    for i in range(plan.stages):
        d = denoise(points[-1], plan.times[i])
        history = [plan.read[i, 0] * points[-1] + plan.read[i, 1] * d, *history][: plan.history]
        z = np.zeros_like(anchor) if noise is None else noise(i)
        z2 = np.zeros_like(anchor) if second is None else second(i)
        inputs = [anchor, z, *history]  # later columns have weight 0 until they exist
        point, anchor = (
            sum(w * v for w, v in zip(table[i], inputs, strict=False) if w)
            for table in (plan.point, plan.anchor)
        )
        if plan.direct is not None:
            point = point + plan.direct[i, 0, 0] * points[-1] + plan.direct[i, 0, 1] * d
            anchor = anchor + plan.direct[i, 1, 0] * points[-1] + plan.direct[i, 1, 1] * d
        if plan.second is not None:
            point = point + plan.second[i, 0] * z2
            anchor = anchor + plan.second[i, 1] * z2
        points.append(point)
    return np.stack(points)
