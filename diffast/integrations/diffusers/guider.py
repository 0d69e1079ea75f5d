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

from diffast.executors.fused_rule import FusedRule, check_two_branches
from diffast.guidance.rule import COND, UNCOND, Rule, RuleAt, Scale
from diffast.lowering.program import rule_name


class RuleGuider(ClassifierFreeGuidance):
    """A guider that runs a rule of `df.guidance`; see `guider`."""

    def __init__(self, rule: Rule, start: float = 0.0, stop: float = 1.0, enabled: bool = True):
        """Keeps the rule."""
        BaseGuidance.__init__(self, start, stop, enabled)
        self.rule, self.guidance_scale = rule, rule.scale
        self.use_original_formulation, self.guidance_rescale = False, rule.rescaled
        self.register_to_config(rule=rule_name(rule), start=start, stop=stop, enabled=enabled)
        self._fused = FusedRule()

    def new(self, **kwargs: Any) -> RuleGuider:
        """Returns another guider of the rule; arguments replace its own."""
        own = {name: self.config[name] for name in ("start", "stop", "enabled")}
        return RuleGuider(**{"rule": self.rule, **own, **kwargs})

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Is told the step; the first one forgets what an earlier run remembered."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._fused.momentum = None

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
        made = self._fused(self._at(), {COND: pred_cond, UNCOND: pred_uncond})
        return GuiderOutput(pred=made, pred_cond=pred_cond, pred_uncond=pred_uncond)


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
    check_two_branches("guider", rule)
    return RuleGuider(rule, start, stop)
