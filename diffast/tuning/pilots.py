"""Pilots: the noises that a plan is learned on and judged by, and the conditions of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import has_rows
from diffast.model.denoiser import Denoiser

# Held-out pilots have ids from here on, so that their noises are none of the training's.
HELD_OUT = 1 << 40

Conditions = Callable[[torch.Tensor], Any]


class Pilots:
    """The noises of a tuning run: pilot i has the id i, held-out ones HELD_OUT + i.

    Pilot i has row i of the denoiser's conditions, counted around their end, or what `conditions`
    returns for its id.

    Args:
        denoiser: the network.
        shape: of one sample.
        seed: of the noises.
        device: where to run.
        conditions: called as conditions(ids) with ids [B] int64; returns named conditions with B
            rows each, or a pair of them, for the conditional and the unconditional branch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        seed: int,
        device: torch.device,
        conditions: Conditions | None = None,
    ):
        """Keeps them; see the class."""
        self.denoiser, self.shape, self.seed, self.device = denoiser, tuple(shape), seed, device
        self.conditions = conditions

    def noise(self, ids: torch.Tensor, scale: float, stage: int | None = None) -> torch.Tensor:
        """Returns the noises [B, ...] of pilots, those that `df.sample` gives these ids."""
        shape = (len(ids), *self.shape)
        which = ops.INITIAL_NOISE if stage is None else stage
        ids = ids.to(self.device)
        return ops.normal(shape, seed=self.seed, stage=which, ids=ids, scale=scale)

    def rows(self, ids: torch.Tensor) -> Denoiser:
        """Returns the denoiser with the conditions of these pilots.

        Raises:
            ValueError: if `conditions` returns other names than the denoiser's, or other rows.
        """
        own, blank = self.denoiser.conditions, self.denoiser.unconditional
        if self.conditions is not None:
            made = self.conditions(ids)
            own, blank = made if isinstance(made, tuple) else (made, blank)
            self._check(own, len(ids), self.denoiser.conditions)
            if blank is not None:
                self._check(blank, 1 if blank is self.denoiser.unconditional else len(ids), own)
            return replace(self.denoiser, conditions=own, unconditional=blank)
        place = (ids % HELD_OUT).cpu()
        taken = {name: _taken(value, place) for name, value in own.items()}
        if blank is not None:
            blank = {name: _taken(value, place) for name, value in blank.items()}
        return replace(self.denoiser, conditions=taken, unconditional=blank)

    def _check(self, given: Any, rows: int, named: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping):
            raise ValueError(
                f"tune: conditions returned a {type(given).__name__}, but a mapping of names to "
                "tensors is needed, or a pair of mappings"
            )
        if named and {*named} != {*given}:
            raise ValueError(
                f"tune: conditions returned {sorted(given)}, but {sorted(named)} are needed"
            )
        for name, value in given.items():
            if has_rows(value) and value.shape[0] not in (1, rows):
                raise ValueError(
                    f"tune: conditions returned {value.shape[0]} rows of {name!r} for {rows} ids"
                )


def _taken(value: Any, place: torch.Tensor) -> Any:
    if not has_rows(value) or value.shape[0] == 1:
        return value
    return value[(place % value.shape[0]).to(value.device)]


def tiled(denoiser: Denoiser, times: int, batch: int) -> Denoiser:
    """Returns the denoiser with the conditions of its B rows repeated, block after block."""
    if times == 1:
        return denoiser

    def repeated(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if values is None:
            return None
        return {
            name: torch.cat([value] * times) if has_rows(value) and len(value) == batch else value
            for name, value in values.items()
        }

    own = repeated(denoiser.conditions) or {}
    return replace(denoiser, conditions=own, unconditional=repeated(denoiser.unconditional))


def pieces(count: int, size: int) -> list[slice]:
    """Returns slices of at most `size` that cover `count` rows."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def ids_of(count: int, first: int = 0) -> torch.Tensor:
    """Returns ids first .. first + count - 1, int64."""
    return torch.from_numpy(np.arange(first, first + count, dtype=np.int64))
