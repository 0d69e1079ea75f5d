"""Embedded solvers: adaptive methods for `df.sample_adaptive`, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from diffast._namespace import attributes, listing, lookup
from diffast.solvers.embedded.controllers import pid, plain, proportional_integral
from diffast.solvers.embedded.dpm import DPM
from diffast.solvers.embedded.ggf import GGF, EulerHeun
from diffast.solvers.embedded.grid import GridCall as GridCall
from diffast.solvers.embedded.grid import on_grid
from diffast.solvers.embedded.grid import on_grid_rows as on_grid_rows
from diffast.solvers.embedded.pec import PEC
from diffast.solvers.embedded.runge_kutta import RungeKutta
from diffast.solvers.embedded.solver import EmbeddedSolver
from diffast.solvers.embedded.solver import Node as Node
from diffast.solvers.embedded.solver import Step as Step
from diffast.solvers.embedded.time_variable import TimeVariable as TimeVariable

__all__ = ["DPM", "GGF", "PEC", "EmbeddedSolver", "EulerHeun", "RungeKutta", "get", "on_grid"]
__all__ += ["pid", "plain", "proportional_integral"]

EMBEDDED: dict[str, Callable[..., EmbeddedSolver]] = {
    "pec": PEC,
    "ggf": GGF,
    "euler_heun": EulerHeun,
    "dpm_12": partial(DPM, 2),
    "dpm_23": partial(DPM, 3),
    "bosh3": partial(RungeKutta, "bosh3"),
    "dopri5": partial(RungeKutta, "dopri5"),
    "tsit5": partial(RungeKutta, "tsit5"),
}


def get(name: str) -> Callable[..., EmbeddedSolver]:
    """Returns the builder of the embedded solver of that name: options -> EmbeddedSolver.

    Raises:
        ValueError: an unknown name; the message gives the nearest ones, and all of them.
    """
    return lookup("embedded solver", EMBEDDED, name)


__doc__ = f"{__doc__}{listing('df.embedded', EMBEDDED)}"
if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__, __dir__ = attributes(__name__, __all__)
