"""Pairs: adaptive methods for `df.sample_adaptive`, and the table of their names."""

from __future__ import annotations

from functools import partial

from diffast.solvers.pairs.controllers import pid as pid
from diffast.solvers.pairs.controllers import plain as plain
from diffast.solvers.pairs.controllers import proportional_integral as proportional_integral
from diffast.solvers.pairs.dpm import DPM as DPM
from diffast.solvers.pairs.ggf import GGF as GGF
from diffast.solvers.pairs.ggf import EulerHeun as EulerHeun
from diffast.solvers.pairs.pair import Judgement as Judgement
from diffast.solvers.pairs.pair import Node as Node
from diffast.solvers.pairs.pair import Nodes as Nodes
from diffast.solvers.pairs.pair import Pair as Pair
from diffast.solvers.pairs.pec import PEC as PEC
from diffast.solvers.pairs.runge_kutta import RungeKutta as RungeKutta

PAIRS = {
    "pec": PEC,
    "ggf": GGF,
    "euler_heun": EulerHeun,
    "dpm_12": partial(DPM, 2),
    "dpm_23": partial(DPM, 3),
    "bosh3": partial(RungeKutta, "bosh3"),
    "dopri5": partial(RungeKutta, "dopri5"),
    "tsit5": partial(RungeKutta, "tsit5"),
}


def get(name: str):
    """Returns the builder of the pair of that name: options -> Pair.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in PAIRS:
        raise ValueError(f"pair {name!r} is not known, but these are: {', '.join(PAIRS)}")
    return PAIRS[name]
