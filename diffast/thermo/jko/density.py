"""grad log rho of samples and its divergence.

Score matching in a linear family needs no density, and is what `fit_jko` does where nothing is
said. Otherwise a density is estimated: by kernels, as a mixture, or as one Gaussian.

A kernel density smooths rho by its bandwidth, so its gradient is too small. A fit that reads it as
grad log rho (form "least squares") therefore finds too high a temperature. A fit that only projects
on it (form "weak") does not: see equations.py. For that the value at a sample must not contain the
sample itself, which is left out here; score matching leaves out a fifth of the samples in turn. A
mixture errs the other way: it follows its own samples.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, comb
from typing import Any

import numpy as np

from diffast.thermo.jko.potentials import Features, divergence_of, polynomials

DENSITIES = ("kde", "gmm", "gaussian")

# Samples of a kernel density: 300 MB.
MOST_KERNELS = 6_000

# Components of the mixture, as the published code has, and rounds of its expectation maximisation.
COMPONENTS, ROUNDS = 10, 60

# Fewest samples of a density estimate; a mixture needs so many a component.
FEWEST = 20

# Score matching leaves out one part in so many of the samples, those where it is evaluated: a
# score that was fitted to the very samples is too large there, and the temperature too low.
FOLDS = 5

# Fewest numbers, samples times elements, for each feature of score matching.
NUMBERS = 10

# A score [n, d] and its divergence [n].
Score = tuple[np.ndarray, np.ndarray]
Density = str | Features | Callable[[np.ndarray, float], Any]


def score_of(x: np.ndarray, t: float, density: Density) -> Score:
    """Returns grad log rho [n, d] at the samples themselves, and its divergence [n].

    Args:
        x: samples [n, d].
        t: their time.
        density: one of `DENSITIES`, or a function that returns grad log rho [n, d] at points [n, d]
            and a time.

    Raises:
        ValueError: too few samples; samples that lie in fewer than d dimensions; a function that
            returns another shape.
    """
    n, d = x.shape
    if isinstance(density, Features):
        return _matched(x, t, density)
    if callable(density):
        return _called(x, t, density)
    needed = max(FEWEST, 2 * d) if density != "gaussian" else d + 1
    if n < needed:
        raise ValueError(
            f"fit_jko: a snapshot has {n} samples, but density = {density!r} needs {needed} in "
            f"{d} dimensions"
        )
    covariance = np.atleast_2d(np.cov(x.T, ddof=0))
    values = np.linalg.eigvalsh(covariance)
    if not values[0] > 1e-12 * values[-1]:
        raise ValueError(
            f"fit_jko: the samples at t = {t:g} lie in fewer than {d} dimensions: the variances "
            f"along their axes are {values[0]:.2g} to {values[-1]:.2g}, and there is no density"
        )
    if density == "kde":
        if n > MOST_KERNELS:
            raise ValueError(
                f"fit_jko: a snapshot has {n} samples, but density = 'kde' holds all pairs of them "
                f"and takes at most {MOST_KERNELS}: density='auto' takes any number"
            )
        return _kernel(x, covariance)
    components = 1 if density == "gaussian" else max(1, min(COMPONENTS, n // (FEWEST * d)))
    return _mixture(x, covariance, components)


def matching(count: int, d: int, degree: int) -> Features:
    """Returns polynomials for score matching: two degrees above `degree`, or as many samples allow.

    Raises:
        ValueError: too few samples for those of degree 2.
    """
    for most in range(max(degree, 2) + 2, 1, -1):
        features = polynomials(most)
        if count * d >= NUMBERS * (comb(d + most, most) - 1):
            return features
    raise ValueError(
        f"fit_jko: the smallest snapshot has {count} samples, but grad log rho in {d} dimensions "
        f"needs {ceil(NUMBERS * (comb(d + 2, 2) - 1) / d)}"
    )


def _called(x: np.ndarray, t: float, density: Callable[[np.ndarray, float], Any]) -> Score:
    def found(points):
        made = np.asarray(density(points, t), dtype=np.float64)
        if made.shape != points.shape:
            raise ValueError(
                f"fit_jko: density returned {list(made.shape)} at points {list(points.shape)}, but "
                "it must return grad log rho there, of the same shape"
            )
        return made

    return found(x), divergence_of(lambda points: found(points)[:, :, None], x)[:, 0]


def _matched(x: np.ndarray, t: float, features: Features) -> Score:
    """Returns the sum of the features' gradients that is nearest to grad log rho in L2(rho).

    By parts E[g grad log rho] = -E[div g], so no density is estimated: score matching (Hyvarinen
    2005) in a linear family.
    """
    g, spread = features.gradient(x, t), features.laplacian(x, t)
    n, _, count = g.shape
    if n * x.shape[1] < NUMBERS * count:
        raise ValueError(
            f"fit_jko: a snapshot has {n} samples, but the score of {count} features in "
            f"{x.shape[1]} dimensions needs {ceil(NUMBERS * count / x.shape[1])}"
        )
    score, divergence = np.empty_like(x), np.empty(n)
    for fold in range(FOLDS):
        own = np.arange(n) % FOLDS == fold
        flat = g[~own].reshape(-1, count)
        gram = flat.T @ flat / np.sum(~own)
        size = np.sqrt(np.diag(gram)) + 1e-300
        gram = gram / size[:, None] / size + 1e-9 * np.eye(count)
        weights = np.linalg.solve(gram, -spread[~own].mean(0) / size) / size
        score[own], divergence[own] = g[own] @ weights, spread[own] @ weights
    return score, divergence


def _kernel(x: np.ndarray, covariance: np.ndarray) -> Score:
    """Returns those of Gaussian kernels with Silverman's bandwidth, each without its own sample."""
    n, d = x.shape
    inverse = np.linalg.inv(covariance * (4.0 / ((d + 2.0) * n)) ** (2.0 / (d + 4.0)))
    half = x @ np.linalg.cholesky(inverse)
    squares = np.square(half).sum(1)
    logs = -0.5 * np.maximum(squares[:, None] + squares - 2.0 * half @ half.T, 0.0)
    np.fill_diagonal(logs, -np.inf)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    pulled = x @ inverse
    score = weights @ pulled - pulled
    lengths = np.square(pulled).sum(1)
    # E |a|^2 of the pull a = inverse (x_j - x_i) of the neighbours
    spread = weights @ lengths - 2.0 * (pulled * (weights @ pulled)).sum(1) + lengths
    return score, spread - np.square(score).sum(1) - np.trace(inverse)


