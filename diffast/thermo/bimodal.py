"""`bimodal_times`: when two equal modes part, by four criteria that are not the same."""

from __future__ import annotations

import math
from typing import NamedTuple


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
    drift = 0.5 * math.log(square + math.hypot(square, k)) if square + math.hypot(square, k) > 1 else 0.0
    # v = y mu^2
    convexity = 0.5 * math.log1p(square - s * s) if square > s * s else 0.0
    speciation = max(0.5 * math.log(square + s * s), 0.0)
    # y = (k - mu^2) / k^2: below it, late in the noise, the centre is stable
    if square >= k:
        flow = math.inf
    else:
        flow = max(-0.5 * math.log((k - square) / (k * k)), 0.0)
    return BimodalTimes(drift, convexity, speciation, flow)
