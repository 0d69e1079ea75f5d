"""When modes part, by four criteria that are not the same: of two modes, and of any network."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from diffast.thermo.critical import CriticalLevels


class BimodalTimes(NamedTuple):
    """Times of dx = -x dt + sqrt(2) dB, from the data at 0 on; sigma^2 = 1 - e^(-2t).

    infinity: the centre is unstable at all times. 0: it is stable at all times.

    Attributes:
        drift: the drift x + 2 score of the reverse SDE turns at the centre (Raya and Ambrogioni
            2023, arXiv:2305.19693).
        convexity: -log p loses its convexity at the centre; sigma / alpha is sqrt(mu^2 - s^2).
        speciation: the largest eigenvalue of the data's covariance meets the noise (Biroli et al.
            2024, arXiv:2402.18491).
        flow: the drift x + score of the probability-flow ODE turns at the centre.
    """

    drift: float
    convexity: float
    speciation: float
    flow: float


def bimodal_times(mu: float, s: float) -> BimodalTimes:
    """Returns when the data (N(-mu, s^2) + N(mu, s^2)) / 2 part, by four criteria, in closed form.

    With y = e^(-2t) and k = 1 - s^2, the slope of the score at the centre is -1/v + y mu^2 / v^2,
    v = 1 - k y. The four criteria ask different things of it, and give different times for the same
    data: a critical time means little without its criterion.

    Args:
        mu: distance of a mode from the centre.
        s: deviation of a mode; 0: points.

    Raises:
        ValueError: numbers that are negative or not finite, or mu = 0.
    """
    if not (math.isfinite(mu) and math.isfinite(s) and mu > 0.0 and s >= 0.0):
        raise ValueError(
            f"bimodal_times: mu = {mu} and s = {s}, but mu must be above 0, s 0 or more, and both "
            "finite"
        )
    square, k = mu * mu, 1.0 - s * s
    drift = max(0.5 * math.log(square + math.hypot(square, k)), 0.0)
    # v = y mu^2
    convexity = 0.5 * math.log1p(square - s * s) if square > s * s else 0.0
    speciation = max(0.5 * math.log(square + s * s), 0.0)
    # y = (k - mu^2) / k^2: below it, late in the noise, the centre is stable
    flow = math.inf if square >= k else max(-0.5 * math.log((k - square) / (k * k)), 0.0)
    return BimodalTimes(drift, convexity, speciation, flow)


class CentreCriteria(NamedTuple):
    """Noise levels rho = sigma / alpha at which the centre parts, as `bimodal_times` has them.

    None: by this criterion it does not, within the levels.

    Attributes:
        drift: the reverse SDE's drift, dx = -x dt + sqrt(2) dB.
        convexity: the density at the centre.
        speciation: the data's largest variance.
        flow: the probability-flow ODE's drift. Infinity: unstable at the highest level already.
    """

    drift: float | None
    convexity: float | None
    speciation: float | None
    flow: float | None


def centre_criteria(
    centre: CriticalLevels, row: int = 0, variance: float | None = None
) -> CentreCriteria:
    """Returns the levels at which the followed centre of any data parts, by four criteria.

    With e the largest eigenvalue of dD/du at the centre, the slope of the score in x is
    (e - 1) / sigma^2 along its direction, sigma^2 = rho^2 / (1 + rho^2) in the variance-preserving
    process. So the drift turns where e = 1 - sigma^2 / 2, the convexity ends where e = 1, and the
    flow turns where e = 1 - sigma^2. Speciation asks the data alone: 1 + rho^2 = largest variance.
    Three of the four depend on the unit of the data, as the process does: only convexity does not.

    Args:
        centre: what `critical_levels` returns without samples. After the first critical level of
            the row another maximum is followed, which is left out.
        row: which of its rows.
        variance: largest eigenvalue of the data's covariance, for speciation; None: left out.

    Raises:
        ValueError: samples' maxima in place of a centre, a row that is not there, or fewer than 2
            levels at which it was found.
    """
    rho = centre.curve_levels
    if rho[0] < rho[-1]:
        raise ValueError(
            "centre_criteria: the levels rise, as from final samples, but the centre is followed "
            "downwards: leave x out of critical_levels"
        )
    if not 0 <= row < centre.curve.shape[1]:
        raise ValueError(f"centre_criteria: row is {row}, but there are {centre.curve.shape[1]}")
    found = centre.curve[:, row]
    own = centre.levels[centre.rows == row]
    end = float(own[0]) if own.size else None
    kept = np.isfinite(found) & (rho > (end or 0.0))
    rho, found = rho[kept], found[kept]
    if end is not None:
        rho, found = np.append(rho, end), np.append(found, 1.0)
    if rho.size < 2:
        raise ValueError(f"centre_criteria: the centre was found at {rho.size} levels, not 2")
    share = rho**2 / (1.0 + rho**2)
    drift, flow = (_first(rho, found - 1.0 + weight * share) for weight in (0.5, 1.0))
    speciation = None
    if variance is not None and variance > 1.0:
        speciation = math.sqrt(variance - 1.0)
    return CentreCriteria(drift, end, speciation, flow)


def _first(rho: np.ndarray, gap: np.ndarray) -> float | None:
    """Returns the highest level at which the gap is 0; infinity where it is above 0 at once."""
    if gap[0] > 0.0:
        return math.inf
    above = np.flatnonzero(gap > 0.0)
    if not above.size:
        return None
    i = int(above[0])
    part = gap[i - 1] / (gap[i - 1] - gap[i])
    return float(np.exp(np.log(rho[i - 1]) + part * np.log(rho[i] / rho[i - 1])))
