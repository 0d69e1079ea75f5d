"""Guidance rules as guiders of diffusers' modular pipelines.

    pipe.update_components(guider=guider(df.guidance.apg(5.0)))

A modular pipeline hands its guider the outputs of both branches, so a rule is a few fused ops here:
one for a linear rule; dot products, weights and sum for a rule that reduces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import ClassifierFreeGuidance
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from diffast import ops
from diffast.executors.context import Place
from diffast.executors.reduced import Reductions
from diffast.guidance.rule import COND, LOW, MOMENTUM, UNCOND, Rule, RuleAt, Scale
from diffast.lowering.calls import Call
from diffast.lowering.estimate import X0
from diffast.lowering.program import rule_name
from diffast.lowering.reductions import Reduction, remembers

# Programs and tables that a guider keeps: those of one shape at a few scales.
_KEPT = 64


class RuleGuider(ClassifierFreeGuidance):
    """A guider that runs a rule of `df.guidance`; see `guider`."""

    def __init__(self, rule: Rule, start: float = 0.0, stop: float = 1.0, enabled: bool = True):
        """Keeps the rule."""
        BaseGuidance.__init__(self, start, stop, enabled)
        self.rule, self.guidance_scale = rule, rule.scale
        self.use_original_formulation, self.guidance_rescale = False, rule.rescaled
        self.register_to_config(rule=rule_name(rule), start=start, stop=stop, enabled=enabled)
        self._momentum: torch.Tensor | None = None
        self._reduced: dict[Any, tuple[Reductions, tuple[str, ...], torch.Tensor]] = {}

    def new(self, **kwargs: Any) -> RuleGuider:
        """Returns another guider of the rule; arguments replace its own."""
        own = {name: self.config[name] for name in ("start", "stop", "enabled")}
        return RuleGuider(**{"rule": self.rule, **own, **kwargs})

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Is told the step; the first one forgets what an earlier run remembered."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._momentum = None

    def _at(self) -> RuleAt:
        """Returns the rule at this step."""
        time = 0.0
        if callable(self.rule.scale) or self.rule.window is not None:
            time = float(torch.as_tensor(self._timestep).reshape(-1)[0])
        scale = self.rule.scale(time) if callable(self.rule.scale) else self.rule.scale
        window = self.rule.window
        inside = window is None or bool(window.holds(None, np.array([time]))[0])
        return self.rule.at(time, float(scale), inside, self._step or 0)

    def _is_cfg_enabled(self) -> bool:
        """Returns whether the unconditional branch is needed at this step."""
        if not self._enabled:
            return False
        if self._num_inference_steps is not None and self._step is not None:
            first, last = (
                int(share * self._num_inference_steps) for share in (self._start, self._stop)
            )
            if not first <= self._step < last:
                return False
        return UNCOND in self._at().used or self._at().weights == ()

    def forward(
        self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None
    ) -> GuiderOutput:
        """Returns the guided output [B, ...] of both branches' outputs.

        Raises:
            ValueError: outputs of different shapes.
        """
        if pred_uncond is None or not self._is_cfg_enabled():
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
        if pred_cond.shape != pred_uncond.shape:
            raise ValueError(
                f"guider: the outputs of the branches are {list(pred_cond.shape)} and "
                f"{list(pred_uncond.shape)}, but they must be alike"
            )
        at, tensors = self._at(), {COND: pred_cond.contiguous(), UNCOND: pred_uncond.contiguous()}
        if at.low:
            tensors[LOW] = at.rule.low_pass(tensors[COND] - tensors[UNCOND]).contiguous()
        with torch.no_grad():
            made = self._reducing(at, tensors) if at.reduces else _summed(at, tensors)
        return GuiderOutput(pred=made, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _reducing(self, at: RuleAt, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum by weights of each sample's own."""
        like = tensors[COND]
        momentum = self._momentum if remembers(at) else None
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
            self._momentum = kept
        return made


def _summed(at: RuleAt, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns the sum by weights that are numbers: one op."""
    made, weights = torch.empty_like(tensors[COND]), dict(at.weights or {COND: 0.0})
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
    columns = tuple(name for name in (COND, UNCOND, MOMENTUM, LOW) if name in row)
    call = Call(columns, (X0,), [0.0] * len(columns), [], reduced=True)
    reductions = Reductions({0: reduction}, place)
    reductions.bind(0, call, list(columns), list(reduction.columns))
    shape = (batch, 1, len(columns))
    return reductions, columns, torch.zeros(shape, dtype=torch.float64, device=like.device)


def guider(rule: Rule | Scale, start: float = 0.0, stop: float = 1.0) -> RuleGuider:
    """Returns a guider for a modular pipeline of diffusers that runs a rule of `df.guidance`.

    Args:
        rule: a rule of two branches, or the scale of classifier-free guidance. A scale that is a
            function is told the pipeline's timestep, which waits for the device.
        start: share of the steps at which guidance begins.
        stop: share of the steps at which it ends; outside the unconditional branch is not called.

    Raises:
        ValueError: a rule with branches or networks of its own, with dynamic thresholding or
            numbers of x0 estimates, or with an interval of noise levels: a guider knows neither x
            nor its level.
    """
    rule = rule if isinstance(rule, Rule) else Rule(scale=rule)
    why = None
    if rule.branches:
        why = "has a branch or a network of its own: diffusers' guiders of that name hook the model"
    elif rule.threshold is not None or rule.space != "output":
        why = "needs x0 estimates, but a guider has the network's outputs alone: use df.sample"
    elif rule.window is not None and rule.window.by == "sigma":
        why = "has an interval of noise levels, which a guider does not know: give start and stop"
    if why is not None:
        raise ValueError(f"guider: {rule_name(rule)} {why}")
    return RuleGuider(rule, start, stop)
