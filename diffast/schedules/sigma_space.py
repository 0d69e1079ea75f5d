"""Schedules with alpha = 1, whose time is the noise level: variance exploding, and EDM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import Family, check_times, float64


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> SigmaSpace:
    """Returns the variance-exploding schedule: alpha = 1, sigma = t; t is the noise level itself.

    Song et al. 2021 walk it as sigma = sigma_min (sigma_max / sigma_min)^u: that is a grid
    (`grids.uniform_logsnr`), not another schedule.

    Args:
        sigma_min: least noise level of a network call, unit of the data.
        sigma_max: noise level at which sampling starts, unit of the data.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """
    return _sigma_space("ve", sigma_min, sigma_max)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> SigmaSpace:
    """Returns the EDM schedule: alpha = 1, sigma = t; t is the noise level itself.

    Karras et al. 2022, table 1. The same family as `ve`, with other ends.

    Args:
        sigma_min: least noise level of a network call, unit of the data.
        sigma_max: noise level at which sampling starts, unit of the data.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max.
    """
    return _sigma_space("edm", sigma_min, sigma_max)


@dataclass(frozen=True)
class SigmaSpace(Family):
    """See `edm` and `ve`. Any sigma >= 0 is a time; grids run from sigma_max to sigma_min."""

    sigma_min: float
    sigma_max: float

    builder = "sigma_space"
    t_end, domain = 0.0, (0.0, np.inf)

    @property
    def t_start(self) -> float:
        """Returns sigma_max."""
        return self.sigma_max

    @property
    def t_min(self) -> float:
        """Returns sigma_min."""
        return self.sigma_min

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns 1."""
        return np.ones_like(check_times(self, t))[()]

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns t."""
        return +check_times(self, t)

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (0, 1)."""
        t = check_times(self, t)
        return np.zeros_like(t)[()], np.ones_like(t)[()]

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns -log(t)."""
        with np.errstate(divide="ignore"):
            return -np.log(check_times(self, t))

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns exp(-lam)."""
        return np.exp(-float64(lam))


def _sigma_space(name, sigma_min, sigma_max):
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(
            f"{name}: sigma_min = {sigma_min} and sigma_max = {sigma_max}, "
            "but 0 < sigma_min < sigma_max"
        )
    return SigmaSpace(float(sigma_min), float(sigma_max))
