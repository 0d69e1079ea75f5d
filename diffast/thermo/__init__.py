"""The thermodynamics of a sampler: what limits its speed and accuracy, measured on any network.

profile                what one sweep over noise levels says of a network
GaussianMixture        data with a closed form, to test methods on
Gaussian               mean and covariance of data
Surrogate              data in closed form with a network's loss curve
plan_of_profile        the plan that a profile alone asks for
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffast._namespace import attributes

# Where each public name lives. Loaded when first asked for: one line a name.
_HOMES = {
    "Estimate": "diffast.thermo.estimate",
    "FewSamplesWarning": "diffast.thermo.estimate",
    "Gaussian": "diffast.plans.gaussian",
    "GaussianMixture": "diffast.thermo.mixture",
    "Surrogate": "diffast.thermo.surrogate.surrogate",
    "plan_of_profile": "diffast.thermo.surrogate.choose",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]: loaded when asked for

_unknown, __dir__ = attributes(__name__, __all__)

if not TYPE_CHECKING:  # a checker is to tell misspelt names itself

    def __getattr__(name: str) -> Any:
        """Returns the public object of that name."""
        if name not in _HOMES:
            return _unknown(name)
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
