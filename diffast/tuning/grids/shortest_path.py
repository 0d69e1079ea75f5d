"""Grids as shortest paths: dynamic programs over candidate levels."""

from __future__ import annotations

import numpy as np


def shortest_path(cost: np.ndarray, steps: int, future: float = 1.0) -> np.ndarray:
    """Returns the nodes [steps+1], first and last included, of the cheapest path.

    Args:
        cost: [n, n], cost[i, j] of one step from node i to node j > i. Others are not read.
        steps: number of steps.
        future: factor on the cost of what follows a step (GITS: 1.15).

    Raises:
        ValueError: fewer nodes than steps need.
    """
    count = len(cost)
    if steps > count - 1:
        raise ValueError(f"grid: {steps} steps, but the pilot run has {count - 1} intervals")
    allowed = np.where(np.triu(np.ones((count, count), dtype=bool), 1), cost, np.inf)
    left = np.full(count, np.inf)
    left[-1] = 0.0
    choices = []
    for _ in range(steps):
        total = allowed + future * left[None, :]
        choices.append(total.argmin(axis=1))
        left = total.min(axis=1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array(path)


def klub(rho: np.ndarray, mmse: np.ndarray) -> np.ndarray:
    """Returns [n, n], the bound on the KL divergence that a step from rho[i] to rho[j] adds.

    The bound of Sabour et al. 2024 ("Align your steps") is the integral of rho^-3 E|D - D_i|^2.
    Posterior means are a martingale, E|D_t - D_s|^2 = mmse(s) - mmse(t), so for an exact network a
    step costs mmse(b) (a^-2 - b^-2) / 2 from b = rho[i] down to a = rho[j], less a difference of
    entropies, which does not depend on the grid. No network is called.
    """
    inverse = rho**-2
    return 0.5 * mmse[:, None] * (inverse[None, :] - inverse[:, None])
