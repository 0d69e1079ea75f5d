"""The cosine schedule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import UnitTime, check_inside, check_lams, check_times

# Nichol & Dhariwal clip the betas of their 1,000 steps at 0.999: log(alpha^2) falls by at most
# -log(1 - 0.999) per 1/1000 of time.
COSINE_STEEPEST = 1000 * np.log(1000.0)


def vp_cosine(s: float = 0.008, t_min: float = 1e-3) -> VPCosine:
    """Returns the cosine schedule, t in [0, 1].

    alpha = cos(u) / cos(u0), u = (pi/2) (t + s) / (1 + s), sigma^2 = 1 - alpha^2 (Nichol & Dhariwal
    2021, eq. 17). alpha(1) would be 0; the paper clips the betas of its 1,000 steps at 0.999. Here
    the same in continuous time: from the t (about 0.9997) at which -d log(alpha^2)/dt reaches
    1000 log(1000) on, log alpha goes straight on with that slope, so alpha and its derivative are
    continuous and alpha(1) is about 1.7e-4.

    Args:
        s: offset that keeps the noise of the first steps visible.
        t_min: least noisy time of a network call.

    Raises:
        ValueError: unless 0 <= s < 1 and 0 < t_min < 1.
    """
    if not 0 <= s < 1:
        raise ValueError(f"vp_cosine: s = {s}, but it must lie in [0, 1)")
    return VPCosine(float(s), check_inside("vp_cosine", "t_min", t_min))


@dataclass(frozen=True)
class VPCosine(UnitTime):
    """See `vp_cosine`."""

    s: float
    t_min: float = 1e-3

    builder = "vp_cosine"

    @property
    def kinks(self) -> tuple[float, ...]:
        """Returns the time from which on the slope of log(alpha) is held, alone."""
        return (float(self._t_clip),)

    @property
    def _w(self):
        return 0.5 * np.pi / (1.0 + self.s)

    @property
    def _t_clip(self):
        # -d log(alpha^2)/dt = 2 w tan(u) = 2 w / tan(w (1 - t))
        return 1.0 - np.arctan2(2.0 * self._w, COSINE_STEEPEST) / self._w

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns cos(u) / cos(u0), written as sin(pi/2 - u) / cos(u0), times the clipped tail."""
        t = check_times(self, t)
        base = np.sin(self._w * (1.0 - np.minimum(t, self._t_clip))) / np.cos(self._w * self.s)
        return base * np.exp(-0.5 * COSINE_STEEPEST * np.maximum(t - self._t_clip, 0.0))

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns sqrt(sin(u - u0) sin(u + u0)) / cos(u0): sqrt(1 - alpha^2), uncancelled."""
        t = check_times(self, t)
        inner = np.minimum(t, self._t_clip) * self._w
        s2 = np.sin(inner) * np.sin(inner + 2.0 * self._w * self.s) / np.cos(self._w * self.s) ** 2
        alpha2 = self.alpha(t) ** 2
        return np.sqrt(np.where(t > self._t_clip, 1.0 - alpha2, s2))[()]

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (-beta alpha / 2, beta alpha^2 / (2 sigma)), beta = min(2 w tan(u), steepest)."""
        t = check_times(self, t)
        rate = 2.0 * self._w / np.tan(self._w * (1.0 - np.minimum(t, self._t_clip)))
        alpha = self.alpha(t)
        with np.errstate(divide="ignore"):
            return -0.5 * rate * alpha, 0.5 * rate * alpha**2 / self.sigma(t)

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns atan2(sin(u - u0), cos(u - u0)) / w, with both from alpha and sigma."""
        lam = check_lams(self, lam)
        alpha2, sigma2 = np.exp(-np.logaddexp(0, -2 * lam)), np.exp(-np.logaddexp(0, 2 * lam))
        alpha, u0 = np.sqrt(alpha2), self._w * self.s
        c0, s0 = np.cos(u0), np.sin(u0)
        cos_u, sin_u = c0 * alpha, np.sqrt(s0**2 + c0**2 * sigma2)
        # (sin u - sin u0) + sin u0 (1 - alpha), each divided out of its cancellation
        gap = sigma2 * (c0**2 / (sin_u + s0) + s0 / (1.0 + alpha)) if s0 else sin_u
        t = np.arctan2(c0 * gap, cos_u * c0 + sin_u * s0) / self._w
        below = np.log(self.alpha(self._t_clip)) + 0.5 * np.logaddexp(0, -2 * lam)
        tail = self._t_clip + 2.0 * below / COSINE_STEEPEST
        return np.clip(np.where(t > self._t_clip, tail, t), 0.0, 1.0)[()]
