"""Guidance rules of a `Stepper` whose weights depend on each sample's outputs.

Where all samples stand at one stage, its calls are those of `df.sample`: `gram`, `quantile` and
`evaluate` make the weights of the x0 estimate, and one `combine` has them in its table. Where
samples stand each at a stage of their own, the rule makes one output of the branches' outputs, and
the stepper's table weighs that one. This takes a rule whose weights are the same function of the
outputs at every stage where it reduces.

Tensors that a call fills are made for that call, so a step stays a pure function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors.reduced import limits_of, programs_of
from diffast.guidance.rule import BRANCHES, MOMENTUM, Rule, rule_name
from diffast.lowering.program import Constraints, Program, Stage, lower
from diffast.lowering.reductions import Reduction, remembers
from diffast.lowering.step_table import (
    AT_COND,
    AT_GUIDED,
    AT_LOW,
    AT_UNCOND,
    AT_X,
    AT_X0,
    FIXED,
    StepCall,
    numbered,
)
from diffast.ops.evaluate.encode import Encoded

_WHO = "Stepper"
# Tables and programs on the device that are kept: those of a few plans' stages.
_KEPT = 512
_OWN = "samples stand each at a stage of their own: step them together, or use df.sample"


class StepRules:
    """The guidance rules of a stepper's plans.

    Args:
        programs: of the plans.
        pairs: the plans, and what says what the network's outputs mean.
        how: what the plans were lowered for.
        limits: the clamp, or [].
        put: brings a tensor of the host to the device.

    Attributes:
        reduces: whether any stage has weights that depend on the outputs.
        carried: {"momentum"} where any stage writes a momentum that a later one reads.
        low: whether any stage weighs a low-passed difference.

    Raises:
        ValueError: a clamp that has nothing in common with a rule's own.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        pairs: Sequence[tuple[Any, Any]],
        how: Constraints,
        limits: list[float],
        put: Callable[[torch.Tensor], torch.Tensor],
    ):
        """Notes the rule of every table row; a plan's end has none."""
        self.pairs, self.how, self.limits, self.put = pairs, how, limits, put
        self.stages: list[Stage | None] = []
        for program in programs:
            self.stages += [*program.stages, None]
        self.reductions = [s.reduction if s is not None else None for s in self.stages]
        self.lows = [s.low if s is not None else None for s in self.stages]
        for reduction in self.reductions:
            if reduction is not None:
                limits_of(limits, reduction.at, _WHO)
        self.reduces = any(r is not None for r in self.reductions)
        targets = [call.targets for s in self.stages if s is not None for call in s.calls]
        self.carried = {MOMENTUM} if any(MOMENTUM in names for names in targets) else set()
        self.low = any(rule is not None for rule in self.lows)
        self._one: Reduction | None = None  # of all stages, once it is known that they agree
        self._checked = False
        self._noise: dict[int, torch.Tensor] = {}  # weights of the normals, by table row
        self._static: dict[Any, tuple[torch.Tensor, torch.Tensor, list[Encoded]]] = {}

    @property
    def active(self) -> bool:
        """Returns whether any rule needs more than the plan's weights of the branches' outputs."""
        return self.low or self.reduces

    def registers(self, state: Any, given: Sequence[torch.Tensor | None]) -> list:
        """Returns the tensors of a step by register number.

        Args:
            state: of the run.
            given: outputs of the three branches; then, or None, the x0 estimate, the normals and
                the gradients of guidance terms.
        """
        made = [t if t is None else t.contiguous() for t in given]
        made += [None] * (len(BRANCHES) + len(FIXED) - AT_X0 - len(made))
        rules = [state.momentum, None, None]
        outputs, rest = made[: len(BRANCHES)], made[len(BRANCHES) :]
        tensors = [state.y, state.v, state.x, *outputs, *rules, *rest, *state.slots]
        if self.active:
            self.fill(state.row, tensors)
        return tensors

    def fill(self, row: int | torch.Tensor, tensors: list) -> None:
        """Puts what the rules make of the outputs into the registers of a step.

        Args:
            row: the state's.
            tensors: by register number.
        """
        together = isinstance(row, int)
        if not together:
            self.check_each()
        low = self.lows[row] if together else next((r for r in self.lows if r is not None), None)
        if low is not None:
            with torch.inference_mode(False), torch.no_grad():
                tensors[AT_LOW] = low.low_pass(tensors[AT_COND] - tensors[AT_UNCOND]).contiguous()
        if not together and self._one is not None:
            tensors[AT_GUIDED] = self._guided(self._one, tensors)

    def combine(
        self,
        state: Any,
        call: StepCall,
        xs: list[torch.Tensor],
        tensors: list,
        outs: list[torch.Tensor],
        status: torch.Tensor,
        stage: int,
    ) -> None:
        """Makes the rows of a stage, all samples together, whose row 0 is the sample's own."""
        reduction = self.reductions[state.row]
        assert reduction is not None
        batch, key = len(state.x), (state.row, "rows")
        numbers = np.reshape(call.weights, (1, call.rows, -1))
        weights = self._weights(key, reduction, call.columns, xs, tensors, numbers)
        noise = None
        if call.noise:
            if state.row not in self._noise:
                fresh = np.reshape(call.noise, (1, call.rows, -1))
                self._noise[state.row] = self.put(torch.from_numpy(fresh))
            noise = self._noise[state.row].repeat(batch, 1, 1)
        seed, word = (torch.full_like(state.ids, n) for n in (state.seed, stage))
        streams = torch.stack([seed, state.ids, word], 1)
        limits = limits_of(self.limits, reduction.at, _WHO)
        ops.combine_table_out(xs, weights, noise, streams, limits, outs, status)

    def estimate(
        self, state: Any, call: StepCall, xs: list, tensors: list, x0: torch.Tensor
    ) -> None:
        """Makes the x0 estimate of a stage, all samples together, before a hook."""
        reduction = self.reductions[state.row]
        assert reduction is not None
        clamped = bool(self.limits) or reduction.at.threshold is not None
        numbers = np.zeros((1, 1, len(xs) + clamped))
        key = state.row, "x0"
        weights = self._weights(key, reduction, call.x0_columns, xs, tensors, numbers)
        limits = limits_of(self.limits, reduction.at, _WHO) if clamped else []
        ops.combine_table_out(xs, weights, None, None, limits, [x0], None)

    def _weights(
        self,
        key: tuple,
        reduction: Reduction,
        columns: Sequence[int],
        xs: list[torch.Tensor],
        tensors: list,
        numbers: np.ndarray,
    ) -> torch.Tensor:
        """Returns the weights [B, R, K] of a call: `numbers` [1, R, K] but for row 0.

        Args:
            key: of the call, for what is kept.
            reduction: what makes row 0.
            columns: numbers of the registers of the call.
            xs: their tensors.
            tensors: by register number.
            numbers: the plan's weights.
        """
        batch, count = len(xs[0]), math.prod(xs[0].shape[1:])
        kept = self._static.get((key, count))
        if kept is None:
            if len(self._static) >= _KEPT:
                self._static.clear()
            kept = self._static[key, count] = self._made(reduction, columns, count, numbers)
        rows, weights, programs = kept
        inputs = weights.new_empty((batch, reduction.width))
        if reduction.names:
            measured = [tensors[FIXED.index(name)].contiguous() for name in reduction.columns]
            ops.gram(measured, rows.repeat(batch, 1, 1), inputs)
        made = weights.repeat(batch, 1, 1)
        threshold = reduction.at.threshold
        if threshold is not None:
            before = made[:, :1, : len(xs)].clone(memory_format=torch.contiguous_format)
            if reduction.names:
                self._evaluate(programs[0], inputs, before)
            quantiles = weights.new_empty(batch)
            ops.quantile(xs, before, threshold.p, quantiles)
            inputs = torch.cat([inputs, quantiles[:, None]], 1)
        self._evaluate(programs[-1], inputs, made)
        return made

    @torch.inference_mode(False)
    def _made(
        self, reduction: Reduction, columns: Sequence[int], count: int, numbers: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, list[Encoded]]:
        """Returns (measured rows [1, J, K], weights [1, R, K], programs) on the device."""
        names = tuple(FIXED[k] if k < len(FIXED) else "slot" for k in columns)
        programs = [
            Encoded(self.put(p.code), self.put(p.constants), self.put(p.starts), p.registers)
            for p in programs_of(reduction, names, count)
        ]
        numbers = numbers.copy()
        if not reduction.names:  # numbers
            found = reduction.estimate(np, (), count)
            numbers[0, 0, : len(names)] = [float(found.get(name, 0.0)) for name in names]
        rows = np.array(reduction.rows, dtype=np.float64)[None]
        return self.put(torch.from_numpy(rows)), self.put(torch.from_numpy(numbers)), programs

    def _evaluate(self, program: Encoded, inputs: torch.Tensor, out: torch.Tensor) -> None:
        code, constants, starts, registers = program
        none = inputs.new_empty(0), inputs.new_empty((0, 0, 4))
        ops.evaluate(code, constants, starts, 0, inputs, None, 0, *none, registers, [out])

    def _guided(self, reduction: Reduction, tensors: list) -> torch.Tensor:
        """Returns what the rule makes of the branches' outputs, [B, ...]."""
        row = reduction.estimate_row()
        columns = [k for k, name in enumerate(FIXED) if name in row]
        xs, made = [tensors[k].contiguous() for k in columns], torch.empty_like(tensors[AT_X])
        numbers = np.zeros((1, 1, len(xs)))
        weights = self._weights(("guided",), reduction, columns, xs, tensors, numbers)
        ops.combine_table_out(xs, weights, None, None, [], [made], None)
        return made

    def check_each(self) -> None:
        """Raises ValueError for a rule that samples at different stages cannot have."""
        if self._checked:
            return
        rules = [rule for rule in self.lows if rule is not None]
        if any(rule != rules[0] for rule in rules):
            self._refuse(rules[0], "is not the same for all plans")
        found = [r for r in self.reductions if r is not None]
        self._one = self._agreed(found) if found else None
        self._checked = True

    def _agreed(self, found: list[Reduction]) -> Reduction:
        """Returns the one reduction of all stages, over the branches' outputs."""
        for reduction in found:
            if reduction.at.threshold is not None:
                why = "takes a quantile of the x0 estimate, whose weights depend on the stage"
                self._refuse(reduction.at.rule, why)
            if reduction.at.rule.space != "output" and reduction.affine != (0.0, 1.0):
                why = "needs x0 estimates, whose weights depend on the stage"
                self._refuse(reduction.at.rule, why)
        # The first momentum is a sum with zeros.
        own = [Reduction(r.at, (0.0, 1.0), bool(self.carried) and remembers(r.at)) for r in found]
        columns = tuple(name for name in FIXED if name in own[0].estimate_row())
        first = _recorded(own[0], columns)
        for reduction in own:
            if _recorded(reduction, columns) != first:
                self._refuse(reduction.at.rule, "has weights that depend on the stage")
        return own[0]

    def _refuse(self, rule: Rule, why: str) -> None:
        raise ValueError(f"{_WHO}: guidance is {rule_name(rule)}, which {why}, but {_OWN}")

    def for_table(self, calls: list[StepCall | None]) -> list[StepCall | None]:
        """Returns the stages for the table, whose x0 estimates weigh the rule's output.

        Args:
            calls: all stages of all plans; None among them is a plan's end.
        """
        if not self.reduces:
            return calls
        alone: list[StepCall | None] = []
        for plan, read in self.pairs:
            program = lower(plan, read, replace(self.how, hook=True))
            alone += [*numbered(program), None]
        return [self._over_guided(row, call) for row, call in enumerate(alone)]

    def _over_guided(self, row: int, call: StepCall | None) -> StepCall | None:
        reduction = self.reductions[row]
        if reduction is None or call is None:
            return call
        a, b = reduction.affine
        return replace(call, x0_columns=(AT_X, AT_GUIDED), x0_weights=[a, b])


def _recorded(reduction: Reduction, columns: tuple[str, ...]) -> tuple:
    """Returns all that the weights of a rule's output depend on."""
    used = set(reduction.estimate_row())
    return used, reduction.names, reduction.rows, reduction.program(2, columns)
