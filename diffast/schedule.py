"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, as frozen dataclasses of plain numbers.

Every schedule answers, for a float64 scalar or array of its model time t:

    alpha(t), sigma(t)      signal and noise level, sigma in the unit of the data
    derivatives(t)          (dalpha/dt, dsigma/dt), analytic
    lam(t)                  log(alpha / sigma), half the log-SNR: inf where sigma = 0
    time(lam)               the inverse of lam, in closed form
    domain                  (lowest t, highest t) at which the formulas hold
    t_start                 the noisiest time, where sampling starts
    t_end                   the clean end: alpha = 1 and sigma = 0 in every schedule of this file
    t_min                   the least noisy time at which grids in log-SNR call the network

A time outside `domain`, or a lam no time of the domain has, raises ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Nichol & Dhariwal clip the betas of their 1,000 steps at 0.999: log(alpha^2) falls by at most
# -log(1 - 0.999) per 1/1000 of time.
COSINE_STEEPEST = 1000 * np.log(1000.0)


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
    _check_betas("vp_linear", beta_min, beta_max, t_min)
    return VPLinear(float(beta_min), float(beta_max), float(t_min))


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
    _check_t_min("vp_cosine", t_min)
    return VPCosine(float(s), float(t_min))


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
    _check_betas("sub_vp", beta_min, beta_max, t_min)
    return SubVP(float(beta_min), float(beta_max), float(t_min))


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


def flow(t_min: float = 1e-3) -> Flow:
    """Returns the conditional optimal-transport schedule: alpha = 1 - t, sigma = t, t in [0, 1].

    Lipman et al. 2023, Liu et al. 2023, with noise at t = 1; alpha(1) = 0 exactly.

    Args:
        t_min: least noisy time of a network call.

    Raises:
        ValueError: unless 0 < t_min < 1.
    """
    _check_t_min("flow", t_min)
    return Flow(float(t_min))


def from_betas(betas: np.ndarray) -> FromBetas:
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
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"from_betas: betas has shape {betas.shape}, but it must be [N], N >= 2")
    wrong = ~((betas > 0) & (betas < 1))
    wrong[-1] &= betas[-1] != 1
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"from_betas: betas[{i}] = {betas[i]}, but it must lie in (0, 1)")
    return FromBetas(tuple(betas.tolist()))


@dataclass(frozen=True)
class VPLinear:
    """See `vp_linear`."""

    beta_min: float
    beta_max: float
    t_min: float = 1e-3

    t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)

    def alpha(self, t):
        """Returns exp(-B/2)."""
        return np.exp(-0.5 * _integral(self, t))

    def sigma(self, t):
        """Returns sqrt(1 - exp(-B))."""
        return np.sqrt(-np.expm1(-_integral(self, t)))

    def derivatives(self, t):
        """Returns (-beta alpha / 2, beta alpha^2 / (2 sigma)); the latter is inf at t = 0."""
        alpha, beta = self.alpha(t), _rate(self, t)
        with np.errstate(divide="ignore"):
            return -0.5 * beta * alpha, 0.5 * beta * alpha**2 / self.sigma(t)

    def lam(self, t):
        """Returns -(B + log(1 - exp(-B))) / 2."""
        b = _integral(self, t)
        with np.errstate(divide="ignore"):
            return -0.5 * (b + np.log(-np.expm1(-b)))

    def time(self, lam):
        """Returns t with B(t) = log(1 + exp(-2 lam))."""
        return _integral_time(self, np.logaddexp(0.0, -2.0 * _lams(self, lam)))


