"""`tail_shape`: whether a mean of weights exists in practice, told by the largest of them."""

from __future__ import annotations

import numpy as np
import torch

# Vehtari et al. 2024: with a shape above this the mean of weights converges too slowly to be used,
# and its standard error is too small.
HEAVY = 0.7


def tail_shape(logs: torch.Tensor) -> float:
    """Returns the shape k of the generalised Pareto law of the largest weights exp(logs).

    Moments of order 1/k and more do not exist: k < 1/2 for a finite variance. Fitted to the largest
    min(N/5, 3 sqrt N) of N weights as in Pareto smoothed importance sampling (Vehtari et al. 2024,
    "Pareto smoothed importance sampling", with the estimator of Zhang and Stephens 2009).

    Args:
        logs: [N] logarithms of weights.

    Returns:
        k; NaN where fewer than 25 weights are given or the largest are all equal.
    """
    weights = (logs - logs.max()).double().exp().sort().values.numpy()
    count = len(weights)
    size = int(min(0.2 * count, 3.0 * np.sqrt(count)))
    if size < 5:
        return float("nan")
    excess = weights[-size:] - weights[-size - 1]
    excess = excess[excess > 0.0]
    if len(excess) < 5:
        return float("nan")
    n = len(excess)
    quarter = excess[int(n / 4 + 0.5) - 1]
    number = 30 + int(np.sqrt(n))
    j = np.arange(1, number + 1) - 0.5
    b = 1.0 / excess[-1] + (1.0 - np.sqrt(number / j)) / (3.0 * quarter)
    k = np.log1p(-b[:, None] * excess).mean(1)
    likelihood = n * (np.log(-b / k) - k - 1.0)
    share = np.exp(likelihood - likelihood.max())
    best = float((b * share).sum() / share.sum())
    shape = float(np.log1p(-best * excess).mean())
    # a weak prior towards 1/2, which matters for few weights alone
    return (shape * n + 5.0) / (n + 10.0)
