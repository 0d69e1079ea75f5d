"""Time variables: the positions at which steps start and end, and what the schedule is there.

Positions increase from noise to data. They are of one of four kinds:

    "lam"    the log-SNR
    "rho"    -sigma / alpha
    "flow"   -sigma / (alpha + sigma)
    "time"   minus the model time as a share of the schedule's range; where the model time is sigma
             itself, minus log(sigma) as a share of its range
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffast.solvers.embedded.solver import Node

KINDS = ("lam", "rho", "flow", "time")


class TimeVariable:
    """One kind of positions on a schedule, in numpy.

    Args:
        schedule: any schedule.
        kind: one of KINDS.
        slopes: whether nodes have derivatives.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, schedule: Any, kind: str, slopes: bool = False):
        """Keeps the arguments."""
        if kind not in KINDS:
            raise ValueError(f"time variable {kind!r} is not known, but {', '.join(KINDS)} are")
        self.schedule, self.kind, self.slopes = schedule, kind, slopes

    def positions(self, lam: np.ndarray) -> np.ndarray:
        """Returns the positions of log-SNRs, float64 of the same shape."""
        if self.kind == "time":
            return self._of_time(self.schedule.time(lam))
        if self.kind == "rho":
            return -np.exp(-lam)
        if self.kind == "flow":
            return -np.exp(-np.logaddexp(0.0, lam))
        return np.array(lam, dtype=np.float64)

    def _of_time(self, time):
        if self._by_sigma:
            return -np.log(time / self.schedule.t_min) / self._span
        return -time / self.schedule.t_start

    @property
    def _by_sigma(self) -> bool:
        return np.isinf(self.schedule.domain[1])

    @property
    def _span(self) -> float:
        return float(np.log(self.schedule.t_start / self.schedule.t_min))

    def nodes(self, positions: np.ndarray) -> Node:
        """Returns the nodes of positions, arrays of the same shape."""
        if self.kind == "time":
            if self._by_sigma:
                time = self.schedule.t_min * np.exp(-positions * self._span)
            else:
                time = -positions * self.schedule.t_start
            return self._node(positions, time, self.schedule.lam(time))
        lam = positions
        if self.kind == "rho":
            lam = -np.log(-positions)
        elif self.kind == "flow":
            with np.errstate(divide="ignore"):  # -1 is the start from noise alone
                lam = np.log1p(positions) - np.log(-positions)
        return self._node(positions, self.schedule.time(lam), lam)

    def nodes_at(self, time: np.ndarray) -> Node:
        """Returns the nodes of model times, arrays of the same shape."""
        lam = self.schedule.lam(time)
        position = self._of_time(time) if self.kind == "time" else self.positions(lam)
        return self._node(position, time, lam)

    def _node(self, position, time, lam) -> Node:
        schedule, rate = self.schedule, None
        if self.kind == "time":
            by_sigma = self._by_sigma
            rate = time * self._span if by_sigma else np.full_like(time, schedule.t_start)
        dalpha, dsigma = schedule.derivatives(time) if self.slopes else (None, None)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        return Node(position, time, lam, alpha, sigma, dalpha, dsigma, rate)
