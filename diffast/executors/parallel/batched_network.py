"""The network on rows, pairs of a sample and a stage, in one call or in calls of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from diffast.executors import context
from diffast.executors.context import Place
from diffast.lowering.program import COND, UNCOND
from diffast.model.denoiser import Denoiser
from diffast.model.input_watch import InputWatch, InputWritten
from diffast.model.times import time_dtype, told_times

# Runs one chunk of a round's rows; returns its outputs, one [chunk, ...] for each branch.
RunChunk = Callable[[slice], list[torch.Tensor]]
# Runs chunks of `rows` rows in all; returns the outputs of all rows.
RunChunks = Callable[[list[slice], int, RunChunk], list[torch.Tensor]]

# Names of the arrays that a call may need on the device, a number a row.
SENT = ("times", "sample", "stage", "numbers")

_BRANCHES = {(COND,): "cond", (UNCOND,): "uncond", (COND, UNCOND): "both"}


class BatchedNetwork:
    """Calls a denoiser's network on rows, each at a time of its own.

    The plan's calls are at the model times [S]. The outputs of the branches are asked for: (COND,),
    (UNCOND,) or (COND, UNCOND). A call takes `batch_size` rows; None: all of a round's. Without
    `run_chunks` a round's chunks are run here, one after another.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: np.ndarray,
        branches: tuple[str, ...],
        place: Place,
        batch_size: int | None,
        run_chunks: RunChunks | None,
    ):
        """Fetches the conditions and the times."""
        self.denoiser, self.kind, self.batch = denoiser, _BRANCHES[branches], place.shape[0]
        self.batch_size, self.run_chunks = batch_size, run_chunks
        self.dtype = place.dtype
        self.beside: Sequence[torch.Tensor] = ()  # of the run, that the network may have kept
        self.arguments = denoiser.arguments(self.batch, place.device, self.kind)
        self.per_sample = any(map(context.has_rows, self.arguments.values()))
        kind = time_dtype(place.dtype)
        told = told_times(denoiser.schedule, times.tolist(), kind)
        self.times = torch.tensor(told, dtype=kind, device="cpu").numpy()
        self.rows_called = 0

    def orders(self, stage: np.ndarray, sample: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays that a call needs on the device; a row takes its sample's conditions.

        `stage` and `sample` are int64 [size].
        """
        orders = {"times": self.times[stage]}
        return orders | {"sample": sample} if self.per_sample else orders

    def __call__(self, x: torch.Tensor, sent: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Returns the outputs for rows x, one [size, ...] for each branch.

        `sent` is what `orders` returned, on the device.

        Raises:
            ValueError: what `Denoiser.call` raises; a network that writes into its input.
        """
        chunks = chunks_of(len(x), len(x) if self.batch_size is None else self.batch_size)
        self.rows_called += len(x)
        sent = {name: sent[name] for name in SENT if name in sent}

        def run(chunk: slice) -> list[torch.Tensor]:
            return self._call(x[chunk], {name: tensor[chunk] for name, tensor in sent.items()})

        if self.run_chunks is not None:
            return self.run_chunks(chunks, len(x), run)
        if len(chunks) == 1:
            return run(chunks[0])
        return run_all(chunks, len(x), run)

    def _call(self, x: torch.Tensor, sent: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        count, arguments = len(x), self.arguments
        times, sample = sent["times"], sent.get("sample") if self.per_sample else None
        network_input = x.to(self.denoiser.dtype or x.dtype)
        if sample is not None:
            arguments = context.on_rows(arguments, lambda value: self._rows(value, sample))
        both = self.kind == "both"
        if both:
            network_input, times = torch.cat([network_input] * 2), times.repeat(2)
        watch = InputWatch(network_input, self.beside)
        try:
            output = self.denoiser.call(network_input, times, arguments, watch=watch)
        except InputWritten:
            raise InputWritten("sample_parallel") from None
        if output.dtype == torch.float64 != self.dtype and output.device == x.device:
            output = output.to(self.dtype)  # a sweep rounds no output
        return [output[:count], output[count:]] if both else [output]

    def _rows(self, value: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Returns a condition's rows of the samples; of both branches one after the other."""
        branches = [v.index_select(0, sample) for v in value.split(self.batch)]
        return branches[0] if len(branches) == 1 else torch.cat(branches)


class KeptOutputs:
    """Makes outputs that a run may keep while the network makes its next ones.

    Those are copies where a network returns its input, or has one tensor for all of its answers.

    Args:
        compares: whether a round needs the outputs of the round before.
    """

    def __init__(self, compares: bool):
        """Has seen no output."""
        self.compares, self.copies = compares, False
        self.returned: list[torch.Tensor] = []  # by the last call

    def __call__(
        self, outputs: list[torch.Tensor], points: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Returns the outputs, or copies; `points` are what the run will write to."""
        first = not self.returned
        if self.compares:
            self.copies |= any(map(_one_memory, outputs, self.returned))
            # Of the first outputs a copy is kept: whether the next ones replace them is not known.
            copies, self.returned = self.copies or first, outputs
        else:
            copies = False
        shared = [copies or any(_one_memory(o, point) for point in points) for o in outputs]
        return [o.clone() if copy else o for o, copy in zip(outputs, shared, strict=True)]


def _one_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.device == b.device and not a.is_meta and torch._C._is_alias_of(a, b)  # pyright: ignore[reportAttributeAccessIssue]


def chunks_of(rows: int, size: int) -> list[slice]:
    """Returns the rows in chunks of one size, but for the last."""
    return [slice(low, min(low + size, rows)) for low in range(0, rows, size)]


def run_all(
    chunks: Sequence[slice], rows: int, run: RunChunk, first: int = 0
) -> list[torch.Tensor]:
    """Runs one or more chunks in turn; returns their outputs as one tensor [rows, ...] a branch.

    The tensors begin with the row `first`.
    """
    whole: list[torch.Tensor] = []
    for chunk in chunks:
        made = run(chunk)
        if not whole:
            whole = [output.new_empty((rows, *output.shape[1:])) for output in made]
        for into, output in zip(whole, made, strict=True):
            into[chunk.start - first : chunk.stop - first].copy_(output)
    return whole
