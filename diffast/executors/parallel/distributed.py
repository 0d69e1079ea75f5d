"""Several devices: the network calls of a round shared out over the ranks of a process group.

Every rank holds all states and makes every sweep, which costs next to nothing; what is exchanged
is one all-gather of the network's outputs a round. So all ranks hold the same bits, and go the same
way without a word about it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from diffast.executors.parallel.batched_network import assemble


class Ranks:
    """Shares pieces of a round over a process group.

    Args:
        group: of torch.distributed; None: the default group.

    Raises:
        ValueError: if there is no such group.
    """

    def __init__(self, group=None):
        """Asks the group for its size."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "sample_parallel: ranks are asked for but torch.distributed has no process group: "
                "call torch.distributed.init_process_group first"
            )
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def __call__(self, pieces: list[slice], rows: int, run) -> list[torch.Tensor]:
        """Returns the outputs of all rows, one tensor a half; runs only this rank's pieces.

        Args:
            pieces: slices of the rows, of one size but the last. A single one is cut into as many
                as there are ranks.
            rows: how many rows there are.
            run: called with a piece; returns its outputs.

        Raises:
            RuntimeError: if another rank died or did not answer within the group's timeout.
        """
        if len(pieces) == 1:
            size = -(-rows // self.world)
            pieces = [slice(low, min(low + size, rows)) for low in range(0, rows, size)]
        size = pieces[0].stop - pieces[0].start
        each = -(-len(pieces) // self.world)  # pieces of a rank
        mine = pieces[self.rank * each : (self.rank + 1) * each]
        share = size * each
        first = self.rank * share
        local = None
        if mine:
            moved = [slice(p.start - first, p.stop - first) for p in mine]
            at = {p.start: q for p, q in zip(moved, mine, strict=True)}
            local = assemble(moved, share, lambda piece: run(at[piece.start]))
        try:
            return self._gather(local, pieces, rows, share, run)
        except RuntimeError as error:
            raise RuntimeError(
                f"sample_parallel: rank {self.rank} of {self.world} got no answer from another "
                f"rank, which may have died: {error}"
            ) from error

    def _gather(self, local, pieces, rows, share, run) -> list[torch.Tensor]:
        if local is None:  # more ranks than pieces: the shape of an output is not known here
            local = [output.new_zeros((share, *output.shape[1:])) for output in run(pieces[-1])]
        whole = []
        for output in local:
            parts = output.new_empty((self.world * share, *output.shape[1:]))
            dist.all_gather_into_tensor(parts, output.contiguous(), group=self.group)
            whole.append(parts[:rows])
        return whole
