"""Guidance rules of a bound run whose weights depend on each sample's outputs.

Before the `combine` call of a stage, `gram` adds up the sample's dot products, and `evaluate` turns
them into the weights of row 0 of that call's table. With dynamic thresholding `quantile` comes in
between. The host reads nothing, so a CUDA graph holds these calls as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import Place
from diffast.executors.device import sent
from diffast.guidance.rule import RuleAt
from diffast.lowering.program import Call, Stage
from diffast.lowering.reductions import Reduction
from diffast.ops.evaluate.encode import Encoded, encode

# Encoded programs of a stage: recording and encoding them takes as long as a few stages.
_encoded: WeakKeyDictionary[Reduction, dict[Any, tuple[Encoded, ...]]] = WeakKeyDictionary()


def reductions_of(stages: Sequence[Stage], place: Place) -> Reductions:
    """Returns the reductions of a run, none of them bound yet."""
    return Reductions({i: s.reduction for i, s in enumerate(stages) if s.reduction}, place)


def limits_of(limits: list[float], at: RuleAt, who: str = "sample") -> list[float]:
    """Returns the clamp of a call whose row 0 is the sample's own: the row is kept in any case.

    Raises:
        ValueError: for a clamp that has nothing in common with the rule's own, [-1, 1].
    """
    low, high = limits or (-math.inf, math.inf)
    if at.threshold is None:
        return [low, high]
    low, high = max(low, -1.0), min(high, 1.0)
    if low > high:
        raise ValueError(
            f"{who}: clamp is ({limits[0]:g}, {limits[1]:g}) but guidance.dynamic_threshold "
            "clamps the x0 estimate to [-1, 1]"
        )
    return [low, high]


class Reductions:
    """The tensors of a run's reductions.

    Args:
        stages: the reductions by the number of their stage.
        place: what the run's tensors are.
    """

    def __init__(self, stages: dict[int, Reduction], place: Place):
        """Makes the tensors that are the same for all stages of one width."""
        self.stages, self.batch, self.device = stages, place.shape[0], place.device
        self.count = math.prod(place.shape[1:])
        self._sums: dict[int, torch.Tensor] = {}  # by width; by minus that, with the quantile
        self._rows: dict[tuple, torch.Tensor] = {}
        self._columns: dict[int, list] = {}
        self._programs: dict[int, tuple[Encoded, ...]] = {}
        self._weights: dict[int, torch.Tensor] = {}  # of row 0, where its quantile is asked for
        self._quantiles = torch.empty(0, device=self.device)
        with torch.inference_mode(False):
            self._none = torch.empty(0, dtype=torch.float64, device=self.device)
            self._pieces = torch.empty((0, 0, 4), dtype=torch.float64, device=self.device)
            for reduction in stages.values():
                self._make(reduction)
            streams = np.zeros((len(stages), self.batch, 3), dtype=np.int64)
            streams[:, :, 0] = place.seed
            streams[:, :, 2] = np.array(list(stages), dtype=np.int64)[:, None]
            (self._streams,) = sent(self.device, streams) if stages else (self._none,)
            if stages:
                self._streams[:, :, 1] = place.ids

    def _make(self, reduction: Reduction) -> None:
        width, rows = reduction.width, reduction.rows
        if width not in self._sums:
            self._sums[width] = self._empty(width)
        if rows and rows not in self._rows:
            table = np.tile(np.array(rows)[None], (self.batch, 1, 1))
            (self._rows[rows],) = sent(self.device, table)
        if reduction.at.threshold is not None:
            self._quantiles = self._empty()
            if width:
                self._sums[-width] = self._empty(width + 1)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty((self.batch, *shape), dtype=torch.float64, device=self.device)

    @torch.inference_mode(False)
    def table(self, i: int, call: Call) -> tuple:
        """Returns (weights, noise, streams) of stage i's call as `combine_table_out` takes them."""
        numbers = [call.weights, call.noise] if call.noise else [call.weights]
        arrays = [np.array(n).reshape(1, len(call.targets), -1) for n in numbers]
        made = sent(self.device, *(np.tile(a, (self.batch, 1, 1)) for a in arrays))
        return made[0], made[1] if call.noise else None, self._streams[list(self.stages).index(i)]

    @torch.inference_mode(False)
    def bind(self, i: int, call: Call, row: list, measured: list) -> None:
        """Binds stage i.

        Args:
            i: number of the stage.
            call: whose row 0 is written.
            row: tensors of that row, or names of those that a stage makes.
            measured: likewise, of the measured rows.
        """
        reduction = self.stages[i]
        self._columns[i] = measured
        names = call.columns
        programs = programs_of(reduction, names, self.count)
        arrays = [a.numpy() for p in programs for a in (p.code, p.constants, p.starts)]
        if reduction.at.threshold is not None:
            weights = np.zeros((self.batch, 1, len(names)))
            if not reduction.names:  # numbers
                found = reduction.estimate(np, (), self.count)
                weights[:] = [float(found.get(name, 0.0)) for name in names]
            arrays.append(weights)
        made = sent(self.device, *arrays)
        if reduction.at.threshold is not None:
            self._weights[i] = made.pop()
        self._programs[i] = tuple(
            Encoded(made[3 * k], made[3 * k + 1], made[3 * k + 2], p.registers)
            for k, p in enumerate(programs)
        )

    def write(
        self, i: int, row: list, filled: dict[str, torch.Tensor], table: torch.Tensor
    ) -> None:
        """Writes the weights of row 0 into the table [B, R, K] of stage i's call.

        Args:
            i: number of the stage.
            row: the tensors of the call.
            filled: tensors that the stage has made, by name.
            table: the call's.
        """
        reduction, programs = self.stages[i], self._programs[i]
        inputs = self._sums[reduction.width]
        if reduction.names:
            xs = [filled[x] if isinstance(x, str) else x for x in self._columns[i]]
            ops.gram(xs, self._rows[reduction.rows], inputs)
        threshold = reduction.at.threshold
        if threshold is not None:
            weights = self._weights[i]
            if reduction.names:
                self._evaluate(programs[0], inputs, weights)
            ops.quantile(row, weights, threshold.p, self._quantiles)
            inputs = self._joined(inputs, self._quantiles)
        self._evaluate(programs[-1], inputs, table)

    def _joined(self, sums: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
        """Returns the measured numbers and the quantile of each sample, [B, C + 1]."""
        if not sums.shape[1]:
            return quantiles[:, None]
        joined = self._sums[-sums.shape[1]]
        joined[:, :-1] = sums
        joined[:, -1] = quantiles
        return joined

    def _evaluate(self, program: Encoded, inputs: torch.Tensor, out: torch.Tensor) -> None:
        code, constants, starts, registers = program
        rest = None, 0, self._none, self._pieces, registers, [out]
        ops.evaluate(code, constants, starts, 0, inputs, *rest)

    def tensors(self) -> list[torch.Tensor]:
        """Returns every tensor that the reductions hold."""
        programs = (p for encoded in self._programs.values() for p in encoded)
        held = [t for p in programs for t in (p.code, p.constants, p.starts)]
        own = [*self._sums.values(), *self._rows.values(), *self._weights.values()]
        return [*own, *held, self._none, self._pieces, self._quantiles]


def programs_of(reduction: Reduction, columns: tuple[str, ...], count: int) -> tuple[Encoded, ...]:
    """Returns the programs of a stage: the weights; with a threshold also those divided by it."""
    kept = _encoded.setdefault(reduction, {})
    if (columns, count) not in kept:
        made = [reduction.program(count, columns)]
        if reduction.at.threshold is not None:
            made.append(reduction.program(count, columns, reduction.width))
        kept[columns, count] = tuple(encode([program]) for program in made)
    return kept[columns, count]
