"""Quantiles of the beta distribution: the inverse of the regularised incomplete beta function."""

from __future__ import annotations

from math import lgamma

import numpy as np
from numpy.typing import ArrayLike

TINY = 1e-300


def beta_quantile(p: ArrayLike, a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns the x with I_x(a, b) = p, absolutely to 1e-12 and better; shape of p, float64.

    Newton's method inside a bracket that every evaluation narrows: a step that would leave it goes
    to its middle. For p > 1/2 the mirrored question is asked, I_{1-x}(b, a) = 1 - p, so that
    the probability is a small number, with all its digits.

    Args:
        p: probabilities in [0, 1].
        a: first shape parameter, positive.
        b: second shape parameter, positive.
    """
    p = np.asarray(p, dtype=np.float64)
    upper = p > 0.5
    q = np.where(upper, 1.0 - p, p)
    a, b = np.where(upper, b, a), np.where(upper, a, b)
    low, high = np.zeros_like(q), np.ones_like(q)
    x = 0.5 * (low + high)
    for _ in range(100):
        gap = incomplete_beta(x, a, b) - q
        low, high = np.where(gap < 0, x, low), np.where(gap < 0, high, x)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = x - gap * x * (1.0 - x) / np.exp(_log_powers(x, a, b))
        inside = (newton > low) & (newton < high)
        new = np.where(inside, newton, 0.5 * (low + high))
        moved = np.abs(new - x)
        x = new
        if ((moved <= 1e-15 * x) | (q == 0)).all():
            break
    x = np.where(q == 0, 0.0, x)
    return np.where(upper, 1.0 - x, x)


def incomplete_beta(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Returns I_x(a, b) = integral of u^(a-1) (1-u)^(b-1) from 0 to x, over that from 0 to 1.

    The continued fraction of Abramowitz & Stegun 26.5.8, evaluated forwards (Lentz); past the mean,
    where it converges slowly, 1 - I_{1-x}(b, a).

    Args:
        x: points in [0, 1].
        a: first shape parameter, positive; of x's shape or one number.
        b: second shape parameter, likewise.
    """
    x, a, b = np.broadcast_arrays(np.asarray(x, dtype=np.float64), a, b)
    past = x > (a + 1.0) / (a + b + 2.0)
    x = np.where(past, 1.0 - x, x)
    a, b = np.where(past, b, a), np.where(past, a, b)
    front = np.exp(_log_powers(x, a, b)) / a
    value = np.where(x > 0, front * _fraction(x, a, b), 0.0)
    return np.where(past, 1.0 - value, value)


def _fraction(x, a, b):
    """Returns 1 / (1 + d_1 / (1 + d_2 / ...)).

    d_{2m} = m (b - m) x / ((a + 2m - 1)(a + 2m)),
    d_{2m+1} = -(a + m)(a + b + m) x / ((a + 2m)(a + 2m + 1)).
    """
    value, up, down = np.ones_like(x), np.ones_like(x), np.zeros_like(x)
    for k in range(1, 5000):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        down = 1.0 + d * down
        down = 1.0 / np.where(np.abs(down) < TINY, TINY, down)
        up = 1.0 + d / up
        up = np.where(np.abs(up) < TINY, TINY, up)
        value = value * up * down
        if (np.abs(up * down - 1.0) < 4e-16).all():
            break
    return 1.0 / value


def _log_powers(x, a, b):
    """Returns the logarithm of x^a (1-x)^b / B(a, b): of the density times x (1 - x)."""
    log_gamma = np.vectorize(lgamma, otypes=[float])
    norm = log_gamma(a) + log_gamma(b) - log_gamma(a + b)
    with np.errstate(divide="ignore"):
        return a * np.log(x) + b * np.log1p(-x) - norm
