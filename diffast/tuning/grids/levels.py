"""Noise levels that a pilot run looks at, and grids made of noise levels.

A level is rho = sigma / alpha. In u = x / alpha the probability-flow ODE is du / d log(rho) = u -
x0(u) on every schedule, so all that is measured is measured in u and log(rho).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffast.grids import check_grid
from diffast.model.denoiser import Denoiser

# On a schedule that starts at noise alone (rho infinite), measuring starts at this level. The flow
# from infinity to it is made in one step, see `pilot`.
HIGHEST = 100.0


class Levels:
    """The noise levels of a schedule, and which of them a network can be called at.

    Args:
        schedule: the network's noise schedule.
        whole: whether the network takes whole model times alone.

    Attributes:
        high, low: the first and the last level, finite and above 0.
        capped: whether the schedule starts above `high`, at noise alone.
    """

    def __init__(self, schedule: Any, whole: bool):
        """Settles the ends."""
        self.schedule, self.whole = schedule, whole
        start, end = float(schedule.t_start), float(schedule.t_min)
        self.capped = not np.isfinite(schedule.lam(start))
        if self.capped:
            start = float(schedule.time(-np.log(HIGHEST)))
            if whole:
                start = np.floor(start)
        self.start, self.end = start, np.ceil(end) if whole else end
        self.high, self.low = (float(self.at(t)) for t in (self.start, self.end))

    @classmethod
    def of(cls, denoiser: Denoiser) -> Levels:
        """Returns the levels of a network."""
        return cls(denoiser.schedule, denoiser.whole_times)

    def at(self, times: Any) -> np.ndarray:
        """Returns the levels rho of model times."""
        return np.exp(-np.asarray(self.schedule.lam(times), dtype=np.float64))

    def times(self, rho: Any) -> np.ndarray:
        """Returns model times of levels in [low, high]; whole ones where the network wants them."""
        rho = np.asarray(rho, dtype=np.float64)
        times = np.array(self.schedule.time(-np.log(rho)), dtype=np.float64)
        times = np.where(rho >= self.high * (1 - 1e-12), self.start, times)
        times = np.where(rho <= self.low * (1 + 1e-12), self.end, times)
        return np.rint(times) if self.whole else times

    def even(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (times, rho) of levels even in log(rho), high and low included.

        There are `count` of them, fewer where whole times fall together.
        """
        times = self.times(np.geomspace(self.high, self.low, count))
        if self.whole:
            times = times[np.concatenate([[True], np.diff(times) != 0])]
        return times, self.at(times)

    def grid(self, rho: np.ndarray, to_zero: bool) -> np.ndarray:
        """Returns the grid [N+1] of model times for N+1 levels from high to low.

        With `to_zero` the last level is moved from `low` to sigma = 0. The first level is the start
        of the schedule. Whole times that fall together are moved apart.

        Raises:
            ValueError: more levels than there are whole times.
        """
        times = self.times(np.clip(rho, self.low, self.high))
        times[0], times[-1] = self.schedule.t_start, self.end
        if to_zero:
            times[-1] = self.schedule.t_end
        if self.whole:
            times = _apart(times)
        return check_grid(self.schedule, times)

    def whole_grid(self, times: np.ndarray) -> np.ndarray:
        """Returns a grid of `df.grids`, of whole times where the network wants them."""
        return check_grid(self.schedule, _apart(np.rint(times))) if self.whole else times


def _apart(times: np.ndarray) -> np.ndarray:
    """Returns whole times, strictly monotone, near the given ones; both ends stay."""
    sign = np.sign(times[-1] - times[0])
    rising, last = sign * times, len(times) - 1
    room = int(rising[-1] - rising[0])
    if room < last:
        raise ValueError(
            f"grid: {last} steps, but the network takes whole times and there are {room + 1} of "
            "them in the range"
        )
    for i in range(1, last):
        rising[i] = max(rising[i], rising[i - 1] + 1)
    for i in range(last - 1, 0, -1):
        rising[i] = min(rising[i], rising[i + 1] - 1)
    return sign * rising


def levels_by_density(
    log_rho: np.ndarray, density: np.ndarray, steps: int, points: int = 2048
) -> np.ndarray:
    """Returns levels rho [steps+1] between which the density has equal integrals over log(rho).

    Args:
        log_rho: falling logarithms of the levels where the density is known, [M].
        density: values [M], not negative; linear in log(rho) between them.
        steps: number of intervals.
        points: of the quadrature.

    Raises:
        ValueError: a density that is negative, not finite, or 0 throughout.
    """
    density = np.asarray(density, dtype=np.float64)
    if not np.isfinite(density).all() or (density < 0).any() or not density.any():
        raise ValueError(
            "grid: the measured density of levels has values that are negative or not finite, or "
            "is 0 throughout: the network's x0 estimates do not depend on the level as they should"
        )
    fine = np.linspace(log_rho[0], log_rho[-1], points)
    value = np.interp(-fine, -log_rho, density)
    value = value + 1e-9 * value.max()  # a density of 0 on a stretch leaves the inverse unique
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (value[1:] + value[:-1]))])
    found = np.interp(np.linspace(0.0, mass[-1], steps + 1), mass, fine)
    found[[0, -1]] = log_rho[0], log_rho[-1]
    return np.exp(found)
