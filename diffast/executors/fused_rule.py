"""A guidance rule on outputs of the branches, apart from a plan: a few fused ops.

One op for a linear rule; dot products, weights and sum for a rule that reduces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffast import ops
from diffast.executors.context import Place
from diffast.executors.reduced import Reductions
from diffast.guidance.rule import COND, EXTRA, LOW, MOMENTUM, UNCOND, Rule, RuleAt
from diffast.lowering.calls import Call
from diffast.lowering.estimate import X0
from diffast.lowering.program import rule_name
from diffast.lowering.reductions import Reduction, remembers

# Programs and tables that are kept: those of one shape at a few scales.
_KEPT = 64


class FusedRule:
    """Makes the guided output of the branches' outputs, and remembers a momentum.

    Its `momentum` is None before the first call of a run.
    """

    def __init__(self) -> None:
        """Remembers nothing."""
        self.momentum: torch.Tensor | None = None
        self._reduced: dict[Any, tuple[Reductions, tuple[str, ...], torch.Tensor]] = {}

    def __call__(self, at: RuleAt, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the guided output [B, ...] by a rule at one network call.

        Args:
            at: the rule there.
            outputs: of the branches, by name: "cond", "uncond", "extra".

        Raises:
            ValueError: outputs of different shapes.
        """
        shapes = {tuple(output.shape) for output in outputs.values()}
        if len(shapes) > 1:
            shown = " and ".join(str([*shape]) for shape in sorted(shapes, reverse=True))
            raise ValueError(
                f"{at.rule.name}: the outputs of the branches are {shown}, but they must be alike"
            )
        tensors = {name: output.contiguous() for name, output in outputs.items()}
        if at.low:
            tensors[LOW] = at.rule.low_pass(tensors[COND] - tensors[UNCOND]).contiguous()
        with torch.no_grad():
            return self._reducing(at, tensors) if at.reduces else _summed(at, tensors)

    def _reducing(self, at: RuleAt, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum by weights of each sample's own."""
        like = tensors[COND]
        momentum = self.momentum if remembers(at) else None
        remembered = momentum is not None
        if momentum is not None:
            tensors[MOMENTUM] = momentum
        key = (at, remembered, tuple(like.shape), like.dtype, like.device)
        if key not in self._reduced:
            if len(self._reduced) == _KEPT:
                self._reduced.clear()
            self._reduced[key] = _bound(Reduction(at, (0.0, 1.0), remembered), like)
        reductions, columns, table = self._reduced[key]
        xs, made = [tensors[name] for name in columns], torch.empty_like(like)
        reductions.write(0, xs, tensors, table)
        ops.combine_table_out(xs, table, None, None, [], [made], None)
        if remembers(at):
            row = Reduction(at, (0.0, 1.0), remembered).momentum
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            kept = torch.empty_like(like, dtype=dtype)
            ops.combine_out([tensors[name] for name in row], list(map(float, row.values())), [kept])
            self.momentum = kept
        return made


def _summed(at: RuleAt, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the sum by weights that are numbers: one op."""
    weights = dict(at.weights or {next(iter(tensors)): 0.0})
    made = torch.empty_like(next(iter(tensors.values())))
    ops.combine_out([tensors[name] for name in weights], list(weights.values()), [made])
    return made


def _bound(
    reduction: Reduction, like: torch.Tensor
) -> tuple[Reductions, tuple[str, ...], torch.Tensor]:
    """Returns the reduction's tensors, the columns of its sum, and the sum's table."""
    batch = len(like)
    ids = torch.arange(batch, device=like.device)
    place = Place(tuple(like.shape), like.dtype, like.device, ids, 0, [])
    row = reduction.estimate_row()
    columns = tuple(name for name in (COND, UNCOND, EXTRA, MOMENTUM, LOW) if name in row)
    call = Call(columns, (X0,), [0.0] * len(columns), [], reduced=True)
    reductions = Reductions({0: reduction}, place)
    reductions.bind(0, call, list(columns), list(reduction.columns))
    shape = (batch, 1, len(columns))
    return reductions, columns, torch.zeros(shape, dtype=torch.float64, device=like.device)


def check_two_branches(who: str, rule: Rule) -> None:
    """Raises ValueError for a rule that needs more than the outputs of two branches."""
    why = None
    if rule.branches:
        why = "has a branch or a network of its own, but two outputs are handed over: use df.sample"
    elif rule.threshold is not None or rule.space != "output":
        why = "needs x0 estimates, but the network's outputs alone are handed over: use df.sample"
    elif rule.window is not None and rule.window.by == "sigma":
        why = "has an interval of noise levels, which is not known here: give start and stop"
    if why is not None:
        raise ValueError(f"{who}: {rule_name(rule)} {why}")
