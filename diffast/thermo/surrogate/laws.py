"""Laws of one coordinate: shapes of variance 1 whose loss curves are known, on any scale."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from diffast.thermo.mixture import GaussianMixture

# Relative noise levels of the tables. Outside the curves are straight lines in log(mmse).
_LOW, _HIGH, _LEVELS, _POINTS = 1e-3, 1e3, 201, 1001


class Law(NamedTuple):
    """A mixture of Gaussians on a line, of mean 0 and variance 1.

    Attributes:
        name: of the shape.
        weights, means, variances: [C] of the components.
    """

    name: str
    weights: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]


def modes(width: float) -> Law:
    """Returns two equal modes of a deviation `width` < 1 each."""
    apart = math.sqrt(1.0 - width**2)
    return Law(f"two modes, width {width:g}", (0.5, 0.5), (-apart, apart), (width**2,) * 2)


def uneven(share: float, width: float) -> Law:
    """Returns two modes of weights `share` and 1 - share and a deviation `width` each."""
    apart = math.sqrt((1.0 - width**2) / (share * (1.0 - share)))
    return Law(
        f"modes {share:g} : {1 - share:g}, width {width:g}",
        (share, 1.0 - share),
        ((share - 1.0) * apart, share * apart),
        (width**2,) * 2,
    )


def sparse(share: float, width: float) -> Law:
    """Returns a narrow normal at 0 of deviation `width`, and a wide one of weight `share`."""
    wide = (1.0 - (1.0 - share) * width**2) / share
    return Law(f"sparse, {share:g} wide", (1.0 - share, share), (0.0, 0.0), (width**2, wide))


NORMAL = Law("normal", (1.0,), (0.0,), (1.0,))
"""The normal law: its flow is linear."""

FAMILIES = (
    (NORMAL, *(modes(width) for width in (0.7, 0.5, 0.3, 0.15, 0.05))),
    (NORMAL, *(uneven(0.2, width) for width in (0.4, 0.1))),
    (NORMAL, *(sparse(share, 0.1) for share in (0.3, 0.1))),
)
"""Families of shapes: data that fall into two equal clusters, into a large and a small one, and
data that are mostly near 0. Their loss curves are alike, their flows are not."""


@lru_cache(maxsize=64)
def _table(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Returns (log rho, log mmse) of a law of variance 1."""
    rho = np.geomspace(_LOW, _HIGH, _LEVELS)
    if law == NORMAL:
        mmse = rho**2 / (1.0 + rho**2)
    else:
        mmse = GaussianMixture(*law[1:]).mmse(rho, points=_POINTS)
    return np.log(rho), np.log(mmse)


def mmse_of(law: Law, scale: np.ndarray | float, rho: np.ndarray) -> np.ndarray:
    """Returns the loss of the exact x0 estimate at levels rho [M], for a law times `scale`.

    With c the scale this is c^2 mmse(rho / c).
    """
    log_rho, log_mmse = _table(law)
    asked = np.log(np.asarray(rho, dtype=np.float64) / scale)
    inner = np.interp(asked, log_rho, log_mmse)
    slope = (log_mmse[1] - log_mmse[0]) / (log_rho[1] - log_rho[0])
    inner = np.where(asked < log_rho[0], log_mmse[0] + slope * (asked - log_rho[0]), inner)
    inner = np.where(asked > log_rho[-1], 0.0, inner)  # the variance
    return scale**2 * np.exp(inner)
