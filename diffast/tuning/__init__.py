"""Plans made for a network: candidates measured on a pilot batch, then learned weights.

`grids` is the part that measures grids on a network.
"""

from importlib import import_module
from typing import Any

from diffast._namespace import attributes

__all__ = ["grids"]  # pyright: ignore[reportUnsupportedDunderAll]: loaded when asked for

_unknown, __dir__ = attributes(__name__, __all__)


def __getattr__(name: str) -> Any:
    """Returns the module of that name; loaded when it is asked for."""
    return import_module(f"{__name__}.grids") if name == "grids" else _unknown(name)
