"""Guidance scales of a plan, handed to a pipeline that applies guidance itself.

A pipeline adds guidance between its network and its scheduler. Many read the scale from
`self.guidance_scale`, a property over `self._guidance_scale`, anew at every step: there the scale
of the next call can be set between two steps. Others keep it in a local variable: there it cannot.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from diffast.plans import Plan

# u + self.guidance_scale * (c - u), as the loops of such pipelines have it.
_APPLIED = re.compile(r"self\.guidance_scale\s*\*\s*\(")
# Pipelines leave out the unconditional branch at scales up to 1, in the middle of a run too, where
# their other tensors still have both branches.
_LEAST = 1.0 + 1e-6


def scales_of(plan: Plan) -> np.ndarray | None:
    """Returns the plan's guidance scale of each call, [calls]; None where it has none."""
    guidance = getattr(plan, "guidance", None)
    if guidance is None:
        return None
    return np.asarray(guidance, np.float64).reshape(plan.stages, -1)[plan.calls, 0]


def takes_scales(pipe: Any) -> bool:
    """Returns whether the pipeline reads its guidance scale anew at every step."""
    kind = type(pipe)
    if not isinstance(getattr(kind, "guidance_scale", None), property):
        return False
    try:
        source = inspect.getsource(kind.__call__)
    except (OSError, TypeError):
        return False
    return _APPLIED.search(source) is not None


class GuidanceHook:
    """Sets a pipeline's guidance scale before each call of a plan.

    Args:
        pipe: returns the pipeline, or None where it is gone (a weak reference).
        plan: with guidance scales.

    Raises:
        ValueError: a pipeline that takes one scale for a whole run; scales below 1.
    """

    def __init__(self, pipe: Callable[[], Any], plan: Plan):
        """Checks pipeline and scales."""
        scales = scales_of(plan)
        assert scales is not None  # the caller has looked
        self.pipe, self.scales = pipe, scales
        name = type(pipe()).__name__
        if not takes_scales(pipe()):
            raise ValueError(
                f"the plan {plan.name} has a guidance scale of its own for each call, but {name} "
                "takes one scale for the whole run: tune without the freedom 'guidance'"
            )
        if self.scales.min() < 1.0:
            raise ValueError(
                f"the plan {plan.name} has a guidance scale of {self.scales.min():g}, but {name} "
                "guides with scales from 1 on alone: use df.sample"
            )

    def begin(self, scheduler: Any) -> None:
        """Sets the scale of the first call.

        Raises:
            ValueError: a pipeline that was called without guidance.
        """
        pipe = self._pipe(scheduler)
        if pipe is None:
            return
        if not pipe.guidance_scale > 1.0:
            raise ValueError(
                f"the plan {scheduler.plan.name} has guidance scales, but guidance_scale is "
                f"{pipe.guidance_scale}: call the pipeline with one above 1, so that it makes the "
                "unconditional branch; its value is not used"
            )
        self._set(pipe, 0)

    def after(self, scheduler: Any) -> None:
        """Sets the scale of the call after the one that was made last."""
        pipe, following = self._pipe(scheduler), scheduler.step_index
        if pipe is not None and following is not None and following < len(self.scales):
            self._set(pipe, following)

    def _pipe(self, scheduler: Any) -> Any:
        pipe = self.pipe()
        return pipe if pipe is not None and pipe.scheduler is scheduler else None

    def _set(self, pipe: Any, call: int) -> None:
        pipe._guidance_scale = max(float(self.scales[call]), _LEAST)
