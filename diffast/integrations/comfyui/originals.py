"""ComfyUI's own samplers, which run where a plan cannot give the same picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from diffast.integrations.handed_over import say


def original_of(name: str) -> Callable[..., torch.Tensor] | None:
    """Returns ComfyUI's own sampler function of that name; None if this ComfyUI has none.

    Args:
        name: as in ComfyUI's list of samplers, without the package's prefix.
    """
    samplers = sys.modules.get("comfy.samplers")
    made = getattr(samplers, "sampler_object", None)
    if made is not None:
        try:
            return made(name).sampler_function
        except AttributeError:  # an older ComfyUI, or an extension's name
            return None
    return getattr(sys.modules.get("comfy.k_diffusion.sampling"), f"sample_{name}", None)


def hand_over(
    name: str, original: str, why: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> torch.Tensor:
    """Returns what ComfyUI's own sampler gives, and says once that it ran.

    Args:
        name: of the package's sampler.
        original: ComfyUI's name; "" if it has none.
        why: what the plan could not do.
        arguments: (model, x, sigmas, extra_args, callback, disable).
        options: further ones, by ComfyUI's names.

    Raises:
        ValueError: this ComfyUI has no such sampler, or its sampler does not take the options.
        FloatingPointError: its samples are not finite.
    """
    function = original_of(original) if original else None
    if function is None:
        raise ValueError(f"{name}: {why}, and this ComfyUI has no sampler of its own for it")
    say(f"{name}: {why}, so ComfyUI's own sampler {original} ran, with its own noise")
    model, x, sigmas, extra_args, callback, disable = arguments
    own = {} if extra_args is None else extra_args
    try:  # some of them write into the sigmas and into extra_args, and KSAMPLER reads that
        out = function(
            model, x, sigmas, extra_args=own, callback=callback, disable=disable, **options
        )
    except TypeError as error:
        if "keyword" not in str(error):
            raise
        raise ValueError(
            f"{name}: {why}; ComfyUI's {original} refuses it as well: {error}"
        ) from None
    except torch.linalg.LinAlgError as error:
        raise FloatingPointError(f"{name}: {why}; ComfyUI's own {original}: {error}") from None
    if not bool(out.isfinite().all()):
        raise FloatingPointError(f"{name}: {why}; ComfyUI's own {original} gave inf or nan with it")
    return out
