"""Data with the same loss curve as a network's, on which plans are compared without the network."""

from diffast.thermo.surrogate.choose import HOWS, plan_of_profile, plans_of_profile
from diffast.thermo.surrogate.curve import Curve
from diffast.thermo.surrogate.laws import FAMILIES, NORMAL, Law
from diffast.thermo.surrogate.surrogate import Surrogate

__all__ = [
    "FAMILIES",
    "HOWS",
    "NORMAL",
    "Curve",
    "Law",
    "Surrogate",
    "plan_of_profile",
    "plans_of_profile",
]
