"""Least squares with weights that are not negative."""

from __future__ import annotations

import numpy as np


def nonnegative_least_squares(matrix: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns w [K] >= 0 that minimises |matrix w - wanted|^2.

    The active-set method of Lawson and Hanson (1974, "Solving least squares problems", chapter 23).
    At the minimum the gradient is 0 where w > 0 and not negative where w = 0.

    Args:
        matrix: [M, K].
        wanted: [M].

    Raises:
        ValueError: numbers that are not finite; shapes that disagree.
    """
    matrix, wanted = (np.asarray(part, dtype=np.float64) for part in (matrix, wanted))
    if matrix.ndim != 2 or wanted.shape != matrix.shape[:1]:
        raise ValueError(
            f"least squares: the matrix is {list(matrix.shape)}, but {list(wanted.shape)} values "
            "are wanted"
        )
    if not (np.isfinite(matrix).all() and np.isfinite(wanted).all()):
        raise ValueError("least squares: the matrix or the wanted values are not finite")
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    unit, count = matrix / scale, matrix.shape[1]
    w, free = np.zeros(count), np.zeros(count, dtype=bool)
    least = 1e-12 * max(float(np.abs(unit.T @ wanted).max(initial=0.0)), 1e-300)
    for _ in range(3 * count):
        gain = np.where(free, -np.inf, unit.T @ (wanted - unit @ w))
        chosen = int(gain.argmax())
        if not gain[chosen] > least:
            break
        free[chosen] = True
        w, free = _descended(unit, wanted, w, free)
    return w / scale


def _descended(
    unit: np.ndarray, wanted: np.ndarray, w: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (w, free) after a least-squares step over the free weights that keeps w >= 0."""
    while free.any():
        aim = np.zeros_like(w)
        aim[free] = np.linalg.lstsq(unit[:, free], wanted, rcond=None)[0]
        below = free & (aim <= 0.0)
        if not below.any():
            return aim, free
        # As far towards the aim as every weight stays at 0 or above; who arrives at 0 is bound.
        share = float((w[below] / np.maximum(w[below] - aim[below], 1e-300)).min())
        w = w + share * (aim - w)
        stopped = below & (w <= 1e-14 * max(float(w.max()), 1e-300))
        free = free & ~(stopped if stopped.any() else below)
        w = np.where(free, w, 0.0)
    return w, free
