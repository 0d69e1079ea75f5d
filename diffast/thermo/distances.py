"""Distances between laws: W1 on the line and sliced, W2, and the chi-square of a wrong start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast.thermo.estimate import Estimate, mean_of
from diffast.thermo.mixture import GaussianMixture

Density = Callable[[np.ndarray], Any]

# How many directions a sliced distance averages over.
DIRECTIONS = 128


def wasserstein1(x: Any, y: Any, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """Returns W1 between two sets of samples: exact for one element a sample, else sliced.

    Sliced W1 is the mean of W1 over projections on random unit directions (Bonneel et al. 2015). It
    is smaller than W1: sqrt(d) times it is of the size of W1.

    Args:
        x: [N, ...] samples.
        y: [M, ...] samples of the same shape.
        directions: how many, where d > 1.
        seed: of the directions.

    Raises:
        ValueError: shapes that disagree; no samples; samples that are not finite.
    """
    first, second = rows_of("wasserstein1", x), rows_of("wasserstein1", y)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"wasserstein1: samples of {first.shape[1]} and of {second.shape[1]} elements"
        )
    ways = directions_of(first.shape[1], directions, seed)
    projected = zip((first @ ways).T, (second @ ways).T, strict=True)
    return float(np.mean([_on_line(a, b) for a, b in projected]))


def wasserstein1_of_cdfs(first: Density, second: Density, points: Any) -> float:
    """Returns W1 = int |F - G| dx of two distribution functions, by the trapezoidal rule.

    Args:
        first: F, a function of float64 points [N].
        second: G.
        points: [N], rising; both laws lie between the outer ones.
    """
    x = np.asarray(points, dtype=np.float64)
    gap = np.abs(np.asarray(first(x)) - np.asarray(second(x)))
    return _area(gap, x)


def wasserstein2(x: Any, y: Any) -> float:
    """Returns W2 between two sets of as many samples: sorted for one element, else by assignment.

    Args:
        x: [N, ...] samples.
        y: [N, ...] samples of the same shape; at most 5,000 where they have several elements.

    Raises:
        ImportError: several elements without scipy.
        ValueError: shapes that disagree; too many samples; samples that are not finite.
    """
    first, second = rows_of("wasserstein2", x), rows_of("wasserstein2", y)
    if first.shape != second.shape or len(first) > 5000 and first.shape[1] > 1:
        raise ValueError(
            f"wasserstein2: samples [{len(first)}, {first.shape[1]}] and [{len(second)}, "
            f"{second.shape[1]}], but as many of both are needed, 5,000 at most"
        )
    if first.shape[1] == 1:
        return float(np.sqrt(np.mean((np.sort(first, 0) - np.sort(second, 0)) ** 2)))
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError("wasserstein2: needs scipy: pip install 'diffast[thermo]'") from None
    cost = torch.cdist(torch.as_tensor(first), torch.as_tensor(second)).square().numpy()
    a, b = linear_sum_assignment(cost)
    return float(np.sqrt(cost[a, b].mean()))


def chi_square(
    made: GaussianMixture | Density, true: GaussianMixture | Density, points: Any = None
) -> float:
    """Returns Pearson's chi-square D_0 = int (p_made - p_true)^2 / p_true of two laws.

    In closed form where the true one is a single normal law and the other a mixture of such. D_0 =
    inf where the integral diverges: a variance of twice the true one, or more, in a direction. For
    N(a, 1) and N(0, 1) it is exp(a^2) - 1, for N(0, s^2) it is 1 / (s sqrt(2 - s^2)) - 1. 1 + D_0
    is a product over independent elements, so D_0 is large in many dimensions.
    Otherwise by the trapezoidal rule over points of the line.

    Args:
        made: the law that a run starts from: a mixture, or a density on points [N].
        true: the law that it should start from.
        points: [N], rising, for the trapezoidal rule; None: closed form.

    Raises:
        ValueError: no closed form and no points; laws of different dimensions; a true density that
            is 0 where the other is not.
    """
    mixtures = isinstance(made, GaussianMixture) and isinstance(true, GaussianMixture)
    if points is None:
        if not (mixtures and len(true.means) == 1):
            raise ValueError(
                "chi_square: a closed form is known for a GaussianMixture against a single normal "
                "law; for others of one element give points"
            )
        return _closed(made, true)
    x = np.asarray(points, dtype=np.float64)
    top, bottom = (_density(law, x) for law in (made, true))
    if bool(((bottom <= 0.0) & (top > 0.0)).any()):
        raise ValueError("chi_square: the true density is 0 at points where the other is not")
    share = np.divide((top - bottom) ** 2, bottom, out=np.zeros_like(top), where=bottom > 0.0)
    return _area(share, x)


def chi_square_of_samples(log_ratio: Any) -> Estimate:
    """Returns D_0 = E[p_made / p_true] - 1 over samples of the made law, with its standard error.

    Heavy tails of the ratio make the error itself uncertain: read it as a lower bound where it is
    not small.

    Args:
        log_ratio: [N] log(p_made / p_true) at samples of p_made.

    Raises:
        ValueError: as `df.thermo.mean_of`.
    """
    ratio = torch.as_tensor(log_ratio, dtype=torch.float64).exp()
    value, error, count = mean_of(ratio)
    return Estimate(value - 1.0, error, count)


def chi_square_of_kl(kl: float) -> float:
    """Returns 2 KL, the chi-square of two laws that are near each other; (G21).

    A second-order approximation, from below: D_0 >= exp(KL) - 1 always.
    """
    return 2.0 * float(kl)


def rows_of(who: str, x: Any) -> np.ndarray:
    """Returns samples [N, ...] as float64 [N, d]; ValueError if there are none or not finite."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().double().numpy()
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim == 0 or not rows.size:
        raise ValueError(f"{who}: there are no samples")
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise ValueError(f"{who}: samples are not finite")
    return rows


