"""The unconditional estimate, which CFG++ samplers weigh as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from diffast.plans import Plan

# How a network call is told which branch it is for, where it is for one alone.
JOINED, ALONE = torch.int8, torch.bool


def marks(device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the conditions of a `Denoiser` and its unconditional ones, for `TwoBranches`.

    A call on both branches has the first one's dtype. The numbers are never read.
    """
    joined, alone = (torch.zeros(1, 1, dtype=dtype, device=device) for dtype in (JOINED, ALONE))
    return {"branch": joined}, {"branch": alone}


def renamed(plan: Plan) -> Plan:
    """Returns the plan that weighs ComfyUI's guided estimate as that of the conditional branch.

    ComfyUI's model is called once and gives the guided and the unconditional estimate. No other
    guidance joins them, so the guided one takes the place of a branch.
    """
    columns = tuple({"d": "d_cond"}.get(column, column) for column in plan.columns)
    return replace(plan, columns=columns)


class TwoBranches:
    """A ComfyUI model as a network of two branches: guided estimates first, unconditional after.

    Args:
        model: called as model(x, sigma [B], **extra_args).
        batch: number of samples B.
        extra_args: ComfyUI's; its model_options get a function after the guidance.

    Raises:
        ValueError: at a call, where the guider makes no unconditional estimate.
    """

    def __init__(self, name: str, model: Callable[..., torch.Tensor], batch: int, extra_args: dict):
        """Keeps the arguments, which are read at each call."""
        self.name, self.model, self.batch, self.extra_args = name, model, batch, extra_args
        self.unconditional: torch.Tensor | None = None

    def _listening(self) -> dict[str, Any]:
        """Returns the extra arguments, with a listener in a copy of the model options."""
        from comfy.model_patcher import (  # pyright: ignore[reportMissingImports]: ComfyUI's own
            set_model_options_post_cfg_function,
        )

        options = dict(self.extra_args.get("model_options") or {})
        options = set_model_options_post_cfg_function(
            options, self._listen, disable_cfg1_optimization=True
        )
        return {**self.extra_args, "model_options": options}

    def _listen(self, args: dict[str, Any]) -> torch.Tensor:
        self.unconditional = args["uncond_denoised"]
        return args["denoised"]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """Returns the estimates [2B, ...], or [B, ...] of the branch that the call is for."""
        self.unconditional = None
        rows = slice(self.batch)
        denoised = self.model(x[rows], sigma[rows], **self._listening())
        if self.unconditional is None:
            raise ValueError(
                f"{self.name}: this sampler needs an unconditional estimate, but the guider makes "
                "none: use a guider with a negative prompt"
            )
        if len(x) > self.batch:
            return torch.cat([denoised, self.unconditional.to(denoised.dtype)])
        return self.unconditional if branch.dtype == ALONE else denoised