@dataclass(frozen=True)
class VPCosine:
    """See `vp_cosine`."""

    s: float
    t_min: float = 1e-3

    t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)

    @property
    def _w(self):
        return 0.5 * np.pi / (1.0 + self.s)

    @property
    def _t_clip(self):
        # -d log(alpha^2)/dt = 2 w tan(u) = 2 w / tan(w (1 - t))
        return 1.0 - np.arctan2(2.0 * self._w, COSINE_STEEPEST) / self._w

    def alpha(self, t):
        """Returns cos(u) / cos(u0), written as sin(pi/2 - u) / cos(u0), times the clipped tail."""
        t = _times(self, t)
        base = np.sin(self._w * (1.0 - np.minimum(t, self._t_clip))) / np.cos(self._w * self.s)
        return base * np.exp(-0.5 * COSINE_STEEPEST * np.maximum(t - self._t_clip, 0.0))

    def sigma(self, t):
        """Returns sqrt(sin(u - u0) sin(u + u0)) / cos(u0): sqrt(1 - alpha^2), uncancelled."""
        t = _times(self, t)
        inner = np.minimum(t, self._t_clip) * self._w
        s2 = np.sin(inner) * np.sin(inner + 2.0 * self._w * self.s) / np.cos(self._w * self.s) ** 2
        alpha2 = self.alpha(t) ** 2
        return np.sqrt(np.where(t > self._t_clip, 1.0 - alpha2, s2))[()]

    def derivatives(self, t):
        """Returns (-beta alpha / 2, beta alpha^2 / (2 sigma)), beta = min(2 w tan(u), steepest)."""
        t = _times(self, t)
        rate = 2.0 * self._w / np.tan(self._w * (1.0 - np.minimum(t, self._t_clip)))
        alpha = self.alpha(t)
        with np.errstate(divide="ignore"):
            return -0.5 * rate * alpha, 0.5 * rate * alpha**2 / self.sigma(t)

    def lam(self, t):
        """Returns log(alpha / sigma)."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def time(self, lam):
        """Returns atan2(sin(u - u0), cos(u - u0)) / w, with both from alpha and sigma."""
        lam = _lams(self, lam)
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


@dataclass(frozen=True)
class SubVP:
    """See `sub_vp`."""

    beta_min: float
    beta_max: float
    t_min: float = 1e-3

    t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)

    def alpha(self, t):
        """Returns exp(-B/2)."""
        return np.exp(-0.5 * _integral(self, t))

    def sigma(self, t):
        """Returns 1 - exp(-B)."""
        return -np.expm1(-_integral(self, t))

    def derivatives(self, t):
        """Returns (-beta alpha / 2, beta alpha^2)."""
        alpha, beta = self.alpha(t), _rate(self, t)
        return -0.5 * beta * alpha, beta * alpha**2

    def lam(self, t):
        """Returns -log(2 sinh(B/2)) = -B/2 - log(1 - exp(-B))."""
        b = _integral(self, t)
        with np.errstate(divide="ignore"):
            return -0.5 * b - np.log(-np.expm1(-b))

    def time(self, lam):
        """Returns t with B(t) = 2 asinh(exp(-lam) / 2)."""
        return _integral_time(self, 2.0 * np.arcsinh(0.5 * np.exp(-_lams(self, lam))))


@dataclass(frozen=True)
class SigmaSpace:
    """See `edm` and `ve`. Any sigma >= 0 is a time; sigma_min and sigma_max are where grids end."""

    sigma_min: float
    sigma_max: float

    t_end, domain = 0.0, (0.0, np.inf)

    @property
    def t_start(self):
        """Returns sigma_max."""
        return self.sigma_max

    @property
    def t_min(self):
        """Returns sigma_min."""
        return self.sigma_min

    def alpha(self, t):
        """Returns 1."""
        return np.ones_like(_times(self, t))[()]

    def sigma(self, t):
        """Returns t."""
        return +_times(self, t)

    def derivatives(self, t):
        """Returns (0, 1)."""
        t = _times(self, t)
        return np.zeros_like(t)[()], np.ones_like(t)[()]

    def lam(self, t):
        """Returns -log(t)."""
        with np.errstate(divide="ignore"):
            return -np.log(_times(self, t))

    def time(self, lam):
        """Returns exp(-lam)."""
        return np.exp(-np.asarray(lam, dtype=np.float64))


@dataclass(frozen=True)
class Flow:
    """See `flow`."""

    t_min: float = 1e-3

    t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)

    def alpha(self, t):
        """Returns 1 - t."""
        return 1.0 - _times(self, t)

    def sigma(self, t):
        """Returns t."""
        return +_times(self, t)

    def derivatives(self, t):
        """Returns (-1, 1)."""
        t = _times(self, t)
        return -np.ones_like(t)[()], np.ones_like(t)[()]

    def lam(self, t):
        """Returns log(1 - t) - log(t)."""
        t = _times(self, t)
        with np.errstate(divide="ignore"):
            return np.log1p(-t) - np.log(t)

    def time(self, lam):
        """Returns 1 / (1 + exp(lam))."""
        return np.exp(-np.logaddexp(0.0, np.asarray(lam, dtype=np.float64)))


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
    def t_start(self):
        """Returns the last index, N - 1."""
        return self.timesteps - 1.0

    @property
    def domain(self):
        """Returns (-1, N - 1)."""
        return (-1.0, self.timesteps - 1.0)

    def alpha(self, t):
        """Returns sqrt(1 / (1 + exp(-2 lam)))."""
        return np.exp(-0.5 * np.logaddexp(0.0, -2.0 * self.lam(t)))

    def sigma(self, t):
        """Returns sqrt(1 / (1 + exp(2 lam)))."""
        return np.exp(-0.5 * np.logaddexp(0.0, 2.0 * self.lam(t)))

    def derivatives(self, t):
        """Returns (alpha sigma^2 lam', -sigma alpha^2 lam'); at an index, as just above it."""
        t = _times(self, t)
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

    def lam(self, t):
        """Returns lam, linear between the indices; below 0 that of sigma^2 = sigma_0^2 (t + 1)."""
        t = _times(self, t)
        finite = self._finite
        lam = np.interp(t, np.arange(finite), self._lam[:finite])
        s2 = self._sigma2_first * np.minimum(t + 1.0, 1.0)
        with np.errstate(divide="ignore"):
            lam = np.where(t < 0, 0.5 * (np.log1p(-s2) - np.log(s2)), lam)
            if finite < self.timesteps:
                last = self._lam[-2] + np.log(np.minimum(self.t_start - t, 1.0))
                lam = np.where(t > self.timesteps - 2, last, lam)
        return lam[()]

    def time(self, lam):
        """Returns the fractional index at which lam stands."""
        lam = _lams(self, lam)
        finite = self._finite
        t = np.interp(-lam, -self._lam[:finite], np.arange(finite))
        below = np.exp(-np.logaddexp(0.0, 2.0 * np.maximum(lam, self._lam[0])))
        t = np.where(lam > self._lam[0], below / self._sigma2_first - 1.0, t)
        if finite < self.timesteps:
            last = self.t_start - np.exp(np.minimum(lam - self._lam[-2], 0.0))
            t = np.where(lam < self._lam[-2], last, t)
        return t[()]


def _times(schedule, t):
    t = np.asarray(t, dtype=np.float64)
    low, high = schedule.domain
    if not ((t >= low) & (t <= high)).all():
        worst = t[~((t >= low) & (t <= high))].flat[0]
        raise ValueError(f"{type(schedule).__name__}: t = {worst} lies outside [{low}, {high}]")
    return t


def _lams(schedule, lam):
    """Returns lam as float64, put on lam(t_start) where rounding left it below."""
    lam = np.asarray(lam, dtype=np.float64)
    least = schedule.lam(schedule.t_start)
    if not (lam >= least - 1e-9).all():
        worst = lam[~(lam >= least - 1e-9)].flat[0]
        raise ValueError(
            f"{type(schedule).__name__}: lam = {worst} lies below lam(t_start) = {least}"
        )
    return np.maximum(lam, least)


def _integral(schedule, t):
    t = _times(schedule, t)
    return t * (schedule.beta_min + 0.5 * t * (schedule.beta_max - schedule.beta_min))


def _rate(schedule, t):
    return schedule.beta_min + _times(schedule, t) * (schedule.beta_max - schedule.beta_min)


def _integral_time(schedule, b):
    """Returns the t with B(t) = b: the positive root, in the form that does not cancel."""
    low, high = schedule.beta_min, schedule.beta_max
    return np.minimum(2.0 * b / (low + np.sqrt(low**2 + 2.0 * (high - low) * b)), 1.0)


def _check_betas(name, beta_min, beta_max, t_min):
    if not 0 < beta_min <= beta_max < np.inf:
        raise ValueError(
            f"{name}: beta_min = {beta_min} and beta_max = {beta_max}, but 0 < beta_min <= beta_max"
        )
    _check_t_min(name, t_min)


def _check_t_min(name, t_min):
    if not 0 < t_min < 1:
        raise ValueError(f"{name}: t_min = {t_min}, but it must lie in (0, 1)")


def _sigma_space(name, sigma_min, sigma_max):
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(
            f"{name}: sigma_min = {sigma_min} and sigma_max = {sigma_max}, "
            "but 0 < sigma_min < sigma_max"
        )
    return SigmaSpace(float(sigma_min), float(sigma_max))
