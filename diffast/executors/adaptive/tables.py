"""The tables of a round: made once, and written by one op in every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffast import ops
from diffast.executors.adaptive.nodes import MOST_KEPT, STAGE
from diffast.executors.context import Place
from diffast.executors.device import sent
from diffast.lowering.recorder import NotRecordedError
from diffast.lowering.traced_steps import Table, TracedRound, Tracer
from diffast.ops.evaluate.encode import Encoded, encode
from diffast.solvers.embedded.solver import ARRAY_FUNCTIONS

# Programs that were made: to record and encode them takes as long as tens of rounds.
_kept: dict[Any, tuple[TracedRound, Encoded]] = {}


def _programs(
    tracer: Tracer, calls: tuple[int, ...], remembered: bool
) -> tuple[TracedRound, Encoded]:
    """Returns the programs of samples at these calls, and their code on the CPU."""
    key = None if tracer.key is None else (tracer.key, calls, remembered)
    found = _kept.get(key)
    if found is None:
        try:
            traced = tracer.trace(calls, remembered)
        except NotRecordedError as error:
            raise NotRecordedError(
                f"sample_adaptive: the rows of {tracer.program.solver.name} cannot be made a "
                f"program: {error}. Rows may use arithmetic, comparisons, and of step.xp "
                f"{', '.join(ARRAY_FUNCTIONS)}"
            ) from error
        found = traced, encode(traced.programs)
        if len(_kept) >= MOST_KEPT:
            _kept.clear()
        if key is not None:
            _kept[key] = found
    return found


class RoundTables:
    """The programs of rounds at certain calls, and the tensors that they write.

    `traced` says what they are. The tensors have room for all samples; `now` are their first rows.
    """

    def __init__(
        self, tracer: Tracer, calls: Sequence[int], remembered: bool, place: Place, nodes: tuple
    ):
        """Makes the tensors.

        Args:
            tracer: makes the programs.
            calls: those that samples may be at.
            remembered: whether samples may remember rejected points.
            place: device and number of samples.
            nodes: edges and pieces of the table of nodes.
        """
        self.names, self.nodes = tracer.times, nodes
        self.calls = list(calls)
        self.traced, encoded = _programs(tracer, tuple(calls), remembered)
        traced, names = self.traced, self.names
        sending = (tensor.numpy() for tensor in encoded[:3])
        self.code = *sent(place.device, *sending), encoded.registers
        count = place.shape[0]
        self.times = torch.zeros(len(names) * count, dtype=torch.float64, device=place.device)
        self.made = {
            out.name: torch.zeros(
                (count, *out.shape),
                dtype=torch.int64 if out.whole else torch.float64,
                device=place.device,
            )
            for out in traced.outs
            if out.name not in names
        }
        self.look(count)

    def look(self, size: int) -> None:
        """Makes the views of the first rows."""
        self.told = self.times[: len(self.names) * size]  # [size], or [2 size] for both branches
        self.now = {name: tensor[:size] for name, tensor in self.made.items()}
        times = dict(zip(self.names, self.told.split(size) if size else (), strict=False))
        self.outs = [(times | self.now)[out.name] for out in self.traced.outs] if size else []

    def write(self, inputs: torch.Tensor, counts: torch.Tensor) -> None:
        """Runs the programs."""
        code, constants, starts, registers = self.code
        which = counts if len(self.calls) > 1 else None
        edges, pieces = self.nodes
        ops.evaluate(
            code, constants, starts, 0, inputs, which, STAGE, edges, pieces, registers, self.outs
        )

    def weights(self, table: Table) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns a table's weights, and those of fresh normals."""
        return self.now[table.name], None if table.noise is None else self.now[table.noise]
