"""Interfaces of other tools; each module builds plans and runs them.

`from_azula`, `from_diffusers`, `from_lucidrains`, `from_monai` and `from_sbi` return the denoiser
of a network as that library keeps it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffast._namespace import attributes

if TYPE_CHECKING:
    from diffast.integrations import comfyui, diffusers, edm, k_diffusion
    from diffast.integrations.networks.azula import from_azula
    from diffast.integrations.networks.diffusers import from_diffusers
    from diffast.integrations.networks.lucidrains import from_lucidrains
    from diffast.integrations.networks.monai import from_monai
    from diffast.integrations.networks.sbi import from_sbi

__all__ = ["comfyui", "diffusers", "edm", "k_diffusion"]
__all__ += ["from_azula", "from_diffusers", "from_lucidrains", "from_monai", "from_sbi"]
_unknown, __dir__ = attributes(__name__, __all__)


def _load(name: str) -> Any:
    """Returns the interface of that name, loaded when it is first asked for."""
    if name not in __all__:
        return _unknown(name)
    library = name.removeprefix("from_")
    try:
        if library != name:
            return getattr(import_module(f"diffast.integrations.networks.{library}"), name)
        return import_module(f"diffast.integrations.{name}")
    except ModuleNotFoundError as error:  # hasattr and help look at every name
        raise AttributeError(
            f"diffast.integrations.{name} needs {error.name}, which is not installed"
        ) from error


if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__ = _load
