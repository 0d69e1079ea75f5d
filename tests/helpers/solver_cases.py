"""Every fixed-step solver with the order it must show: the one tuple that the order tests walk."""

import importlib.util
from functools import partial
from typing import NamedTuple

from diffast import solvers

# Fewer steps leave some of 0.4 in lam at the clean end of the time grids.
COUNTS = (80, 160, 320, 640)


class Case(NamedTuple):
    """One solver: `sense` is "strong" (error against the ODE) or "weak" (of the variance)."""

    name: str
    build: object
    order: int
    sense: str
    counts: tuple = COUNTS


BASE = (
    ("euler", solvers.euler, 1, "strong"),
    ("ddim", partial(solvers.ddim, eta=0.0), 1, "strong"),
    ("heun", solvers.heun, 2, "strong"),
    ("dpmpp_2m_midpoint", partial(solvers.dpmpp_2m, kind="midpoint"), 2, "strong"),
    ("dpmpp_2m_heun", partial(solvers.dpmpp_2m, kind="heun"), 2, "strong"),
    ("ddim_half", partial(solvers.ddim, eta=0.5), 1, "weak"),
    ("ddim_one", partial(solvers.ddim, eta=1.0), 1, "weak"),
    ("euler_ancestral", solvers.euler_ancestral, 1, "weak"),
)


def _family(name):
    if importlib.util.find_spec(name) is None:
        return ()
    return importlib.import_module(name).CASES


ALL_SOLVERS = tuple(
    Case(*case)
    for case in (
        *BASE,
        *_family("cases_singlestep"),
        *_family("cases_multistep"),
        *_family("cases_stochastic"),
    )
)
