"""The thermodynamics of a sampler: what limits its speed and accuracy, measured on any network.

profile                what one sweep over noise levels says of a network
GaussianMixture        data with a closed form, to test methods on
Gaussian               mean and covariance of data
fluctuation_test       whether stored trajectories are those of the SDE that is meant
fluctuation_test_of_plan, fluctuation_test_of_steps: for a run of a plan, for Gaussian steps
franz_parisi           free energy of a posterior sample at a distance from another one
free_energy            -sigma^2 log p of noisy states; free_energy_along: for a network
log_likelihood         the density that a plan gives to data, by Jarzynski's equality
noising_dynamics       drift and temperature of a schedule; sampling_dynamics: of its reverse
order_parameters       self-consistent posterior means
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffast._namespace import attributes

# Where each public name lives. Loaded when first asked for: one line a name.
_HOMES = {
    "Dynamics": "diffast.thermo.fluctuation.trajectories",
    "Estimate": "diffast.thermo.estimate",
    "FewSamplesWarning": "diffast.thermo.estimate",
    "FluctuationTest": "diffast.thermo.fluctuation.theorem",
    "FranzParisi": "diffast.thermo.fluctuation.franz_parisi",
    "Gaussian": "diffast.plans.gaussian",
    "GaussianMixture": "diffast.thermo.mixture",
    "Likelihood": "diffast.thermo.fluctuation.likelihood",
    "OrderParameters": "diffast.thermo.fluctuation.free_energy",
    "fluctuation_test": "diffast.thermo.fluctuation.theorem",
    "fluctuation_test_of_plan": "diffast.thermo.fluctuation.of_plan",
    "fluctuation_test_of_steps": "diffast.thermo.fluctuation.of_steps",
    "franz_parisi": "diffast.thermo.fluctuation.franz_parisi",
    "free_energy": "diffast.thermo.fluctuation.free_energy",
    "free_energy_along": "diffast.thermo.fluctuation.free_energy",
    "log_likelihood": "diffast.thermo.fluctuation.likelihood",
    "noising_dynamics": "diffast.thermo.fluctuation.trajectories",
    "order_parameters": "diffast.thermo.fluctuation.free_energy",
    "sampling_dynamics": "diffast.thermo.fluctuation.trajectories",
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
