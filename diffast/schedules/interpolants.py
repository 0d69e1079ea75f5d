"""Schedules whose start is noise alone, alpha = 0, and whose data are at t = 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import Family, UnitTime, check_inside, check_times, float64


def flow(t_min: float = 1e-3) -> Flow:
    """Returns the conditional optimal-transport schedule: alpha = 1 - t, sigma = t, t in [0, 1].

    Lipman et al. 2023, Liu et al. 2023, with noise at t = 1; alpha(1) = 0 exactly.

    Args:
        t_min: least noisy time of a network call.

    Raises:
        ValueError: unless 0 < t_min < 1.
    """
    return Flow(check_inside("flow", "t_min", t_min))


def trig(t_min: float = 1e-3) -> Trig:
    """Returns the trigonometric schedule: alpha = cos t, sigma = sin t, t in [0, pi/2].

    The variance-preserving angle (Salimans & Ho 2022, appendix D; "TrigFlow", Lu & Song 2025, with
    data of standard deviation 1). alpha(pi/2) = 0 exactly. Any list of variance-preserving noise
    levels is a list of its times, arctan(sigma / alpha).

    Args:
        t_min: least noisy time of a network call.

    Raises:
        ValueError: unless 0 < t_min < 1.
    """
    return Trig(check_inside("trig", "t_min", t_min))


@dataclass(frozen=True)
class Flow(UnitTime):
    """See `flow`."""

    t_min: float = 1e-3

    builder = "flow"

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns 1 - t."""
        return 1.0 - check_times(self, t)

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns t."""
        return +check_times(self, t)

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (-1, 1)."""
        t = check_times(self, t)
        return -np.ones_like(t)[()], np.ones_like(t)[()]

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns log(1 - t) - log(t)."""
        t = check_times(self, t)
        with np.errstate(divide="ignore"):
            return np.log1p(-t) - np.log(t)

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns 1 / (1 + exp(lam))."""
        return np.exp(-np.logaddexp(0.0, float64(lam)))


@dataclass(frozen=True)
class Trig(Family):
    """See `trig`."""

    t_min: float = 1e-3

    builder = "trig"
    t_start, t_end, domain = 0.5 * np.pi, 0.0, (0.0, 0.5 * np.pi)

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns cos(t), as sin(pi/2 - t): exactly 0 at the end."""
        return np.sin(self.t_start - check_times(self, t))

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns sin(t)."""
        return np.sin(check_times(self, t))

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (-sin(t), cos(t))."""
        return -self.sigma(t), self.alpha(t)

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns arctan(exp(-lam)), as the angle of (alpha, sigma): no lam is too large."""
        lam = float64(lam)
        alpha, sigma = np.logaddexp(0.0, -2.0 * lam), np.logaddexp(0.0, 2.0 * lam)
        return np.arctan2(np.exp(-0.5 * sigma), np.exp(-0.5 * alpha))
