"""Step sizes that minimise a solver's global error, from errors of single steps with their signs.

Let one step of length h at level l, followed by the exact flow, move the end point by h^(p+1) g_l.
A run with local step sizes h(l) then ends off by the integral of h^p g over l = log(rho), and its
mean square is the double integral of h^p K h^p with K(l, m) = E<g_l, g_m> / d. Errors of different
levels may cancel: K has negative values. Norms of single errors, which dynamic programs add up,
cannot say so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class StepDensity(NamedTuple):
    """What `minimise` returns.

    Attributes:
        density: steps per unit of log(rho) in each interval, [m].
        predicted: the rms error of the end point that the kernel expects, in the data's unit.
    """

    density: np.ndarray
    predicted: float


def minimise(
    kernel: np.ndarray,
    widths: np.ndarray,
    order: int,
    steps: int,
    *,
    caution: float = 0.1,
    uniform: float = 0.02,
    iterations: int = 500,
) -> StepDensity:
    """Returns the step density that minimises the kernel's error for a number of steps.

    Gradient descent on the logarithm of the error with steps that grow until the error does not
    fall, from even steps. (The fixed point h^(p+1) proportional to 1 / (K h^p), where the
    derivative vanishes, does not converge where K h^p changes its sign.)

    Args:
        kernel: K [m, m].
        widths: lengths [m] of the intervals of log(rho) that its entries stand for.
        order: p, of the solver.
        steps: number of steps.
        caution: how many times the kernel's diagonal is added to it. The model expects errors of
            different levels to cancel to the last digit; long steps do not. Much of it (1 and more)
            suits few steps.
        uniform: share of the density that is spread evenly.
        iterations: most steps of the descent.
    """
    cautious = kernel + caution * np.diag(np.diag(kernel))
    even = widths / widths.sum()

    def shares(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = np.exp(theta - theta.max())
        q /= q.sum()
        return q, (1.0 - uniform) * q + uniform * even

    def error(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the mean square error, and the gradient of its logarithm by theta."""
        q, share = shares(theta)
        h = widths / (steps * share)
        pulled = cautious @ (widths * h**order)
        value = max(float((widths * h**order) @ pulled), np.finfo(np.float64).tiny)
        by_share = -2.0 * order * pulled * widths * h**order / share * (1.0 - uniform)
        return value, q * (by_share - q @ by_share) / value

    theta, length = np.log(even), 1.0
    value, gradient = error(theta)
    for _ in range(iterations):
        new, (new_value, new_gradient) = theta, (np.inf, gradient)
        while new_value >= value and length > 1e-9:
            new = theta - length * gradient
            new_value, new_gradient = error(new)
            length *= 0.5
        if new_value >= value:
            break
        theta, value, gradient, length = new, new_value, new_gradient, 3.0 * length
    share = shares(theta)[1]
    moved = widths * (widths / (steps * share)) ** order
    return StepDensity(steps * share / widths, float(np.sqrt(max(moved @ kernel @ moved, 0.0))))
