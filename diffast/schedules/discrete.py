"""The schedule of a model trained on discrete steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import check_lams, check_times


def from_betas(betas: ArrayLike) -> FromBetas:
    """Returns the schedule of a model trained on N discrete steps; t is the index, -1 to N-1.

    alpha_i^2 = prod_{j<=i} (1 - beta_j), sigma_i^2 = 1 - alpha_i^2 at the indices (Ho et al. 2020);
    lam is linear in t between them. t = -1 is the clean end (alpha = 1, sigma = 0), where DDIM with
    `set_alpha_to_one` stops; between -1 and 0 sigma^2 is linear in t. A last beta of exactly 1
    (zero terminal SNR, Lin et al. 2024) gives alpha = 0 at N-1, with alpha/sigma linear in t from
    N-2 on.

    Args:
        betas: [N] float64, the variance added by each training step.

    Raises:
        ValueError: unless betas is one-dimensional, N >= 2, 0 < beta < 1 (the last one may be 1).
    """
    return FromBetas(tuple(check_betas("from_betas", betas).tolist()))


def zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """Returns the betas rescaled so that alpha = 0 after the last step; [N] float64.

    alpha_i -> (alpha_i - alpha_{N-1}) alpha_0 / (alpha_0 - alpha_{N-1}), alpha_i^2 the product of
    1 - beta_j up to i (Lin et al. 2024, "Common diffusion noise schedules and sample steps are
    flawed", algorithm 1): the first beta stays, the last becomes exactly 1. In terms of
    q_i = (alpha_{i-1} - alpha_i) / (alpha_{i-1} - alpha_{N-1}) the new beta is q_i (2 - q_i).
    For models trained on such betas; `from_betas` takes the result.

    Args:
        betas: [N], the variance added by each training step.

    Raises:
        ValueError: betas that `from_betas` refuses.
    """
    betas = np.array(check_betas("zero_terminal_snr", betas))
    with np.errstate(divide="ignore"):
        alpha = np.exp(0.5 * np.cumsum(np.log1p(-betas)))
    falls = alpha[:-1] * betas[1:] / (1.0 + np.sqrt(1.0 - betas[1:]))  # alpha_{i-1} - alpha_i
    left = np.cumsum(falls[::-1])[::-1]  # alpha_{i-1} - alpha_{N-1}
    q = falls / left
    betas[1:] = q * (2.0 - q)
    return betas


@dataclass(frozen=True)
class FromBetas:
    """See `from_betas`."""

    betas: tuple[float, ...] = field(repr=False)
    timesteps: int = field(init=False, compare=False)
    _lam: np.ndarray = field(init=False, compare=False, repr=False)

    t_end, t_min = -1.0, 0.0

    def __post_init__(self):
        """Tabulates lam at the indices; log(alpha^2) is a sum of log1p, so early ones are exact."""
        with np.errstate(divide="ignore"):
            log_alpha2 = np.cumsum(np.log1p(-np.asarray(self.betas)))
            lam = 0.5 * (log_alpha2 - np.log(-np.expm1(log_alpha2)))
        lam.flags.writeable = False
        object.__setattr__(self, "timesteps", len(self.betas))
        object.__setattr__(self, "_lam", lam)

    @property
    def t_start(self) -> float:
        """Returns the last index, N - 1."""
        return self.timesteps - 1.0

    @property
    def domain(self) -> tuple[float, float]:
        """Returns (-1, N - 1)."""
        return (-1.0, self.timesteps - 1.0)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Returns the indices, at each of which the slope of lam changes."""
        return tuple(np.arange(self.timesteps - 1.0))

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns sqrt(1 / (1 + exp(-2 lam)))."""
        return np.exp(-0.5 * np.logaddexp(0.0, -2.0 * self.lam(t)))

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns sqrt(1 / (1 + exp(2 lam)))."""
        return np.exp(-0.5 * np.logaddexp(0.0, 2.0 * self.lam(t)))

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (alpha sigma^2 lam', -sigma alpha^2 lam'); at an index, as just above it."""
        t = check_times(self, t)
        alpha, sigma, first = self.alpha(t), self.sigma(t), self._sigma2_first
        slope = np.diff(self._lam)[np.clip(np.floor(t).astype(int), 0, self.timesteps - 2)]
        with np.errstate(invalid="ignore", divide="ignore"):
            # where alpha/sigma is linear, alpha lam' = -sigma exp(lam_{N-2})
            gain = np.where(np.isinf(slope), -sigma * np.exp(self._lam[-2]), alpha * slope)
            dalpha = np.where(t < 0, -0.5 * first / alpha, sigma**2 * gain)
            dsigma = np.where(t < 0, 0.5 * first / sigma, -sigma * alpha * gain)
        return dalpha[()], dsigma[()]

    @property
    def _finite(self):
        return self.timesteps - int(np.isinf(self._lam[-1]))

    @property
    def _sigma2_first(self):
        return np.exp(-np.logaddexp(0.0, 2.0 * self._lam[0]))

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns lam, linear between the indices; below 0 that of sigma^2 = sigma_0^2 (t + 1)."""
        t = check_times(self, t)
        finite = self._finite
        lam = np.interp(t, np.arange(finite), self._lam[:finite])
        s2 = self._sigma2_first * np.minimum(t + 1.0, 1.0)
        with np.errstate(divide="ignore"):
            lam = np.where(t < 0, 0.5 * (np.log1p(-s2) - np.log(s2)), lam)
            if finite < self.timesteps:
                last = self._lam[-2] + np.log(np.minimum(self.t_start - t, 1.0))
                lam = np.where(t > self.timesteps - 2, last, lam)
        return lam[()]

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns the fractional index at which lam stands."""
        lam = check_lams(self, lam)
        finite = self._finite
        t = np.interp(-lam, -self._lam[:finite], np.arange(finite))
        below = np.exp(-np.logaddexp(0.0, 2.0 * np.maximum(lam, self._lam[0])))
        t = np.where(lam > self._lam[0], below / self._sigma2_first - 1.0, t)
        if finite < self.timesteps:
            last = self.t_start - np.exp(np.minimum(lam - self._lam[-2], 0.0))
            t = np.where(lam < self._lam[-2], last, t)
        return t[()]

    def to_dict(self) -> dict:
        """Returns the schedule as a dict that JSON can hold; `from_dict` reads it."""
        return {"name": "from_betas", "betas": list(self.betas)}


def check_betas(name: str, betas: ArrayLike) -> np.ndarray:
    """Returns betas as [N] float64; see `from_betas` for what raises ValueError."""
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"{name}: betas has shape {betas.shape}, but it must be [N], N >= 2")
    wrong = ~((betas > 0) & (betas < 1))
    wrong[-1] &= betas[-1] != 1
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"{name}: betas[{i}] = {betas[i]}, but it must lie in (0, 1)")
    return betas
