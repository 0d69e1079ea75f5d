"""Exact integrals of interpolating polynomials: the weights of every Adams method in this package.

Along a trajectory, with s = alpha/sigma and rho = sigma/alpha, for any alpha and sigma,

    data:   d(x/sigma) = x0 ds            noise:   d(x/alpha) = eps drho

so a step is an integral of remembered estimates. A method is a polynomial through them, in one form
and one time variable (lam = log s, "snr" s itself, or rho). A step goes from level s to level t.
Each integral is written so that it does not cancel, for steps of any size: no rounding error grows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """Noise level of one time: alpha, sigma and lam = log(alpha/sigma)."""

    alpha: float
    sigma: float
    lam: float

    def on(self, clock: str) -> float:
        """Returns the time variable: "lam", "snr" (alpha/sigma) or "rho" (sigma/alpha)."""
        if clock == "lam":
            return self.lam
        up, down = (self.alpha, self.sigma) if clock == "snr" else (self.sigma, self.alpha)
        return up / down if down else np.inf


def levels_at(schedule, times) -> list:
    """Returns the level at each model time."""
    columns = (getattr(schedule, name)(np.asarray(times)) for name in Level._fields)
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def time_at(schedule, clock, value) -> float:
    """Returns the model time at which the time variable has that value."""
    lam = value if clock == "lam" else np.log(value) * (1.0 if clock == "snr" else -1.0)
    return float(schedule.time(lam))


def keep(form, s, t) -> float:
    """Returns the weight of the state at s in that at t: sigma_t / sigma_s or alpha_t / alpha_s."""
    return t.sigma / s.sigma if form == "data" else t.alpha / s.alpha


def moments(form, clock, s, t, most) -> list:
    """Returns the step's integrals of (clock - clock_s)^k, k = 0..most, times sigma_t or alpha_t.

    With h = lam_t - lam_s, and u from 0 to h,

        data, lam:    alpha_t       integral exp(-(h - u)) u^k du
        data, snr:    sigma_t       (s_t - s_s)^(k+1) / (k+1)
        noise, lam:  -alpha_t rho_s integral exp(-u) u^k du          (finite at sigma_t = 0)
        noise, rho:   alpha_t       (rho_t - rho_s)^(k+1) / (k+1)
    """
    if form == "data":
        whole = t.alpha - s.alpha * (t.sigma / s.sigma)
    else:
        whole = t.sigma - t.alpha * (s.sigma / s.alpha)
    if clock != "lam":
        gap = t.on(clock) - s.on(clock)
        return [whole] + [whole * gap**k / (k + 1) for k in range(1, most + 1)]
    h = t.lam - s.lam
    if form == "data":
        return [whole] + [t.alpha * _rising(k, h) for k in range(1, most + 1)]
    scale = -t.alpha * (s.sigma / s.alpha)
    return [whole] + [scale * _falling(k, h) for k in range(1, most + 1)]


def adams(form, clock, s, others, t, share=1.0) -> list:
    """Returns the weights of what was remembered at (s, *others), exact for polynomials.

    Lagrange's polynomials in the time variable, integrated over the step from s to t. They add up
    to the first-order weight exactly: the weight of s is that weight minus the others.

    Args:
        others: up to three more levels, all apart; t itself may be one (a corrector).
        share: factor on the quadratic's second moment.
    """
    whole, *rest = moments(form, clock, s, t, len(others))
    if len(rest) > 1:
        rest[1] *= share
    zero = s.on(clock)
    u = [node.on(clock) - zero for node in others]
    weights = [0.0]
    for j, a in enumerate(u):
        polynomial = np.array([1.0])  # ascending powers, after the factor u
        below = a
        for b in u[:j] + u[j + 1 :]:
            polynomial = np.append(0.0, polynomial) - b * np.append(polynomial, 0.0)
            below *= a - b
        weights.append(float(polynomial @ rest) / below)
    weights[0] = whole - sum(weights)
    return weights


def _series(k, h, ratio):
    """Returns the sum over j of h^(k+1) ratio^j k! / (k+1+j)!."""
    term, total = h ** (k + 1) / (k + 1), 0.0
    for j in range(k + 2, k + 24):
        total += term
        term *= ratio / j
    return total


def _rising(k, h):
    """Returns the integral of exp(-(h - u)) u^k over 0..h, which is k! h^(k+1) phi_(k+1)(-h)."""
    if h < 1.0:
        return _series(k, h, -h)
    value = -math.expm1(-h)
    for power in range(1, k + 1):
        value = h**power - power * value
    return value


def _falling(k, h):
    """Returns the integral of exp(-u) u^k over 0..h; k! at h = inf."""
    if h < 1.0:
        return math.exp(-h) * _series(k, h, h)
    if h == np.inf:
        return float(math.factorial(k))
    value = -math.expm1(-h)
    for power in range(1, k + 1):
        value = power * value - h**power * math.exp(-h)
    return value
