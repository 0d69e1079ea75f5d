"""k_diffusion.sampling alone: its package imports torchvision, clip and more for other ends."""

import importlib
import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def alone():
    """Gives the module k_diffusion.sampling, and takes it out of sys.modules afterwards."""
    found = importlib.util.find_spec("k_diffusion")
    for needed in ("scipy", "torchsde", "torchdiffeq"):
        if found is None or importlib.util.find_spec(needed) is None:
            pytest.skip(f"k-diffusion is not installed, or {needed}, which it needs, is not")
    folder = Path(found.submodule_search_locations[0])
    stubs = {"torchvision": types.ModuleType("torchvision")}
    stubs["torchvision.transforms"] = types.ModuleType("torchvision.transforms")
    stubs["torchvision.transforms"].functional = None
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(folder)]
    names = ("k_diffusion", "k_diffusion.utils", "k_diffusion.sampling", *stubs)
    before = {name: sys.modules.get(name) for name in names}
    missing = importlib.util.find_spec("torchvision") is None
    sys.modules |= {"k_diffusion": package} | (stubs if missing else {})
    try:
        yield importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
