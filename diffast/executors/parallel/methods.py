"""The methods of `sample_parallel`: what a sweep takes for the network's slope, and its rules.

All of them are one walk, x'_{n+1} = F_n(x_n) + A_n (x'_n - x_n), and differ in A_n, which means in
the slope G of the x0 estimate that `sweep` is told: A = w + k G, where a stage's row weighs its
point by w and its x0 estimate by k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.lowering.sweep_tables import ALPHA, GAIN, Tables


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Args:
        slope: "prior", "frozen" or "unit", see `slopes`.
        secant: whether slopes are measured from the last two rounds instead.
        memory: earlier rounds that are mixed in (Anderson); 0: none.
        copies: whether new points are copies of the last one instead of a continued line.
        barrier: whether a block of stages is left only as a whole.
        together: whether all samples move on by the stride of the slowest.
        exact: whether guesses are taken or reflected so that samples have the plan's law.
    """

    slope: str = "prior"
    secant: bool = False
    memory: int = 0
    copies: bool = False
    barrier: bool = False
    together: bool = False
    exact: bool = False


METHODS = {
    "secant": Method(secant=True),
    "prior": Method(),
    "anderson": Method(memory=2),
    "speculative": Method(secant=True, exact=True),
    "paradigms": Method("unit", copies=True, together=True),
    "piadm": Method("frozen", copies=True, barrier=True),
}


def slopes(kind: str, tables: Tables, name: str) -> np.ndarray:
    """Returns how the x0 estimate follows the point, beyond what it does by itself, [S].

    "prior" is the slope for N(0, 1) data, alpha / (alpha^2 + sigma^2). "frozen" keeps the noise,
    and so the score, that the network saw, 1 / alpha: the iteration of PIADM. "unit" makes a step's
    point follow its own point one to one: ParaDiGMS adds up differences.

    Args:
        kind: one of these.
        tables: the plan's.
        name: the plan's, for messages.

    Raises:
        ValueError: "unit" for a plan whose stages have anchors of their own.
    """
    alpha = tables.line[:, ALPHA]
    if kind == "unit":
        if tables.parts:
            raise ValueError(
                f"sample_parallel: method 'paradigms' adds up steps from point to point, but the "
                f"stages of plan {name} start at anchors"
            )
        follows, own = tables.tails[:, -1, 1 + tables.entries], tables.tails[:, -1, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = (1.0 - own) / follows
    else:
        with np.errstate(divide="ignore"):
            whole = tables.line[:, GAIN] if kind == "prior" else 1.0 / alpha
    # Where there is no such slope the point is the initial state, or nobody asks for the estimate.
    return np.where(np.isfinite(whole), whole - tables.own, 0.0)


def copying(tables: Tables) -> np.ndarray:
    """Returns tails whose every stage leaves everything as it is, [S, rows - 1, columns]."""
    tails = np.zeros_like(tables.tails)
    tails[:, -1, int(tables.parts)] = 1.0
    if tables.parts:
        tails[:, -2, 0] = 1.0
    return tails


def limits(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest slope that a secant may have, [S] each.

    The x0 estimate does not move against its point, and not more than with the noise held.
    """
    with np.errstate(divide="ignore"):
        most = 1.0 / tables.line[:, ALPHA]
    return -tables.own, most - tables.own
