"""Guidance rules in ComfyUI: what replaces the sampler's own classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffast.executors.fused_rule import FusedRule, check_two_branches
from diffast.guidance.parse import parse
from diffast.guidance.rule import COND, UNCOND


def cfg_function(text: str) -> Callable[[dict[str, Any]], torch.Tensor]:
    """Returns a function for `ModelPatcher.set_model_sampler_cfg_function`.

    The rule sees the denoised latents of both branches, as ComfyUI hands them over. Its scale is
    the sampler's cfg. A rule with momentum forgets it where the noise level rises, or ComfyUI tells
    other levels: there a run begins.

    Args:
        text: NAME or NAME:key=value,... see `df.guidance.parse`: "apg:eta=0.5", "tcfg".

    Raises:
        ValueError: an unknown name or option; a rule of more than two branches, with dynamic
            thresholding or an interval.
    """
    check_two_branches("diffast guidance", parse(text, 2.0, "diffast guidance"))
    fused, last, planned = FusedRule(), [0.0], [None]

    def guided(args: dict[str, Any]) -> torch.Tensor:
        scale = float(args["cond_scale"])
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        sigma = float(args["sigma"].reshape(-1)[0])
        levels = _levels(args)
        # A run that was ended at its first step is followed by one of the same level.
        if sigma > last[0] or levels is not planned[0]:
            fused.momentum, calls[0] = None, 0
        last[0], planned[0] = sigma, levels
        if scale == 1.0:  # no rule acts
            return args["input"] - cond
        at = parse(text, scale, "diffast guidance").at(0.0, scale, True, calls[0])
        calls[0] += 1
        if at.weights is not None and UNCOND not in at.used and at.weights:
            return args["input"] - cond
        return args["input"] - fused(at, {COND: cond, UNCOND: uncond})

    calls = [0]
    return guided


def _levels(args: dict[str, Any]) -> Any:
    """Returns the tensor of a run's noise levels, if ComfyUI tells it."""
    options = args.get("model_options") or {}
    return (options.get("transformer_options") or {}).get("sample_sigmas")
