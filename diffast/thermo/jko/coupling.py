"""Couplings of two sets of samples: which particle of the first goes to which of the second.

Optimal transport with the squared distance joins them. In one dimension it is the sorted order. In
more dimensions it is an assignment for equal counts, and a linear program for unequal ones.

"given" pairs the i-th of both sets: the same particles at two times. Under diffusion this is *not*
the transport plan, and a fit has to know the difference. Let x be a particle at time t, y the same
particle a short time tau later, f the drift and beta the temperature. The mean of y - x given x is
tau f. Given y it is tau (f - 2 beta grad log rho), the drift of the reversed process: there the
noise of the step is part of y. The mean over both ends is tau (f - beta grad log rho) = tau v, the
velocity that transport plans show. The trapezoid scheme averages over both ends, and takes either
coupling. The implicit scheme looks at y alone: with the same particles it finds 2 beta.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COUPLINGS = ("auto", "given", "ot", "1d")

# Rows of the linear program: more variables take minutes.
MOST_VARIABLES = 400_000
MOST_ASSIGNED = 6_000


class Coupling(NamedTuple):
    """Pairs of samples and their weights.

    Attributes:
        first: [P] int, numbers of samples of the first set.
        second: [P] int, of the second.
        weight: [P], of sum 1.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def couple(x: np.ndarray, y: np.ndarray, kind: str) -> Coupling:
    """Returns the coupling of samples x [n, d] and y [m, d].

    Args:
        x: samples at the earlier time.
        y: samples at the later one.
        kind: one of `COUPLINGS`; "auto": sorted for d = 1, else optimal transport.

    Raises:
        ValueError: "given" for unequal counts; "1d" for d > 1; too many samples for a transport.
        ImportError: d > 1 without scipy.
    """
    n, m, d = len(x), len(y), x.shape[1]
    if kind == "given":
        if n != m:
            raise ValueError(
                f"fit_jko: coupling = 'given' pairs sample i of both snapshots, but one has {n} "
                f"samples and the next {m}"
            )
        each = np.arange(n)
        return Coupling(each, each, np.full(n, 1.0 / n))
    if kind == "1d" and d != 1:
        raise ValueError(f"fit_jko: coupling = '1d' sorts numbers, but samples have {d} elements")
    if d == 1:
        return _sorted(x[:, 0], y[:, 0])
    return _assigned(x, y) if n == m else _transported(x, y)


def _sorted(x: np.ndarray, y: np.ndarray) -> Coupling:
    """Returns the monotone coupling; unequal counts share the mass of a sample out."""
    n, m = len(x), len(y)
    first, second = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    if n == m:
        return Coupling(first, second, np.full(n, 1.0 / n))
    # In whole numbers of 1 / (n m) nothing is rounded.
    ends = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    starts = np.concatenate([[0], ends[:-1]])
    return Coupling(first[starts // m], second[starts // n], (ends - starts) / (n * m))


def _costs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    middle = x.mean(0)
    a, b = x - middle, y - middle
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2.0 * a @ b.T


def _assigned(x: np.ndarray, y: np.ndarray) -> Coupling:
    if len(x) > MOST_ASSIGNED:
        raise ValueError(
            f"fit_jko: {len(x)} samples in {x.shape[1]} dimensions, but the assignment takes at "
            f"most {MOST_ASSIGNED}: take fewer samples, or coupling='given' for the same particles"
        )
    first, second = _optimize().linear_sum_assignment(_costs(x, y))
    return Coupling(first, second, np.full(len(x), 1.0 / len(x)))


def _transported(x: np.ndarray, y: np.ndarray) -> Coupling:
    n, m = len(x), len(y)
    if n * m > MOST_VARIABLES:
        raise ValueError(
            f"fit_jko: snapshots of {n} and {m} samples in {x.shape[1]} dimensions, but the linear "
            f"program of unequal counts takes {MOST_VARIABLES} pairs at most: take equal counts"
        )
    from scipy.sparse import coo_array

    pairs = np.arange(n * m)
    rows = np.concatenate([pairs // m, n + pairs % m])
    shape = (n + m, n * m)
    sums = coo_array((np.ones(2 * n * m), (rows, np.tile(pairs, 2))), shape=shape)
    mass = np.concatenate([np.full(n, 1.0 / n), np.full(m, 1.0 / m)])
    found = _optimize().linprog(_costs(x, y).ravel(), A_eq=sums.tocsr(), b_eq=mass, method="highs")
    if found.x is None:
        raise ValueError(f"fit_jko: no transport plan of {n} and {m} samples: {found.message}")
    kept = np.flatnonzero(found.x > 1e-12)
    return Coupling(kept // m, kept % m, found.x[kept] / found.x[kept].sum())


def _optimize():
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError(
            "fit_jko: transport in more than one dimension needs scipy: "
            "pip install 'diffast[thermo]'"
        ) from error
    return optimize
