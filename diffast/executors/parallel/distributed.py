"""Several devices: the network calls of a round are divided among the ranks of a process group.

Every rank holds all states and makes every sweep, which costs little. Each round has one exchange,
an all-gather of the network's outputs. All ranks therefore hold the same bits and take the same
decisions without further messages.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from diffast.executors.parallel.batched_network import RunChunk, chunks_of, run_all


class DistributedChunks:
    """Runs the chunks of a round on all ranks of a process group.

    Raises:
        ValueError: if torch.distributed has no such group; None is the default one.
    """

    def __init__(self, group: Any = None):
        """Asks the group for its size."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "sample_parallel: ranks are asked for but torch.distributed has no process group: "
                "call torch.distributed.init_process_group first"
            )
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def __call__(self, chunks: list[slice], rows: int, run: RunChunk) -> list[torch.Tensor]:
        """Returns the outputs of all rows, one tensor a branch; runs only this rank's chunks.

        A single chunk is cut into as many as there are ranks.

        Raises:
            RuntimeError: if another rank died or did not answer within the group's timeout.
        """
        if len(chunks) == 1:
            chunks = chunks_of(rows, -(-rows // self.world))
        size = chunks[0].stop - chunks[0].start
        each = -(-len(chunks) // self.world)  # chunks of a rank
        mine = chunks[self.rank * each : (self.rank + 1) * each]
        share = size * each  # rows of a rank
        first = self.rank * share
        local: list[torch.Tensor] = []
        if mine:
            local = run_all(mine, share, run, first)
        else:  # more ranks than chunks: one is run to know the shape of an output
            outputs = run(chunks[-1])
            local = [output.new_zeros((share, *output.shape[1:])) for output in outputs]
        try:
            return self._gather(local, rows)
        except RuntimeError as error:
            raise RuntimeError(
                f"sample_parallel: rank {self.rank} of {self.world} got no answer from another "
                f"rank, which may have died: {error}"
            ) from error

    def _gather(self, local: list[torch.Tensor], rows: int) -> list[torch.Tensor]:
        """Returns the first `rows` rows of what all ranks have, rank by rank."""
        whole = []
        for output in local:
            parts = output.new_empty((self.world * len(output), *output.shape[1:]))
            dist.all_gather_into_tensor(parts, output.contiguous(), group=self.group)
            whole.append(parts[:rows])
        return whole
