"""What runs return, what their hooks and callbacks see, and the errors that carry a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from diffast.executors.device import Readback

# The status of a sample that is fine. Another status is the number of the network call, from 0,
# after which the sample failed.
FINE = -1


def what_failed(outputs: Iterable[torch.Tensor]) -> str:
    """Returns what made a sample's state not finite, given the network's outputs for it."""
    fine = all(bool(output.isfinite().all()) for output in outputs)
    return "the state made of a finite network output" if fine else "the network's output"


def check_finite(who: str, x: torch.Tensor) -> None:
    """Raises ValueError if an initial state is not finite; waits for its device."""
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).nonzero()[0, 0])
        raise ValueError(f"{who}: x must be finite but sample {bad} is not")


@dataclass(frozen=True)
class Result:
    """What every run returns.

    Attributes:
        x: the samples [B, ...], of the state's dtype; NaN for a sample that failed.
        nfe: network calls of each sample, [B] int64. A guided call of both branches counts once.
        status: [B] int64: -1 for a sample that is fine, else the number of the network call, from
            0, after which it failed.
        completed: False if the callback stopped the run; x then holds what its class says.
        network_rows: rows of the network's batches that each sample took, [B] int64: a guided call
            of both branches is two. None where a run does not count them.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    status: torch.Tensor
    completed: bool
    network_rows: torch.Tensor | None = field(default=None, kw_only=True)

    @property
    def fine(self) -> torch.Tensor:
        """Returns whether each sample is fine, [B] bool."""
        return self.status == FINE

    def or_raise(
        self,
        who: str,
        ids: torch.Tensor,
        throw: bool,
        what: Callable[[int, int], str],
        kind: type[FailedSamples] | None = None,
        *,
        initial: torch.Tensor | None = None,
        status: np.ndarray | None = None,
    ) -> Self:
        """Returns the result with NaN in the rows of failed samples; waits for the device once.

        With `throw`, failed samples raise an error of the kind, else `NonFiniteError`. It says of
        each of them what `what(row, status)` returns. `initial` is the caller's initial state: on a
        device it is looked at here, and only where samples failed. Where the `status` is known on
        the host, nothing waits for samples that are fine.

        Raises:
            ValueError: if the initial state is not finite.
        """
        if status is None:
            status = Readback(self.status.device).take(self.status)
        if (status == FINE).all():  # numpy: a tenth of torch's three small calls
            return self
        if initial is not None:
            check_finite(who, initial)
        x = self.x.clone()
        x[~self.fine] = torch.nan
        result = replace(self, x=x)
        if not throw:
            return result
        numbers, rows = ids.tolist(), enumerate(self.status.tolist())
        failed = [(b, numbers[b], what(b, i)) for b, i in rows if i != FINE]
        shown = ", ".join(f"{b} (id {number}): {words}" for b, number, words in failed[:8])
        more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
        count = f"{len(failed)} of {len(numbers)} samples failed"
        raise (kind or NonFiniteError)(f"{who}: {count}: {shown}{more}", result)


@dataclass(frozen=True)
class Samples(Result):
    """What `df.sample` returns: a `Result`.

    After an interruption x is the last x0 estimate.
    """


class Info(NamedTuple):
    """What a hook is told of the x0 estimate [B, ...] that it is given.

    Attributes:
        stage: number of the network call, from 0: an int where all samples stand at one stage, else
            [B] int64.
        time: model times of the call, [B].
        ids: [B] int64, which tell the samples apart when rows leave the batch.
    """

    stage: int | torch.Tensor
    time: torch.Tensor
    ids: torch.Tensor


class Progress(NamedTuple):
    """What a callback sees after each round of the loop. Tensors are live buffers: clone to keep.

    Attributes:
        stage: number of the round, from 0; of `df.sample` that of the network call.
        stages: how many there are; None where that is not known before.
        time: model time of the call: a number, or [B] where every sample has its own.
        x0: the x0 estimates [B, ...] after a clamp or hook; None where none is computed.
        x: the states [B, ...]; after the last round the samples.
    """

    stage: int
    stages: int | None
    time: float | torch.Tensor
    x0: torch.Tensor | None
    x: torch.Tensor


class FailedSamples(Exception):
    """Some samples of a run failed; the others are fine and in `result`.

    Attributes:
        result: what the run would have returned with `throw=False`.
        status: [B] int64, see `Result`.
    """

    def __init__(self, message: str, result: Any):
        """Keeps the result."""
        super().__init__(message, result)  # both: an exception is pickled by its arguments
        self.result, self.status = result, result.status

    def __str__(self) -> str:
        """Returns the message."""
        return str(self.args[0])


class NonFiniteError(FailedSamples, FloatingPointError):
    """The network's output, or a state made of it, is not finite for some samples."""


class StepLimitError(FailedSamples, RuntimeError):
    """Some samples met a limit of an adaptive run: the least step, or the most calls."""
