"""The other tools that a report compares with. Each is optional, and imported here alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

# What each needs beside itself, where that is not what installs with it.
NEEDS = {
    "diffusers": (),
    "k_diffusion": ("scipy", "torchsde", "torchdiffeq", "PIL"),
    "torchdiffeq": (),
    "torchsde": (),
}
# As a package index calls them.
DISTRIBUTIONS = {"k_diffusion": "k-diffusion"}


def missing(name: str) -> str | None:
    """Returns a line that says why a tool is not compared with; None if it is installed.

    Args:
        name: "diffusers", "k_diffusion", "torchdiffeq" or "torchsde".
    """
    absent = [m for m in (name, *NEEDS[name]) if importlib.util.find_spec(m) is None]
    shown = DISTRIBUTIONS.get(name, name)
    if not absent:
        return None
    if absent[0] == name:
        return f"{shown}: not installed"
    return f"{shown}: not measured, since it needs {', '.join(absent)}: not installed"


def diffusers() -> ModuleType:
    """Returns diffusers, silenced."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    return diffusers


def torchdiffeq() -> ModuleType:
    """Returns torchdiffeq."""
    import torchdiffeq

    return torchdiffeq


def torchsde() -> ModuleType:
    """Returns torchsde."""
    import torchsde

    return torchsde


@lru_cache(maxsize=1)
def k_diffusion_sampling() -> ModuleType:
    """Returns `k_diffusion.sampling` alone.

    The package's own `__init__` imports its training code, which needs torchvision, clip and more.
    The samplers use none of it. Modules of that name that were loaded before stay as they are.
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'k_diffusion'", name="k_diffusion")
    package = ModuleType("k_diffusion")
    package.__path__ = [str(Path(found.submodule_search_locations[0]))]
    placed = {"k_diffusion": package}
    if importlib.util.find_spec("torchvision") is None:
        transforms = ModuleType("torchvision.transforms")
        vars(transforms)["functional"] = None  # imported by name, used by training alone
        placed |= {"torchvision": ModuleType("torchvision"), "torchvision.transforms": transforms}
    names = (*placed, "k_diffusion.utils", "k_diffusion.sampling")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(placed)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
