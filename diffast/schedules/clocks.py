"""Time variables that grids and solvers count in, on any schedule.

    "time"     the model time itself
    "lam"      log(alpha / sigma), half of the log-SNR
    "rho"      sigma / alpha
    "snr"      alpha / sigma
    "flow"     sigma / (alpha + sigma), the time of conditional optimal transport; in [0, 1]
    "arctan"   arctan(sigma / alpha), the variance-preserving angle; in [0, pi/2]

"flow" and "arctan" are finite at both ends of every schedule. lam is infinite at both, "rho" at
alpha = 0, "snr" at sigma = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.protocol import Schedule

CLOCKS = ("time", "lam", "rho", "snr", "flow", "arctan")


def clock_at(schedule: Schedule, clock: str, t: ArrayLike) -> np.ndarray:
    """Returns the time variable at model times, float64 of the shape of t.

    Args:
        schedule: any schedule.
        clock: one of `CLOCKS`.
        t: model times.
    """
    if clock == "time":
        return np.asarray(t, dtype=np.float64)[()]
    if clock == "lam":
        return schedule.lam(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if clock == "flow":
        return sigma / (alpha + sigma)
    if clock == "arctan":
        return np.arctan2(sigma, alpha)
    with np.errstate(divide="ignore"):
        return sigma / alpha if clock == "rho" else alpha / sigma


def time_on(schedule: Schedule, clock: str, value: ArrayLike) -> np.ndarray:
    """Returns the model times at which the time variable has those values: `clock_at` inverted.

    Args:
        schedule: any schedule.
        clock: one of `CLOCKS`.
        value: values of the time variable, with sigma > 0.
    """
    value = np.asarray(value, dtype=np.float64)
    if clock == "time":
        return value[()]
    with np.errstate(divide="ignore"):
        if clock == "flow":
            value = np.log1p(-value) - np.log(value)
        elif clock == "arctan":
            value = -np.log(np.tan(value))
        elif clock != "lam":
            value = np.log(value) * (1.0 if clock == "snr" else -1.0)
    return schedule.time(value)
