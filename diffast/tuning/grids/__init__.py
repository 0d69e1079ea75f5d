"""Grids measured on a network: `Pilot` measures, `rank` compares, `polish` refines."""

from diffast.tuning.grids.pilot import NAMES, Pilot
from diffast.tuning.grids.ranking import HeldOut, Ranked, candidates, measured, polish, rank

__all__ = ["NAMES", "HeldOut", "Pilot", "Ranked", "candidates", "measured", "polish", "rank"]
