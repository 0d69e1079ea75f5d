"""The thermodynamics of a sampler: what limits its speed and accuracy, measured on any network.

profile                what one sweep over noise levels says of a network
GaussianMixture        data with a closed form, to test methods on
certificate            how far noisy data are from a Gaussian, and where a late start may begin
start_law              the Gaussian, or the Gaussians, that a late start draws from
shrunk_gaussian        mean and covariance of few samples
Gaussian               mean and covariance of data
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffast._namespace import attributes

# Where each public name lives. Loaded when first asked for: one line a name.
_HOMES = {
    "Certificate": "diffast.thermo.late_start",
    "Estimate": "diffast.thermo.estimate",
    "FewSamplesWarning": "diffast.thermo.estimate",
    "Gaussian": "diffast.plans.gaussian",
    "GaussianMixture": "diffast.thermo.mixture",
    "StartLaw": "diffast.plans.initial",
    "certificate": "diffast.thermo.late_start",
    "shrunk_gaussian": "diffast.thermo.shrinkage",
    "start_law": "diffast.thermo.start_law",
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
