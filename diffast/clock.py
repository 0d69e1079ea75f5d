"""Clocks: positions at which adaptive samples stand, and what the schedule is there.

Positions increase from noise to data. `Clock` answers in numpy, from the schedule itself;
`DeviceClock` is its table on a device, so that no step has to wait for the host.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast.solvers.pairs import Node

# Where a path that starts from noise alone (lam = -inf) is entered: there data are 1/150 of it.
FIRST_LAM = -5.0
_TABLE = 8192


class Clock:
    """Positions of one kind between two model times of a schedule.

    "lam": the log-SNR; "rho": -sigma / alpha; "flow": -sigma / (alpha + sigma); "time": minus the
    model time as a share of the schedule's range (of log(sigma) where the time is sigma).

    Args:
        schedule: any schedule.
        kind: see above.
        until: model time of the last position.
        slopes: whether nodes have derivatives.

    Raises:
        ValueError: an unknown kind; an end that is no later than the start.
    """

    def __init__(self, schedule, kind: str, until: float, slopes: bool = False):
        """Finds the positions of both ends."""
        if kind not in ("lam", "rho", "flow", "time"):
            raise ValueError(f"clock {kind!r} is not known, but lam, rho, flow and time are")
        self.schedule, self.kind, self.slopes = schedule, kind, slopes
        first = float(schedule.lam(schedule.t_start))
        self.first_lam = first if np.isfinite(first) or kind == "flow" else FIRST_LAM
        self.opens = self.first_lam != first  # the start is noise alone, and not a position
        last = float(schedule.lam(until))
        if not self.first_lam < last < np.inf:
            raise ValueError(
                f"the end t = {until:g} has log-SNR {last:g}, but it must be finite and above that "
                f"of the start, {self.first_lam:g}"
            )
        lams = np.array([self.first_lam, last])
        self.start, self.end = (float(p) for p in self.positions(lams))
        self.last_lam = last

    def positions(self, lam: np.ndarray) -> np.ndarray:
        """Returns the positions of log-SNRs, float64 of the same shape."""
        if self.kind == "lam":
            return np.array(lam, dtype=np.float64)
        if self.kind == "rho":
            return -np.exp(-lam)
        if self.kind == "flow":
            return -np.exp(-np.logaddexp(0.0, lam))
        time = self.schedule.time(lam)
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
        schedule, rate = self.schedule, None
        if self.kind == "time":
            if self._by_sigma:
                time = schedule.t_min * np.exp(-positions * self._span)
                rate = time * self._span
            else:
                time = -positions * schedule.t_start
                rate = np.full_like(time, schedule.t_start)
            lam = schedule.lam(time)
        else:
            lam = positions
            if self.kind == "rho":
                lam = -np.log(-positions)
            elif self.kind == "flow":
                with np.errstate(divide="ignore"):  # -1 is the start from noise alone
                    lam = np.log1p(positions) - np.log(-positions)
            time = schedule.time(lam)
        slopes = schedule.derivatives(time) if self.slopes else (None, None)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        return Node(positions, time, lam, alpha, sigma, *slopes, rate)


class DeviceClock:
    """A clock's nodes on a device, by interpolation of order 4 in a table of 8,192 of them.

    Args:
        clock: what to tabulate.
        device: where.
        scales: guidance scales as a function of model times [N], tabulated too.
    """

    def __init__(self, clock: Clock, device, scales=None):
        """Tabulates the nodes."""
        lam = np.linspace(max(clock.first_lam, -12.0), clock.last_lam, _TABLE)
        positions = clock.positions(lam)
        positions = np.concatenate([[clock.start], positions[positions > clock.start]])
        positions[-1] = clock.end
        with np.errstate(all="ignore"):
            nodes = clock.nodes(positions)
        self.fields = [
            name
            for name, value in zip(Node._fields, nodes, strict=True)
            if name != "position" and value is not None
        ]
        rows = [np.nan_to_num(getattr(nodes, name), neginf=-40.0) for name in self.fields]
        self.guided = scales is not None
        rows += [scales(nodes.time)] if self.guided else []
        self.start, self.end, self.kind = clock.start, clock.end, clock.kind
        self.table = torch.from_numpy(np.stack(rows)).to(device)  # [fields, N]
        self.grid = torch.from_numpy(positions).to(device)

    def nodes(self, positions: torch.Tensor) -> Node:
        """Returns the nodes of positions, float64 tensors of the same shape."""
        return self._look_up(positions)[0]

    def nodes_and_scales(self, positions: torch.Tensor):
        """Returns the nodes, and the guidance scales if they were tabulated (else None)."""
        return self._look_up(positions)

    def _look_up(self, positions):
        last = self.grid.shape[0]
        first = torch.searchsorted(self.grid, positions.contiguous()) - 2
        first = first.clamp(0, last - 4)
        index = first[..., None] + torch.arange(4, device=positions.device)  # [..., 4]
        knots = self.grid[index]
        gaps = positions[..., None] - knots
        weights = []
        for i in range(4):
            others = [j for j in range(4) if j != i]
            weight = torch.ones_like(positions)
            for j in others:
                weight = weight * (gaps[..., j] / (knots[..., i] - knots[..., j]))
            weights.append(weight)
        values = (self.table[:, index] * torch.stack(weights, dim=-1)).sum(dim=-1)
        found = dict(zip(self.fields, values, strict=False))
        return Node(positions, **found), values[-1] if self.guided else None
