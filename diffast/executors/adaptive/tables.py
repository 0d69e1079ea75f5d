"""The tables of a round: made once, and written by one op in every round."""

from __future__ import annotations

from typing import Any

import torch

from diffast import ops
from diffast.executors.adaptive.nodes import STAGE
from diffast.lowering.traced_steps import Table, TracedRound
from diffast.ops.evaluate.encode import encode


class RoundTables:
    """The programs of rounds at certain calls, and the tensors that they write.

    `traced` says what they are. The tensors have room for all samples; `now` are their first rows.
    """

    def __init__(self, traced: TracedRound, names: tuple[str, ...], place: Any, nodes: tuple):
        """Makes the tensors.

        Args:
            traced: the programs.
            names: those of the outs that are times.
            place: device and number of samples.
            nodes: edges and pieces of the table of nodes.
        """
        self.traced, self.names, self.nodes = traced, names, nodes
        self.several = len(traced.programs) > 1
        self.encoded = encode(traced.programs).to(place.device)
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
        code, constants, starts, registers = self.encoded
        which = counts if self.several else None
        edges, pieces = self.nodes
        ops.evaluate(
            code, constants, starts, 0, inputs, which, STAGE, edges, pieces, registers, self.outs
        )

    def weights(self, table: Table) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns a table's weights, and those of fresh normals."""
        return self.now[table.name], None if table.noise is None else self.now[table.noise]
