"""Tables of a function of time, dense at both ends, and the cubics between their values."""

from __future__ import annotations

import numpy as np

# How many intervals a saved table has.
TIMES = 1024

# First derivatives over the index from seven values: row r is for the value r of the seven.
_SEVEN = np.arange(7.0)


def share_times(count: int, start: float, end: float) -> np.ndarray:
    """Returns the times of a table's values, [count + 1] from end to start."""
    share = np.sin(0.5 * np.pi * np.arange(count + 1) / count) ** 2
    times = end + share * (start - end)
    times[-1] = start
    return times


def at_points(t: np.ndarray, times: np.ndarray, values: np.ndarray, others: np.ndarray):
    """Returns others [N], but the values [P] where a time of t [N] is one of the times [P]."""
    if not times.size:
        return others
    k = np.clip(np.searchsorted(times, t), 0, times.size - 1)
    return np.where(times[k] == t, values[k], others)


class Interpolant:
    """A cubic Hermite spline over the index of a table; equal to the values at their times.

    Args:
        values: [N+1], at the times of `share_times`.
        start, end: the last and the first of these times.
        times: [P] further times, sorted.
        known: [P] the values there.
    """

    said = "table"

    def __init__(
        self, values: np.ndarray, start: float, end: float, times: np.ndarray, known: np.ndarray
    ):
        """Finds the slopes."""
        self.values, self.start, self.end = values, start, end
        self.times, self.known = times, known
        self.slopes = _limited(_slopes(values), np.diff(values))

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """Returns the value at times [N], float64 [N]."""
        count = len(self.values) - 1
        share = np.clip((t - self.end) / (self.start - self.end), 0.0, 1.0)
        place = count * 2.0 / np.pi * np.arctan2(np.sqrt(share), np.sqrt(1.0 - share))
        nearest = np.rint(place)  # the time of a value gives that value, whatever the roundings
        place = np.where(np.abs(place - nearest) < 1e-9, nearest, place)
        k = np.clip(np.floor(place).astype(int), 0, count - 1)
        u = place - k
        a, b = self.values[k], self.values[k + 1]
        da, db = self.slopes[k], self.slopes[k + 1]
        # value a where u = 0, b where u = 1, exactly
        bulge = da * (1 - u) - db * u + (b - a) * (2 * u - 1)
        smooth = a * (1 - u) + b * u + u * (1 - u) * bulge
        return at_points(t, self.times, self.known, smooth)


def _slopes(values):
    """Returns the derivative over the index at each value, from the seven nearest values."""
    count = len(values)
    first = np.clip(np.arange(count) - 3, 0, count - 7)
    rows = np.arange(count) - first
    weights = np.stack([_derivative_weights(float(r)) for r in range(7)])
    near = values[first[:, None] + np.arange(7)]
    return (near * weights[rows]).sum(1)


def _derivative_weights(at):
    """Returns the weights of seven values for the derivative of their polynomial at an index."""
    powers = _SEVEN[:, None] - at
    wanted = np.zeros(7)
    wanted[1] = 1.0
    return np.linalg.solve((powers ** np.arange(7)).T, wanted)


def _limited(slopes, steps):
    """Returns the slopes, at most three times either neighbouring step: monotone cubics."""
    before, after = np.append(steps[0], steps), np.append(steps, steps[-1])
    monotone = before * after > 0
    most = 3 * np.minimum(np.abs(before), np.abs(after))
    kept = np.clip(slopes, np.where(before > 0, 0, -most), np.where(before > 0, most, 0))
    return np.where(monotone, kept, slopes)
