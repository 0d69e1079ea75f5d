"""Schedules with beta(t) linear in t: variance preserving, and sub-VP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import UnitTime, check_inside, check_lams, check_times


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> VPLinear:
    """Returns the variance-preserving schedule with beta(t) linear in t, t in [0, 1].

    alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)), B(t) = beta_min t + (beta_max - beta_min) t^2 / 2
    (Song et al. 2021, "Score-based generative modeling through SDEs", appendix C).

    Args:
        beta_min: rate at t = 0, per unit of time.
        beta_max: rate at t = 1, per unit of time.
        t_min: least noisy time of a network call (1e-3 is what score_sde samples with).

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 < t_min < 1.
    """
    return _linear(VPLinear, beta_min, beta_max, t_min)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> SubVP:
    """Returns the sub-VP schedule, t in [0, 1]: alpha as in `vp_linear`, sigma = 1 - alpha^2.

    Song et al. 2021, appendix C: the standard deviation is the square of the VP one.

    Args:
        beta_min: rate at t = 0, per unit of time.
        beta_max: rate at t = 1, per unit of time.
        t_min: least noisy time of a network call.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 < t_min < 1.
    """
    return _linear(SubVP, beta_min, beta_max, t_min)


@dataclass(frozen=True)
class LinearRate(UnitTime):
    """A schedule with alpha = exp(-B/2), B the integral of a rate that is linear in t."""

    beta_min: float
    beta_max: float
    t_min: float = 1e-3

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns exp(-B/2)."""
        return np.exp(-0.5 * self._integral(t))

    def _integral(self: Any, t):
        t = check_times(self, t)
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _rate(self: Any, t):
        return self.beta_min + check_times(self, t) * (self.beta_max - self.beta_min)

    def _integral_time(self, b):
        """Returns the t with B(t) = b: the positive root, in the form that does not cancel."""
        low, high = self.beta_min, self.beta_max
        return np.minimum(2.0 * b / (low + np.sqrt(low**2 + 2.0 * (high - low) * b)), 1.0)


class VPLinear(LinearRate):
    """See `vp_linear`."""

    builder = "vp_linear"

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns sqrt(1 - exp(-B))."""
        return np.sqrt(-np.expm1(-self._integral(t)))

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (-beta alpha / 2, beta alpha^2 / (2 sigma)); the latter is inf at t = 0."""
        alpha, beta = self.alpha(t), self._rate(t)
        with np.errstate(divide="ignore"):
            return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t)

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns -(B + log(1 - exp(-B))) / 2."""
        b = self._integral(t)
        with np.errstate(divide="ignore"):
            return -0.5 * (b + np.log(-np.expm1(-b)))

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns t with B(t) = log(1 + exp(-2 lam))."""
        return self._integral_time(np.logaddexp(0.0, -2.0 * check_lams(self, lam)))


class SubVP(LinearRate):
    """See `sub_vp`."""

    builder = "sub_vp"

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns 1 - exp(-B)."""
        return -np.expm1(-self._integral(t))

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (-beta alpha / 2, beta alpha^2)."""
        alpha, beta = self.alpha(t), self._rate(t)
        return -0.5 * beta * alpha, beta * alpha**2

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns -log(2 sinh(B/2)) = -B/2 - log(1 - exp(-B))."""
        b = self._integral(t)
        with np.errstate(divide="ignore"):
            return -0.5 * b - np.log(-np.expm1(-b))

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns t with B(t) = 2 asinh(exp(-lam) / 2)."""
        return self._integral_time(2.0 * np.arcsinh(0.5 * np.exp(-check_lams(self, lam))))


def _linear(kind, beta_min, beta_max, t_min):
    if not 0 < beta_min <= beta_max < np.inf:
        raise ValueError(
            f"{kind.builder}: beta_min = {beta_min} and beta_max = {beta_max}, but 0 < beta_min <= "
            "beta_max"
        )
    return kind(float(beta_min), float(beta_max), check_inside(kind.builder, "t_min", t_min))
