"""Derivatives of functions of time by differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# The first derivative from seven values of a polynomial of degree six, times the spacing: at the
# middle one, and at the first one.
CENTRAL = np.array([-1.0, 9.0, -45.0, 0.0, 45.0, -9.0, 1.0]) / 60.0
ONE_SIDED = np.array([-147.0, 360.0, -450.0, 400.0, -225.0, 72.0, -10.0]) / 60.0


def differences(
    level: Callable[[np.ndarray], np.ndarray], t: np.ndarray, start: float, end: float
) -> np.ndarray:
    """Returns the derivative of `level` at times [N] between `end` and `start`, float64 [N].

    The spacing is a thousandth of the range, and near `end` a fiftieth of the distance to it,
    because sigma may behave there like a square root. No value is taken outside the range.
    """
    span = start - end
    h = np.minimum(1e-3 * span, (t - end) / 50.0)
    h = np.where(t == end, 1e-5 * span, np.maximum(h, 1e-9 * span))
    late, early = t + 3 * h > start, t - 3 * h < end
    first = np.where(late | early, 0.0, -3.0)
    sign = np.where(late, -1.0, 1.0)
    h = np.where(late, 1e-3 * span, h)
    points = t[:, None] + (sign * h)[:, None] * (first[:, None] + np.arange(7.0))
    values = level(np.clip(points, end, start).reshape(-1)).reshape(points.shape)
    weights = np.where((late | early)[:, None], ONE_SIDED, CENTRAL)
    return (values * weights).sum(1) / (sign * h)
