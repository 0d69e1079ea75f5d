"""The methods of `sample_parallel` as data, and the slopes they give the network.

Every method sweeps through the plan with x'_{n+1} = F_n(x_n) + A_n (x'_n - x_n). Methods differ in
A_n. `sweep` is told the slope G of the x0 estimate: where a stage's row weighs its input by w and
the x0 estimate by k, A = w + k G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.lowering.sweep_tables import ALPHA, GAIN, Tables

# How d x0 / d x of the network is approximated.
PRIOR = "prior"  # alpha / (alpha^2 + sigma^2), which is exact for data N(0, 1)
HELD = "held"  # 1 / alpha: the noise that the network saw is held
UNIT = "unit"  # whatever makes A = 1: differences from point to point are added up


@dataclass(frozen=True)
class Method:
    """What one method is made of.

    Args:
        slope: PRIOR, HELD or UNIT.
        secant: whether slopes are measured from the last two rounds. `slope` then serves the rows
            that are new.
        memory: how many earlier rounds are mixed into the next points; 0: none.
        copies: whether a new point is a copy of the window's last one. Otherwise new points
            continue the line through the last x0 estimate and its noise.
        per_step: whether `tol` bounds each point's change relative to the noise that DDPM adds at
            its step. Otherwise `tol` bounds the error of the sample.
        together: whether all samples leave as many stages as the slowest of them.
        blocks: whether windows end at the plan's blocks, and blocks are left only as a whole.
        exact: whether guesses are accepted by a coupling that keeps the plan's law.
    """

    slope: str = PRIOR
    secant: bool = False
    memory: int = 0
    copies: bool = False
    per_step: bool = False
    together: bool = False
    blocks: bool = False
    exact: bool = False


METHODS = {
    "secant": Method(secant=True),
    "prior": Method(),
    "anderson": Method(memory=2),
    "speculative": Method(secant=True, exact=True),
    "paradigms": Method(UNIT, copies=True, per_step=True, together=True),
    "piadm": Method(HELD, copies=True, blocks=True),
}


def slopes_of(method: Method, tables: Tables, plan_name: str) -> np.ndarray:
    """Returns the slopes of the x0 estimate without `tables.own`, what follows x by itself, [S].

    Raises:
        ValueError: UNIT for a plan whose steps do not start at the network's input.
    """
    alpha = tables.line[:, ALPHA]
    with np.errstate(divide="ignore", invalid="ignore"):
        if method.slope == UNIT:
            if tables.parts:
                raise ValueError(
                    f"sample_parallel: method 'paradigms' adds up steps from point to point, but "
                    f"the stages of plan {plan_name} start at a state beside the network's input"
                )
            follows, own = tables.tails[:, -1, 1 + tables.entries], tables.tails[:, -1, 0]
            whole = (1.0 - own) / follows
        elif method.slope == PRIOR:
            whole = tables.line[:, GAIN]
        else:
            whole = 1.0 / alpha
    # Where the slope is not finite, x is the initial state, or no row weighs the x0 estimate.
    return np.where(np.isfinite(whole), whole - tables.own, 0.0)


def copying_tails(tables: Tables) -> np.ndarray:
    """Returns tails whose stages leave x and the register beside it alone, as `Tables.tails`."""
    tails = np.zeros_like(tables.tails)
    tails[:, -1, int(tables.parts)] = 1.0
    if tables.parts:
        tails[:, -2, 0] = 1.0
    return tails


def secant_limits(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest slope that a measured one may have, [S] each.

    The whole slope lies within [0, 1 / alpha]: the x0 estimate does not move against x, and does
    not move more than with the noise held.
    """
    with np.errstate(divide="ignore"):
        most = 1.0 / tables.line[:, ALPHA]
    return -tables.own, most - tables.own
