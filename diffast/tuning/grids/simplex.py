"""A grid refined with the solver itself: Nelder and Mead's simplex search over its steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def simplex_search(
    function: Callable[[np.ndarray], float],
    start: np.ndarray,
    size: float = 0.3,
    evaluations: int = 300,
    tolerance: float = 1e-4,
) -> tuple[np.ndarray, float]:
    """Returns (point, value) of a minimum, by Nelder and Mead 1965 with adaptive coefficients.

    The coefficients are those of Gao and Han 2012 for many dimensions. A value that is not finite
    counts as infinite. Deterministic.

    Args:
        function: of a point [n].
        start: the first point [n].
        size: the simplex's other points are the start with `size` added to one coordinate.
        evaluations: most calls of the function.
        tolerance: the search ends where the values of the simplex differ by less, relatively.
    """
    count, used = len(start), 0

    def value_at(point: np.ndarray) -> float:
        nonlocal used
        used += 1
        value = float(function(point))
        return value if np.isfinite(value) else np.inf

    points = [np.array(start, dtype=np.float64)]
    points += [points[0] + size * row for row in np.eye(count)]
    values = [value_at(point) for point in points]
    expand, contract, shrink = 1.0 + 2.0 / count, 0.75 - 0.5 / count, 1.0 - 1.0 / count
    if count == 1:
        expand, contract, shrink = 2.0, 0.5, 0.5
    while used < evaluations:
        order = np.argsort(values, kind="stable")
        points, values = [points[k] for k in order], [values[k] for k in order]
        if values[-1] - values[0] <= tolerance * abs(values[0]):
            break
        centre = np.mean(points[:-1], axis=0)
        away = centre - points[-1]
        reflected = value_at(centre + away)
        if reflected < values[0]:
            far = value_at(centre + expand * away)
            new, value = (expand, far) if far < reflected else (1.0, reflected)
        elif reflected < values[-2]:
            new, value = 1.0, reflected
        else:
            new = contract if reflected < values[-1] else -contract
            value = value_at(centre + new * away)
            if value >= min(reflected, values[-1]):
                for k in range(1, count + 1):
                    points[k] = points[0] + shrink * (points[k] - points[0])
                    values[k] = value_at(points[k])
                continue
        points[-1], values[-1] = centre + new * away, value
    best = int(np.argmin(values))
    return points[best], values[best]


def polished_levels(
    error: Callable[[np.ndarray], float],
    rho: np.ndarray,
    evaluations: int = 300,
) -> tuple[np.ndarray, float]:
    """Returns (levels, error): the levels between the first and the last one, refined.

    What is searched are the logarithms of the steps in log(rho), up to their sum.

    Args:
        error: of levels rho [N+1] from high to low.
        rho: the levels to start from.
        evaluations: most calls of `error`.
    """
    lengths = -np.diff(np.log(rho))
    if len(lengths) < 2:
        return rho, float(error(rho))

    def levels(theta: np.ndarray) -> np.ndarray:
        share = np.exp(np.append(theta, 0.0) - max(theta.max(), 0.0))
        share = np.cumsum(share) / share.sum()
        made = rho[0] * np.exp(-share * lengths.sum())
        return np.concatenate([rho[:1], made[:-1], rho[-1:]])

    start = np.log(lengths[:-1] / lengths[-1])
    theta, value = simplex_search(lambda theta: error(levels(theta)), start, 0.3, evaluations)
    return levels(theta), value
