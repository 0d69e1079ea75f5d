"""The part of a time variable that a run walks, and a table of it.

`TimeInterval` asks the schedule itself, in numpy. `NodeTable` is for schedules that cannot be
recorded, so that no step on a device has to wait for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffast.lowering.recorder import Recorded, Recording
from diffast.ops.schema import KNOTS
from diffast.solvers.embedded import Node, TimeVariable

# Where a path that starts from noise alone (lam = -inf) is entered: data are 1/150 of the noise.
FIRST_LAM = -5.0
_PIECES = 8192


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


class NodeTable:
    """The nodes of an interval as a table of 8,192 pieces and more, for the op `evaluate`.

    Each piece holds a cubic. No piece has a time inside at which the schedule's derivatives jump
    (`schedule.kinks`). The four knots of a piece are inside it, so each side of such a time has its
    own derivative.
    Guidance scales, a function of model times [N], are tabulated too.

    Attributes:
        edges: [E + 1] positions at which pieces meet.
        pieces: [F, E, 4] values at the knots of each piece: of the fields, then of the scales.
        fields: names of the nodes' fields that are tabulated.
    """

    def __init__(
        self,
        interval: TimeInterval,
        scales: Sequence[Callable[[np.ndarray], np.ndarray]] = (),
    ):
        """Tabulates the nodes."""
        edges = interval.positions(_edges(interval))
        edges[0], edges[-1] = interval.start, interval.end
        positions = edges[:-1, None] + np.diff(edges)[:, None] * np.array(KNOTS)  # [E, 4]
        with np.errstate(all="ignore"):
            nodes = interval.nodes(positions)
        known = {n: v for n, v in nodes._asdict().items() if n != "position" and v is not None}
        self.key = "table", tuple(known), len(scales)
        self.fields, rows = tuple(known), list(known.values())
        rows += [found(nodes.time.ravel()).reshape(positions.shape) for found in scales]
        self.edges, self.pieces = edges, np.stack(rows)

    def node(self, recording: Recording, position: Recorded, place: str) -> Node:
        """Returns the recorded node of a recorded position, by look-ups."""
        piece = recording.piece(position)
        found = {
            name: recording.lookup(row, piece, position) for row, name in enumerate(self.fields)
        }
        return Node(position, **found)

    def scale(self, recording: Recording, position: Recorded, number: int) -> Recorded:
        """Returns one of the scales at a recorded position."""
        return recording.lookup(len(self.fields) + number, recording.piece(position), position)


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
