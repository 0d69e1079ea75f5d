"""The network on rows: pairs of a sample and a stage, in one call or in calls of one size."""

from __future__ import annotations

import numpy as np
import torch

from diffast.lowering.program import COND, UNCOND
from diffast.model.denoiser import Denoiser, time_dtype


class RowNetwork:
    """Calls a denoiser's network on rows that stand at times of their own.

    Args:
        denoiser: the network, its conditions and guidance.
        times: [S] model times of the plan's calls.
        outputs: which halves are asked for: (COND,), (UNCOND,) or (COND, UNCOND).
        batch: number of samples.
        device: where the rows are.
        dtype: of the rows.
        batch_size: rows of one network call; None: all of a round's.
        share: called as `share(pieces, rows, run)`: runs its part of a round's pieces and returns
            the outputs of all; None: all are run here.
    """

    def __init__(self, denoiser: Denoiser, times, outputs, batch, device, dtype, batch_size, share):
        """Fetches the conditions and the times."""
        kinds = {(COND,): "cond", (UNCOND,): "uncond", (COND, UNCOND): "both"}
        self.denoiser, self.kind, self.batch = denoiser, kinds[outputs], batch
        self.device, self.batch_size, self.share = device, batch_size, share
        self.arguments = denoiser.arguments(batch, device, self.kind)
        kept = time_dtype(dtype)
        self.times = torch.tensor(np.asarray(times).tolist(), dtype=kept, device=device)
        self.rows_called = 0

    def __call__(self, x: torch.Tensor, stage: torch.Tensor, sample: torch.Tensor) -> list:
        """Returns the outputs, one [A, ...] for each half.

        Args:
            x: [A, ...] rows.
            stage: int64 [A].
            sample: int64 [A], whose conditions a row takes.

        Raises:
            ValueError: what `Denoiser.call` raises; a network that writes into its input.
        """
        size = len(x) if self.batch_size is None else self.batch_size
        pieces = [slice(low, min(low + size, len(x))) for low in range(0, len(x), size)]
        times = self.times.index_select(0, stage)
        self.rows_called += len(x)

        def run(piece):
            return self._call(x[piece], times[piece], sample[piece])

        if self.share is not None:
            return self.share(pieces, len(x), run)
        if len(pieces) == 1:
            return run(pieces[0])
        return assemble(pieces, len(x), run)

    def _call(self, x, times, sample) -> list:
        count = len(x)
        wanted = self.denoiser.dtype or x.dtype
        arguments = {name: self._rows(value, sample) for name, value in self.arguments.items()}
        if self.kind == "both":
            given = torch.cat([x.to(wanted)] * 2)
            output = self.denoiser.call(given, times.repeat(2), arguments)
            return [output[:count], output[count:]]
        given = x.to(wanted)
        before = None if given.is_inference() else given._version
        output = self.denoiser.call(given, times, arguments)
        if before is not None and given is x and given._version != before:
            raise ValueError(
                "sample_parallel: the network wrote into its input, but the solver still needs "
                "it: give it a copy"
            )
        return [output]

    def _rows(self, value, sample):
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        halves = [v.index_select(0, sample) for v in value.split(self.batch)]
        return halves[0] if len(halves) == 1 else torch.cat(halves)


def assemble(pieces, rows: int, run) -> list:
    """Returns the outputs of all pieces as one tensor a half.

    Args:
        pieces: slices of the rows.
        rows: how many there are.
        run: called with a piece; returns its outputs.
    """
    whole = None
    for piece in pieces:
        made = run(piece)
        if whole is None:
            whole = [output.new_empty((rows, *output.shape[1:])) for output in made]
        for into, output in zip(whole, made, strict=True):
            into[piece].copy_(output)
    return whole
