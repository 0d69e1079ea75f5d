"""Exact integrals of interpolating polynomials: the weights of every Adams method in this package.

Along a trajectory each of three forms is an ODE whose slope is constant for constant x0 and eps,
for any alpha and sigma: with c the scale, q the variable of integration and f the slope,

    form        scale c          q                          f
    data        sigma            s = alpha / sigma          x0
    noise       alpha            rho = sigma / alpha        eps
    velocity    alpha + sigma    tau = sigma/(alpha+sigma)  eps - x0      d(x / c) = f dq

so a step is an integral of remembered slopes. "velocity" is a flow model's own (x / c moves along
the straight paths of conditional optimal transport) and is finite at both ends. A method is a
polynomial through the slopes, in one form and one time variable. A step goes from s to t.
Each integral is written so that it does not cancel, for steps of any size: no rounding error grows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

FORMS = ("data", "noise", "velocity")
CLOCKS = ("lam", "rho", "flow", "arctan", "snr")

# Integrals without a closed form: 12 nodes of Gauss a panel, panels at most 1 wide in lam. The
# nearest singularity, i pi / 2, leaves an error of 1e-19. Beyond 45 nothing is left at an open end.
_NODES, _SHARES = np.polynomial.legendre.leggauss(12)
_PANEL, _BEYOND = 1.0, 45.0


class Level(NamedTuple):
    """Noise level of one time: alpha, sigma and lam = log(alpha/sigma)."""

    alpha: float
    sigma: float
    lam: float

    def on(self, clock: str) -> float:
        """Returns the time variable, one of `CLOCKS`.

        lam = log(alpha/sigma), "snr" alpha/sigma, "rho" sigma/alpha, "flow" sigma/(alpha+sigma),
        "arctan" arctan(sigma/alpha).
        """
        if clock == "lam":
            return self.lam
        if clock == "flow":
            return self.sigma / (self.alpha + self.sigma)
        if clock == "arctan":
            return math.atan2(self.sigma, self.alpha)
        up, down = (self.alpha, self.sigma) if clock == "snr" else (self.sigma, self.alpha)
        return up / down if down else np.inf

    def scale(self, form: str) -> float:
        """Returns c of the form."""
        return {"data": self.sigma, "noise": self.alpha, "velocity": self.alpha + self.sigma}[form]


def levels_at(schedule, times) -> list:
    """Returns the level at each model time."""
    columns = (getattr(schedule, name)(np.asarray(times)) for name in Level._fields)
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def keep(form, s, t) -> float:
    """Returns the weight of the state at s in that at t, c_t / c_s."""
    return t.scale(form) / s.scale(form)


def moments(form, clock, s, t, most) -> list:
    """Returns the step's integrals of (clock - clock_s)^k dq, k = 0..most, times c_t.

    With h = lam_t - lam_s, and u from 0 to h,

        data, lam:       alpha_t       integral exp(-(h - u)) u^k du
        noise, lam:     -alpha_t rho_s integral exp(-u) u^k du          (finite at sigma_t = 0)
        q itself:        c_t           (q_t - q_s)^(k+1) / (k+1)
        data, at sigma_t = 0:          alpha_t (clock_t - clock_s)^k, the polynomial's value there

    and the others by quadrature in lam.
    """
    if form == "data":
        whole = t.alpha - s.alpha * (t.sigma / s.sigma)
    elif form == "noise":
        whole = t.sigma - t.alpha * (s.sigma / s.alpha)
    else:
        whole = (t.sigma * s.alpha - t.alpha * s.sigma) / s.scale(form)
    if not most:
        return [whole]
    if (form, clock) in (("data", "snr"), ("noise", "rho"), ("velocity", "flow")):
        gap = t.on(clock) - s.on(clock)
        return [whole] + [whole * gap**k / (k + 1) for k in range(1, most + 1)]
    if form == "data" and t.sigma == 0.0:
        gap = t.on(clock) - s.on(clock)
        return [whole] + [whole * gap**k for k in range(1, most + 1)]
    if clock != "lam" or form == "velocity":
        return [whole, *_quadrature(form, clock, s, t, most)]
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
        others: further levels, all apart; t itself may be one (a corrector).
        share: factor on the quadratic's second moment.
    """
    whole, *rest = moments(form, clock, s, t, len(others))
    if len(rest) > 1:
        rest[1] *= share
    zero, at = s.on(clock), [node.on(clock) for node in others]
    weights = [0.0]
    for j, a in enumerate(at):
        polynomial = np.array([1.0])  # ascending powers of u = clock - zero, after the factor u
        below = a - zero
        for b in at[:j] + at[j + 1 :]:
            polynomial = np.append(0.0, polynomial) - (b - zero) * np.append(polynomial, 0.0)
            below *= a - b
        weights.append(float(polynomial @ rest) / below)
    weights[0] = whole - sum(weights)
    return weights


def _quadrature(form, clock, s, t, most):
    """Returns the moments k = 1..most of any form and clock."""
    low = s.lam if np.isfinite(s.lam) else min(t.lam, 0.0) - _BEYOND
    high = t.lam if np.isfinite(t.lam) else max(s.lam, 0.0) + _BEYOND
    panels = max(1, math.ceil((high - low) / _PANEL))
    half = 0.5 * (high - low) / panels
    middles = low + half * (2.0 * np.arange(panels) + 1.0)
    lam = (middles[:, None] + half * _NODES).ravel()
    if form == "data":
        rate = t.alpha * np.exp(lam - t.lam)
    elif form == "noise":
        rate = -t.alpha * np.exp(-lam)
    else:
        rate = -0.25 * t.scale(form) / np.cosh(0.5 * lam) ** 2
    shares = half * np.tile(_SHARES, panels) * rate
    gap = _gap(clock, s, lam)
    return [float(shares @ gap**k) for k in range(1, most + 1)]


def _gap(clock, s, lam):
    """Returns the time variable at lam minus that at s, without cancellation."""
    if clock == "lam":
        return lam - s.lam
    if clock == "snr":
        return np.exp(lam) if s.alpha == 0.0 else s.on("snr") * np.expm1(lam - s.lam)
    fall = np.expm1(s.lam - lam)
    if clock == "rho":
        return s.on("rho") * fall
    if clock == "flow":
        return s.on("flow") * fall / (1.0 + np.exp(-lam))
    return np.arctan2(fall, s.on("snr") + np.exp(-lam))


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
