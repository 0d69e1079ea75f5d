"""What the readings of several libraries share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Network:
    """A function of (x, t, **conditions) that has a module's parameters.

    Args:
        module: whose parameters say device and dtype; may have none.
        call: the function.
    """

    def __init__(self, module: Any, call: Callable[..., Any]):
        """Keeps both."""
        self.module, self.call = module, call
        self.parameters = getattr(module, "parameters", None)

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> Any:
        """Returns the call's answer."""
        return self.call(x, t, **conditions)


def needed(who: str, thing: Any, names: tuple[str, ...], what: str) -> None:
    """Raises ValueError that names what a library's object lacks."""
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise ValueError(
            f"{who}: {type(thing).__name__} has no {' and no '.join(missing)}, but {what} is needed"
        )
