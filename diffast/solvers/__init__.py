"""Solvers: numpy functions (schedule, grid, options) -> Plan, and the table of their names."""

from __future__ import annotations

from diffast.solvers.dpmpp import dpmpp_2m as dpmpp_2m
from diffast.solvers.euler import ddim as ddim
from diffast.solvers.euler import euler as euler
from diffast.solvers.euler import euler_ancestral as euler_ancestral
from diffast.solvers.heun import heun as heun

SOLVERS = {build.__name__: build for build in (euler, ddim, heun, euler_ancestral, dpmpp_2m)}


def get(name: str):
    """Returns the builder of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is not known, but these are: {', '.join(SOLVERS)}")
    return SOLVERS[name]
