"""Clocks: positions at which adaptive samples stand, and what the schedule is there.

Positions increase from noise to data. `Clock` answers in numpy, from the schedule itself;
`DeviceClock` is its table on a device, so that no step has to wait for the host.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast.solvers.embedded import Node

# Where a path that starts from noise alone (lam = -inf) is entered: there data are 1/150 of it.
FIRST_LAM = -5.0
_PIECES = 8192
# Where in a piece its knots are (Chebyshev's), and 1 / prod_{j != i} (knot_i - knot_j).
_KNOTS = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
_SCALES = 1.0 / (_KNOTS[:, None] - _KNOTS + np.eye(4)).prod(axis=1)


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
    """A clock's nodes on a device, from a table of 8,192 pieces and more: a cubic in each.

    No piece has a time inside at which the schedule's derivatives jump (`schedule.kinks`), and the
    knots, four a piece, are inside it, so each side of such a time has its own derivative.

    Args:
        clock: what to tabulate.
        device: where.
        scales: guidance scales as a function of model times [N], tabulated too.
    """

    def __init__(self, clock: Clock, device, scales=None):
        """Tabulates the nodes."""
        edges = clock.positions(_edges(clock))
        edges[0], edges[-1] = clock.start, clock.end
        positions = edges[:-1, None] + np.diff(edges)[:, None] * _KNOTS  # [pieces, 4]
        with np.errstate(all="ignore"):
            nodes = clock.nodes(positions)
        self.fields = [
            name
            for name, value in zip(Node._fields, nodes, strict=True)
            if name != "position" and value is not None
        ]
        rows = [getattr(nodes, name) for name in self.fields]
        self.guided = scales is not None
        rows += [scales(nodes.time.ravel()).reshape(positions.shape)] if self.guided else []
        self.start, self.end, self.kind = clock.start, clock.end, clock.kind
        self.table = torch.from_numpy(np.stack(rows)).to(device)  # [fields, pieces, 4]
        self.edges = torch.from_numpy(edges).to(device)

    def nodes(self, positions: torch.Tensor) -> Node:
        """Returns the nodes of positions, float64 tensors of the same shape."""
        return self._look_up(positions)[0]

    def nodes_and_scales(self, positions: torch.Tensor):
        """Returns the nodes, and the guidance scales if they were tabulated (else None)."""
        return self._look_up(positions)

    def _look_up(self, positions):
        pieces = self.edges.shape[0] - 1
        piece = (torch.searchsorted(self.edges, positions.contiguous()) - 1).clamp(0, pieces - 1)
        low, high = self.edges[piece], self.edges[piece + 1]
        part = (positions - low) / (high - low)
        gaps = [part - knot for knot in _KNOTS.tolist()]
        weights = []
        for i, scale in enumerate(_SCALES.tolist()):
            a, b, c = (gap for j, gap in enumerate(gaps) if j != i)
            weights.append(scale * a * b * c)
        values = (self.table[:, piece] * torch.stack(weights, dim=-1)).sum(dim=-1)
        found = dict(zip(self.fields, values, strict=False))
        return Node(positions, **found), values[-1] if self.guided else None


def _edges(clock: Clock) -> np.ndarray:
    """Returns the log-SNRs at which pieces meet: even, but for the schedule's kinks among them."""
    schedule = clock.schedule
    first, last = max(clock.first_lam, -12.0), clock.last_lam
    kinks = np.asarray(getattr(schedule, "kinks", ()), dtype=np.float64)
    kinks = np.sort(schedule.lam(kinks)) if kinks.size else kinks
    ends = np.concatenate([[first], kinks[(kinks > first) & (kinks < last)], [last]])
    counts = np.ceil(np.diff(ends) * (_PIECES / (last - first))).astype(int)
    parts = [
        np.linspace(a, b, n, endpoint=False)
        for a, b, n in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
    return np.concatenate([*parts, [last]])
