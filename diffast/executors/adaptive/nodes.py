"""Where the programs of a run get the schedule's nodes from.

RecordedNodes   the schedule's own formulas are part of the programs
NodeTable       a table on a device, for schedules whose code cannot be recorded, and for
                guidance that depends on the time
HostNodes       the same on the host: numpy computes the nodes in every round, and they are
                inputs of the programs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffast.executors.adaptive.time_variable import NodeTable, TimeInterval
from diffast.lowering.recorder import NotRecordedError, Recorded, Recording, replay
from diffast.lowering.traced_steps import known_value
from diffast.ops.schema import CONTROLS, COUNTS
from diffast.solvers.embedded import EmbeddedSolver, Node

AT, TO, STAGE = CONTROLS.index("at"), CONTROLS.index("to"), COUNTS.index("stage")

# How many answers and programs are remembered.
MOST_KEPT = 256
_recorded: dict[Any, bool] = {}

Scales = Callable[[np.ndarray], np.ndarray]


class RecordedNodes:
    """The formulas of a schedule that can be recorded."""

    def __init__(self, interval: TimeInterval):
        """Keeps the interval."""
        self.interval = interval
        schedule = known_value(interval.schedule)
        self.key = None if schedule is None else (schedule, interval.kind, interval.slopes)

    def node(self, recording: Recording, position: Recorded, place: str) -> Node:
        """Returns the recorded node of a recorded position."""
        recording.passes = True
        try:
            fields = self.interval.nodes(position)  # type: ignore[arg-type]
        finally:
            recording.passes = False
        return Node(
            *(f if f is None or isinstance(f, Recorded) else recording.constant(f) for f in fields)
        )

    def scale(self, recording: Recording, position: Recorded, number: int) -> Recorded:
        """Raises: a guidance scale that depends on the time is a function of the caller's."""
        raise NotRecordedError("a guidance scale that depends on the time")


class HostNodes:
    """Nodes that numpy computes in every round.

    The inputs of the programs [B, C] are the control of each sample, then the nodes of the step's
    start, end and call, and the guidance scales that depend on the time.
    """

    PLACES = ("start", "end", "call")

    def __init__(
        self, interval: TimeInterval, solver: EmbeddedSolver, control: int, scales: Sequence[Scales]
    ):
        """Settles the columns; a sample has `control` numbers of its own."""
        self.interval, self.solver, self.first, self.scales = interval, solver, control, scales
        example = interval.nodes(np.array([interval.end]))
        self.fields = [k for k, value in enumerate(example) if k and value is not None]
        self.columns = control + len(self.PLACES) * len(self.fields) + len(scales)
        self.key = "inputs", control, tuple(self.fields), len(scales)

    def node(self, recording: Recording, position: Recorded, place: str) -> Node:
        """Returns the node of a position as inputs."""
        found: list[Any] = [None] * len(Node._fields)
        found[0] = position
        first = self.first + self.PLACES.index(place) * len(self.fields)
        for column, field in enumerate(self.fields, first):
            found[field] = recording.input(column)
        return Node(*found)

    def scale(self, recording: Recording, position: Recorded, number: int) -> Recorded:
        """Returns one of the scales as an input."""
        return recording.input(self.columns - len(self.scales) + number)

    def write(self, inputs: np.ndarray, control: np.ndarray, stages: np.ndarray | int) -> None:
        """Writes the inputs [B, C] of samples that are at these calls, [B] or all at one."""
        first, solver = self.first, self.solver
        inputs[:, :first] = control
        start, end = control[:, AT], control[:, TO]
        if isinstance(stages, int):
            call = solver.position(np, stages, start, end)
        else:
            call = start
            for k in range(1, solver.calls + 1):
                call = np.where(stages == k, solver.position(np, k, start, end), call)
        positions = (start, end) if call is end else (start, end, call)
        nodes = self.interval.nodes(np.stack(positions))
        for field, k in enumerate(self.fields):
            values = nodes[k]
            for place in range(len(positions)):
                inputs[:, first + place * len(self.fields) + field] = values[place]
        for column, scales in enumerate(self.scales, self.columns - len(self.scales)):
            inputs[:, column] = scales(nodes.time[-1])


def node_source(
    interval: TimeInterval,
    solver: EmbeddedSolver,
    control: int,
    scales: Sequence[Scales],
    on_host: bool,
) -> RecordedNodes | NodeTable | HostNodes:
    """Returns where a run's programs get nodes from.

    Args:
        interval: where steps are.
        solver: gives the positions of calls.
        control: how many numbers `accept` keeps of a sample.
        scales: functions that return a scale of guidance, [N] of model times [N], where it depends
            on the time.
        on_host: whether numpy sees the memory of the samples.
    """
    if not scales and can_be_recorded(interval):
        return RecordedNodes(interval)
    if on_host:
        return HostNodes(interval, solver, control, scales)
    return NodeTable(interval, scales)


def can_be_recorded(interval: TimeInterval) -> bool:
    """Returns whether the schedule's code can be recorded, and the record says the same as it.

    The answer for a schedule that cannot change is remembered.
    """
    key = RecordedNodes(interval).key
    if key is None:
        return _can_be_recorded(interval)
    if (key, interval.end) not in _recorded:
        if len(_recorded) >= MOST_KEPT:
            _recorded.clear()
        _recorded[key, interval.end] = _can_be_recorded(interval)
    return _recorded[key, interval.end]


def _can_be_recorded(interval: TimeInterval) -> bool:
    recording = Recording()
    try:
        nodes = RecordedNodes(interval).node(recording, recording.input(0), "start")
    # A schedule is anybody's code, and fails in its own way where it needs the number itself.
    except Exception:
        return False
    lams = np.linspace(max(interval.first_lam, -12.0), interval.last_lam, 33)
    positions = interval.positions(lams)
    positions[0], positions[-1] = interval.start, interval.end
    with np.errstate(all="ignore"):
        wanted = [field for field in interval.nodes(positions) if field is not None]
    numbers = [field.number for field in nodes if field is not None]
    found = replay(recording.instructions, numbers, positions[:, None])
    return all(
        np.allclose(a, b, rtol=1e-11, atol=1e-13, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )


def time_of(source: RecordedNodes | NodeTable) -> tuple[list, list[tuple[int, int, int]]]:
    """Returns the program of the model time at which a sample stands, into outs[0]."""
    recording = Recording()
    time = source.node(recording, recording.input(AT), "start").time
    return recording.instructions, [(0, 0, time.number)]


def on_device(
    source: RecordedNodes | NodeTable | HostNodes, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the edges and the pieces of a source's table; empty where it has none."""
    if isinstance(source, NodeTable):
        return torch.from_numpy(source.edges).to(device), torch.from_numpy(source.pieces).to(device)
    empty = torch.empty(0, dtype=torch.float64, device=device)
    return empty, empty.reshape(0, 0, 4)
