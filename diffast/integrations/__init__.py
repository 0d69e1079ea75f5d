"""Interfaces of other tools; each module builds plans and runs them."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from diffast._namespace import attributes

if TYPE_CHECKING:
    from diffast.integrations import comfyui, diffusers, edm, k_diffusion

__all__ = ["comfyui", "diffusers", "edm", "k_diffusion"]
_unknown, __dir__ = attributes(__name__, __all__)


def _load(name: str) -> ModuleType:
    """Returns the interface of that name, loaded when it is first asked for."""
    if name not in __all__:
        return _unknown(name)
    try:
        return import_module(f"diffast.integrations.{name}")
    except ModuleNotFoundError as error:  # hasattr and help look at every name
        raise AttributeError(
            f"diffast.integrations.{name} needs {error.name}, which is not installed"
        ) from error


if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__ = _load
