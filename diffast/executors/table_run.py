"""A bound run whose calls have all of their numbers in tensors: weights, seed, ids and stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from diffast import ops
from diffast.executors import context
from diffast.executors.bound_run import BoundCall, BoundRun
from diffast.lowering.program import NOISE, Call, Program
from diffast.model.denoiser import Denoiser
from diffast.noise.brownian import PathNoise
from diffast.plans import Plan


class TableRun(BoundRun):
    """A bound run whose calls have their numbers in tensors."""

    def __init__(self, denoiser: Denoiser, plan: Plan, place: context.Place, on_x0, noise):
        """Binds the names and makes the tables; the weights are put in by the replayable run."""
        super().__init__(denoiser, plan, place, on_x0, noise, looks=False)
        count = len(self.stages)
        self.streams = torch.zeros((count, self.batch, 3), dtype=torch.int64, device=self.device)
        stages = torch.arange(count, dtype=torch.int64, device=self.device)
        self.streams[:, :, 2] = stages[:, None]
        total = sum(_size(call) for stage in self.stages for call in stage.calls) * self.batch
        self.numbers = torch.zeros(total, dtype=torch.float64, device=self.device)
        at = 0
        for i, stage in enumerate(self.stages):
            made = []
            for call, bound in zip(stage.calls, self.calls[i], strict=True):
                weights, at = self._table(at, len(call.targets), len(call.weights))
                noise, at = self._table(at, len(call.targets), len(call.noise))
                made.append(bound._replace(table=(weights, noise, self.streams[i])))
            self.calls[i] = made
        self.normals: dict[int, torch.Tensor] = {}
        if isinstance(self.draw, PathNoise):
            self.draw.path.keep_tables()
            self.buffers += self.draw.buffers
        elif self.draw is not None:
            drawing = [i for i, stage in enumerate(self.stages) if NOISE in stage.calls[-1].columns]
            self.normals = {i: self._empty() for i in drawing}

    def _table(self, at: int, rows: int, numbers: int) -> tuple[torch.Tensor | None, int]:
        """Returns the part of `numbers` from `at` on that is a call's table [B, rows, ...]."""
        if not numbers:
            return None, at
        end = at + numbers * self.batch
        return self.numbers[at:end].view(self.batch, rows, numbers // rows), end

    def _arguments(self, branches: str, inputs: int) -> dict[str, Any]:
        """Returns copies of a call's conditions, which later ones are written over.

        Lists and dicts are copied, too, and what they hold is kept: a graph reads its memory.
        """
        return {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else copied(value)
            for name, value in super()._arguments(branches, inputs).items()
        }

    def _is_static(self, value: Any) -> bool:
        """Returns whether a condition is a tensor that can be written to. A number is none."""
        return isinstance(value, torch.Tensor) and (
            value.dim() > 0 or value.device == self.ids.device
        )

    def put_conditions(self, who: str, denoiser: Denoiser) -> None:
        """Writes a denoiser's conditions over those of the run."""
        for kind, arguments in self.arguments.items():
            found = self.arguments_of(denoiser, *kind)
            if found.keys() != arguments.keys():
                raise ValueError(
                    f"{who}: conditions are {sorted(found)} but the run was made for "
                    f"{sorted(arguments)}"
                )
            for name, own in arguments.items():
                value = found[name]
                if not self._is_static(own):
                    if not same_value(value, own):
                        raise ValueError(
                            f"{who}: condition {name!r} is {value!r} but the run was made for "
                            f"{own!r}: only tensors can change"
                        )
                elif not isinstance(value, torch.Tensor):
                    raise ValueError(
                        f"{who}: condition {name!r} is a {type(value).__name__} but the run was "
                        "made for a tensor"
                    )
                elif (value.shape, value.dtype) != (own.shape, own.dtype):
                    raise ValueError(
                        f"{who}: condition {name!r} is {list(value.shape)} of {value.dtype} but "
                        f"the run was made for {list(own.shape)} of {own.dtype}"
                    )
                else:
                    own.copy_(value)

    def pick_laws(self, denoiser: Denoiser) -> None:
        """Takes another denoiser's condition that picks each sample's start law."""
        law = None if self.origin.initial is None else self.origin.initial.law
        if law is not None and law.by is not None:
            self.origin = self.origin._replace(picked=denoiser.conditions.get(law.by))

    def reseed(self, seed: int, ids: torch.Tensor | None) -> None:
        """Writes seed and ids where the noise of all stages finds them: two or three launches."""
        self.place = self.place._replace(seed=seed)
        if ids is not None:
            self.ids.copy_(ids)
        self.streams[:, :, 0].fill_(seed)
        self.streams[:, :, 1].copy_(self.ids)
        if isinstance(self.draw, PathNoise):
            self.draw.path.reseed(seed, self.ids)

    def put_normals(self) -> None:
        """Calls the caller's noise for every stage that draws, in order."""
        for i, normals in self.normals.items():
            given = super()._drawn(i)
            if given.dtype == torch.float64 != normals.dtype:
                raise ValueError(
                    f"sample: stage {i}: what noise returned is {given.dtype}, but a graph holds "
                    f"normals of the state's {normals.dtype}"
                )
            normals.copy_(given)

    def _drawn(self, i: int) -> torch.Tensor:
        return self.normals[i] if i in self.normals else super()._drawn(i)

    def _make(self, i: int, call: BoundCall, filled: dict[str, torch.Tensor]) -> None:
        xs = [filled[x] if isinstance(x, str) else x for x in call.columns]
        if call.reduced:
            self._make_reduced(i, call, xs, filled)
            return
        try:
            ops.combine_table_out(xs, *call.table, call.clamp, call.outs, self.status)
        except (RuntimeError, ValueError) as error:
            self._blame(error, i, filled)
            raise

    def tensors(self) -> list[torch.Tensor]:
        """Returns every static tensor."""
        conditions = [v for found in self.arguments.values() for v in found.values()]
        held = [v for v in conditions if isinstance(v, torch.Tensor)]
        return [
            *self.buffers,
            self.numbers,
            self.streams,
            self.status,
            self.ids,
            *held,
            *self.reductions.tensors(),
        ]


def _size(call: Call) -> int:
    return len(call.weights) + len(call.noise)


def numbers_of(program: Program, batch: int) -> np.ndarray:
    """Returns the weights of all calls, a table [B, rows, columns] after the other, float64."""
    tables = (
        t for stage in program.stages for call in stage.calls for t in (call.weights, call.noise)
    )
    return np.concatenate([np.tile(np.asarray(t, dtype=np.float64), batch) for t in tables])


def copied(value: Any) -> Any:
    """Returns lists, tuples and dicts anew, with the elements that they hold now."""
    return tree_map(lambda leaf: leaf, value)


def same_value(value: Any, other: Any) -> bool:
    """Returns whether two conditions that are no tensors, or two guidance scales, are one."""
    if value is other:
        return True
    try:
        return type(value) is type(other) and bool(value == other)
    except (RuntimeError, ValueError):  # tensors or arrays in it, which have no one truth
        return False
