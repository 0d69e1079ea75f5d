"""The mmse at every noise level, from its values at some."""

from __future__ import annotations

from typing import Any

import numpy as np


class Curve:
    """A smooth curve through mmse values, for all rho = sigma / alpha > 0.

    mmse(rho) (c^2 + rho^2) / rho^2 tends to a constant at both ends, c the deviation of the data.
    Its logarithm is interpolated over log(rho) by a cubic that is monotone where the values are
    (Fritsch and Carlson 1980), and constant beyond the measured levels.

    Args:
        rho: levels [M], in any order, different ones.
        mmse: values [M]; those that are not positive (noise of few samples) count as tiny.
        deviation: c, the root mean square of the data about their mean, an element.
    """

    def __init__(self, rho: Any, mmse: Any, deviation: float):
        """Finds the slopes."""
        order = np.argsort(rho)
        rho, known = (np.asarray(part, dtype=np.float64)[order] for part in (rho, mmse))
        self.square = float(deviation) ** 2
        scaled = np.maximum(known, 1e-12 * max(float(known.max()), 1e-300)) / rho**2
        self.at, self.values = np.log(rho), np.log(scaled * (self.square + rho**2))
        self.slopes = _slopes(self.at, self.values)

    def __call__(self, rho: Any) -> np.ndarray:
        """Returns the mmse at levels of any shape, summed over the elements."""
        rho = np.asarray(rho, dtype=np.float64)
        with np.errstate(divide="ignore"):
            place = np.clip(np.log(rho), self.at[0], self.at[-1])
        k = np.clip(np.searchsorted(self.at, place, side="right") - 1, 0, self.at.size - 2)
        width = self.at[k + 1] - self.at[k]
        u = (place - self.at[k]) / width
        a, b = self.values[k], self.values[k + 1]
        da, db = width * self.slopes[k], width * self.slopes[k + 1]
        bulge = da * (1.0 - u) - db * u + (b - a) * (2.0 * u - 1.0)
        value = a * (1.0 - u) + b * u + u * (1.0 - u) * bulge
        with np.errstate(divide="ignore"):  # 1 at rho = inf, 0 at 0
            return np.exp(value) / (1.0 + self.square / rho**2)


def _slopes(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns slopes of a cubic that is monotone where the values are, [M]; flat at both ends."""
    widths, steps = np.diff(at), np.diff(values)
    secants = steps / widths
    slopes = np.zeros_like(values)
    # three-point slopes, exact for parabolas
    left, right = widths[:-1], widths[1:]
    inner = (secants[:-1] * right + secants[1:] * left) / (left + right)
    same = secants[:-1] * secants[1:] > 0.0
    least = 3.0 * np.minimum(np.abs(secants[:-1]), np.abs(secants[1:]))
    slopes[1:-1] = np.where(same, np.sign(inner) * np.minimum(np.abs(inner), least), 0.0)
    return slopes
