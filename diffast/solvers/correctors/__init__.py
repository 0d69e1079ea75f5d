"""Langevin correctors for `df.solvers.predictor_corrector`, and the table of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffast._namespace import attributes, listing
from diffast.solvers.correctors.corrector import Corrector
from diffast.solvers.correctors.overdamped import leimkuhler_matthews, overdamped, snr
from diffast.solvers.correctors.parse import CORRECTORS, get, parse
from diffast.solvers.correctors.underdamped import baoab, underdamped

__all__ = ["Corrector", "baoab", "get", "leimkuhler_matthews", "overdamped", "parse", "snr"]
__all__ += ["underdamped"]

__doc__ = f"{__doc__}{listing('df.correctors', CORRECTORS)}"
if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__, __dir__ = attributes(__name__, __all__)
