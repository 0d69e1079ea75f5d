"""The noise levels that a plan is made for, read from ComfyUI's sigmas."""

from __future__ import annotations

import math
from typing import Any

import torch

# The start of a flow model whose solver needs a finite log-SNR, as ComfyUI's percent_to_sigma(...).
FLOW_START = 1e-4

# How far above 1 a flow model's first sigma may be by rounding: a few steps of float32.
ROUNDING = 1e-6


class CannotPlan(Exception):
    """What a plan cannot do with the sigmas or options, in words: ComfyUI's own sampler can."""


def is_flow(model_sampling: Any) -> bool:
    """Returns whether ComfyUI's model_sampling is that of a flow model."""
    from comfy.model_sampling import CONST  # pyright: ignore[reportMissingImports]: ComfyUI's own

    return isinstance(model_sampling, CONST)


def check_sigmas(name: str, sigmas: torch.Tensor) -> None:
    """Raises ValueError for sigmas that no sampler can run on."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.dim() != 1:
        what = list(sigmas.shape) if isinstance(sigmas, torch.Tensor) else type(sigmas).__name__
        raise ValueError(f"{name}: sigmas is {what}, but a tensor [N+1] is needed")
    if sigmas.is_meta:
        raise ValueError(f"{name}: sigmas is on the device 'meta', where tensors have no numbers")


def levels_of(name: str, sigmas: torch.Tensor, flow: bool) -> tuple[float, ...]:
    """Returns the sigmas as Python floats: the only read from their device.

    Args:
        name: begins the messages.
        sigmas: [N+1], N at least 1.
        flow: whether the plan is on (1 - sigma) x0 + sigma eps, where sigma is at most 1.

    Raises:
        ValueError: a sigma that is not finite, or below 0.
        CannotPlan: sigmas that rise or repeat, or are above 1 on a flow.
    """
    levels = sigmas.detach().double().cpu().tolist()
    for i, level in enumerate(levels):
        if not math.isfinite(level):
            raise ValueError(f"{name}: sigmas[{i}] = {level}, but noise levels are finite")
        if level < 0.0:
            raise ValueError(f"{name}: sigmas[{i}] = {level:g}, but noise levels are not below 0")
    if flow and 1.0 < levels[0] <= 1.0 + ROUNDING:
        levels[0] = 1.0
    for i, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        if level > following:
            continue
        what = "equal" if following == level else "rising"
        raise CannotPlan(f"sigmas[{i}] = {level:g} and sigmas[{i + 1}] = {following:g} are {what}")
    if flow and levels[0] > 1.0:
        raise CannotPlan(f"sigmas[0] = {levels[0]:g} is above 1, a flow model's noisiest level")
    return tuple(levels)


def below_one(sigmas: torch.Tensor, model_sampling: Any) -> torch.Tensor:
    """Returns the sigmas, the first one moved as in ComfyUI where its log-SNR is infinite."""
    if not float(sigmas[0]) >= 1.0:  # NaN stays, and is refused
        return sigmas
    moved = float(model_sampling.percent_to_sigma(FLOW_START))
    return torch.cat([sigmas.new_tensor([moved]), sigmas[1:]])


def means_nothing(option: str, value: Any) -> bool:
    """Returns whether ComfyUI's samplers do the same with the option as without it."""
    if value is None:
        return option in ("noise_scaler", "tau_func", "s_noise_end")
    neutral = {"s_churn": 0.0, "noise_clip_std": 0.0, "s_noise": 1.0, "eta": None}
    unused = ("s_tmin", "s_tmax")
    return option in unused or neutral.get(option) == value
