"""The part of a time variable that a run walks, and its table on a device.

`TimeInterval` asks the schedule itself, in numpy. `DeviceTimeVariable` is a table of it on a
device, so that no step has to wait for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast.solvers.embedded import Node, TimeVariable

# Where a path that starts from noise alone (lam = -inf) is entered: data are 1/150 of the noise.
FIRST_LAM = -5.0
_PIECES = 8192
# Where in a piece its knots are (Chebyshev's), and 1 / prod_{j != i} (knot_i - knot_j).
_KNOTS = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
_SCALES = 1.0 / (_KNOTS[:, None] - _KNOTS + np.eye(4)).prod(axis=1)


class TimeInterval(TimeVariable):
    """A time variable between the schedule's start and an end.

    Attributes:
        start, end: the first and the last position; the last one is at the model time `until`.
        first_lam, last_lam: their log-SNRs.
        opens: whether the schedule starts from noise alone, which is no position: the run then
            enters at FIRST_LAM.

    Raises:
        ValueError: an unknown kind; an end that is no later than the start.
    """

    def __init__(self, schedule: Any, kind: str, until: float, slopes: bool = False):
        """Finds the positions of both ends."""
        super().__init__(schedule, kind, slopes)
        first = float(schedule.lam(schedule.t_start))
        self.first_lam = first if np.isfinite(first) or kind == "flow" else FIRST_LAM
        self.opens = self.first_lam != first
        last = float(schedule.lam(until))
        if not self.first_lam < last < np.inf:
            raise ValueError(
                f"the end t = {until:g} has log-SNR {last:g}, but it must be finite and above that "
                f"of the start, {self.first_lam:g}"
            )
        lams = np.array([self.first_lam, last])
        self.start, self.end = (float(p) for p in self.positions(lams))
        self.last_lam = last


class DeviceTimeVariable:
    """The nodes of an interval on a device, from a table of 8,192 pieces and more.

    Each piece holds a cubic. No piece has a time inside at which the schedule's derivatives jump
    (`schedule.kinks`). The four knots of a piece are inside it, so each side of such a time has its
    own derivative.
    Guidance scales, a function of model times [N], are tabulated too.
    """

    def __init__(
        self,
        interval: TimeInterval,
        device: torch.device | str,
        scales: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        """Tabulates the nodes."""
        edges = interval.positions(_edges(interval))
        edges[0], edges[-1] = interval.start, interval.end
        positions = edges[:-1, None] + np.diff(edges)[:, None] * _KNOTS  # [pieces, 4]
        with np.errstate(all="ignore"):
            nodes = interval.nodes(positions)
        known = {n: v for n, v in nodes._asdict().items() if n != "position" and v is not None}
        self.fields, rows = list(known), list(known.values())
        self.guided = scales is not None
        rows += [scales(nodes.time.ravel()).reshape(positions.shape)] if self.guided else []
        self.start, self.end, self.kind = interval.start, interval.end, interval.kind
        self.table = torch.from_numpy(np.stack(rows)).to(device)  # [fields, pieces, 4]
        self.edges = torch.from_numpy(edges).to(device)

    def nodes(self, positions: torch.Tensor) -> Node:
        """Returns the nodes of positions, float64 tensors of the same shape."""
        return self.nodes_and_scales(positions)[0]

    def nodes_and_scales(self, positions: torch.Tensor) -> tuple[Node, torch.Tensor | None]:
        """Returns the nodes, and the guidance scales if they were tabulated (else None)."""
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


def _edges(interval: TimeInterval) -> np.ndarray:
    """Returns the log-SNRs at which pieces meet: even, but for the schedule's kinks among them."""
    schedule = interval.schedule
    first, last = max(interval.first_lam, -12.0), interval.last_lam
    kinks = np.asarray(getattr(schedule, "kinks", ()), dtype=np.float64)
    kinks = np.sort(schedule.lam(kinks)) if kinks.size else kinks
    ends = np.concatenate([[first], kinks[(kinks > first) & (kinks < last)], [last]])
    counts = np.ceil(np.diff(ends) * (_PIECES / (last - first))).astype(int)
    parts = [
        np.linspace(a, b, n, endpoint=False)
        for a, b, n in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
    return np.concatenate([*parts, [last]])