def _mixture(x: np.ndarray, covariance: np.ndarray, components: int) -> Score:
    """Returns those of a mixture of Gaussians, fitted by expectation maximisation."""
    n, d = x.shape
    drawn = np.random.default_rng(0)
    means, covariances = x.mean(0)[None], covariance[None]
    shares = np.ones(1)
    if components > 1:
        means = _spread_out(x, covariance, components, drawn)
        covariances = np.repeat(covariance[None] / components ** (2.0 / d), components, 0)
        shares = np.full(components, 1.0 / components)
        floor = 1e-3 * covariance
        for _ in range(ROUNDS):
            taken = _belonging(x, shares, means, covariances)[0]  # [n, K]
            mass = taken.sum(0) + 1e-12
            shares, means = mass / n, taken.T @ x / mass[:, None]
            apart = x[:, None] - means
            covariances = np.einsum("nk,nki,nkj->kij", taken, apart, apart) / mass[:, None, None]
            covariances += floor
    taken, pulls, inverses = _belonging(x, shares, means, covariances)
    score = np.einsum("nk,nki->ni", taken, pulls)
    spread = np.einsum("nk,nki->n", taken, np.square(pulls))
    own = taken @ np.trace(inverses, axis1=1, axis2=2)
    return score, spread - np.square(score).sum(1) - own


def _spread_out(x, covariance, components, drawn) -> np.ndarray:
    """Returns samples far from each other: the start of k-means++."""
    half = x @ np.linalg.cholesky(np.linalg.inv(covariance))
    chosen = [int(drawn.integers(len(x)))]
    nearest = np.square(half - half[chosen[0]]).sum(1)
    while len(chosen) < components:
        chosen.append(int(drawn.choice(len(x), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, np.square(half - half[chosen[-1]]).sum(1))
    return x[chosen]


def _belonging(x, shares, means, covariances):
    """Returns (P(component | x) [n, K], each component's score [n, K, d], inverses [K, d, d])."""
    inverses = np.linalg.inv(covariances)
    pulls = -np.einsum("kij,nkj->nki", inverses, x[:, None] - means)
    logs = 0.5 * np.einsum("nki,nki->nk", pulls, x[:, None] - means)
    logs = logs + np.log(shares) - 0.5 * np.linalg.slogdet(covariances)[1]
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True), pulls, inverses