def directions_of(d: int, count: int, seed: int) -> np.ndarray:
    """Returns random unit directions [d, count]; [1, 1] of a 1 where d = 1."""
    if d == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).standard_normal((d, count))
    return drawn / np.linalg.norm(drawn, axis=0)


def _on_line(a, b):
    """Returns W1 of samples [N] and [M], the integral of |F - G|."""
    a, b = np.sort(a), np.sort(b)
    if len(a) == len(b):
        return np.abs(a - b).mean()
    both = np.sort(np.concatenate([a, b]))
    below = np.searchsorted(a, both[:-1], "right") / len(a)
    gap = below - np.searchsorted(b, both[:-1], "right") / len(b)
    return (np.abs(gap) * np.diff(both)).sum()


def _area(values, x):
    """Returns the integral by the trapezoidal rule; numpy's own has two names, by version."""
    return float((0.5 * (values[1:] + values[:-1]) * np.diff(x)).sum())


def _density(law, x):
    if isinstance(law, GaussianMixture):
        return law.log_density(torch.as_tensor(x)).exp().numpy()
    return np.asarray(law(x), dtype=np.float64)


def _closed(made, true):
    if made.d != true.d:
        raise ValueError(f"chi_square: laws of {made.d} and of {true.d} elements")

    def precision(law, k):
        return law.axes[k] @ torch.diag(1.0 / law.variances[k]) @ law.axes[k].T

    wanted, mean = precision(true, 0), true.means[0]
    own = [precision(made, k) for k in range(len(made.means))]
    total = -1.0
    for i, p in enumerate(own):
        for j, q in enumerate(own):
            inner = p + q - wanted
            if not bool((torch.linalg.eigvalsh(inner) > 0).all()):
                return math.inf
            pull = p @ made.means[i] + q @ made.means[j] - wanted @ mean
            rest = made.means[i] @ p @ made.means[i] + made.means[j] @ q @ made.means[j]
            power = pull @ torch.linalg.solve(inner, pull) - rest + mean @ wanted @ mean
            size = p.logdet() + q.logdet() - wanted.logdet() - inner.logdet()
            total += float(made.weights[i] * made.weights[j] * (0.5 * (size + power)).exp())
    return total
