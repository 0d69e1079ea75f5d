"""The meaning of a Plan, in plain numpy float64: what every other executor is tested against."""

import numpy as np


def run(plan, denoise, x, noise=None):
    """Returns every point of a run, [S+1, ...] float64: the initial state, then one a stage.

    Args:
        plan: any plan.
        denoise: (x, t) -> x0 estimate, same shape as x.
        x: initial state, standing at plan.times[0].
        noise: stage index -> N(0, I) numbers of the shape of x; 0 if not given.
    """
    points = [np.asarray(x, dtype=np.float64)]
    anchor = points[0]
    history = []
    for i in range(plan.stages):
        read = plan.read[i, 0] * points[-1] + plan.read[i, 1] * denoise(points[-1], plan.times[i])
        history = [read, *history][: plan.history]
        z = np.zeros_like(anchor) if noise is None else noise(i)
        inputs = [anchor, z, *history]  # later columns have weight 0 until they exist
        points.append(sum(w * v for w, v in zip(plan.point[i], inputs, strict=False)))
        anchor = sum(w * v for w, v in zip(plan.anchor[i], inputs, strict=False))
    return np.stack(points)
