"""What the drop-in has no plan for: k-diffusion's own functions do it, where they are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from diffast.integrations.handed_over import say

MODULE = "k_diffusion.sampling"
_said: set[tuple[str, str]] = set()


def handed_over(name: str, why: str, kind: str, call: Mapping[str, Any]) -> Any:
    """Returns what k-diffusion's own function returns, and warns once of each name and kind.

    Args:
        name: of the function.
        why: what the drop-in cannot do, with the numbers.
        kind: of reason, by which warnings are counted.
        call: the arguments by name.

    Raises:
        ValueError: k-diffusion cannot be imported.
        FloatingPointError: its samples are not finite.
    """
    module, missing = _original()
    if module is None:
        raise ValueError(
            f"{name}: {why}, which only k-diffusion's own sampler does, and {MODULE} cannot be "
            f"imported ({missing})"
        )
    if (name, kind) not in _said:
        _said.add((name, kind))
        message = f"{name}: {why}: k-diffusion's own {name} does this"
        say(message)
    own: Callable[..., Any] = getattr(module, name)
    made = own(**call)
    x = made[0] if isinstance(made, tuple) else made
    if isinstance(x, torch.Tensor) and not bool(x.isfinite().all()):
        raise FloatingPointError(
            f"{name}: {why}; k-diffusion's own {name} did this, but its samples are not finite"
        )
    return made


def _original() -> tuple[ModuleType | None, str]:
    """Returns (k_diffusion.sampling, ""), or (None, why it cannot be imported)."""
    if MODULE in sys.modules:
        return sys.modules[MODULE], ""
    try:
        return import_module(MODULE), ""
    except Exception as error:  # its package imports much that samplers do not need
        return None, f"{type(error).__name__}: {error}"
