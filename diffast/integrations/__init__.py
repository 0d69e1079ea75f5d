"""Faces that other tools know: each module speaks one of them and runs plans behind it."""

from importlib import import_module
from types import ModuleType

__all__ = ["comfyui", "diffusers", "edm", "k_diffusion"]


def __getattr__(name: str) -> ModuleType:
    """Returns the interface of that name, loaded when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'diffast.integrations' has no attribute {name!r}")
    return import_module(f"diffast.integrations.{name}")
