"""Embedded pairs: adaptive methods as tables that depend on where a sample stands and steps to.

A sample stands at a position `at` of the pair's clock, holding a state x and one entry e0, made of
the x0 estimate for x. An attempt to move to position `to` takes the network calls 1 .. calls, each
at a model input `point` made of what is held; what is made of each estimate d is entry e1, e2, ...
After the last call come the new state, its entry if the pair has it by then (`reuses`: no call at
the new state is needed), and an error estimate; the executor decides and moves.

All of it is linear, so a pair is a set of rows, dicts {name: weight}: over

    "x" "prev" "e0" "e1" ...    what the sample holds
    "point" "d"                 the call's model input and x0 estimate
    "z"                         the attempt's N(0, 1) noise

Weights are float64 arrays [B], one number a sample, in the array module `xp` (numpy, or torch on
the sample's device): the same lines make the tables of a fixed grid and those of every sample's own
step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

# Clocks, by what a position is; all increase from noise to data.
CLOCKS = ("lam", "rho", "flow", "time")


class Node(NamedTuple):
    """Where samples stand: arrays [B] of numbers of the schedule.

    `dalpha` and `dsigma` are derivatives by the model time and `rate` is d(model time) /
    d(position), with its sign turned: positions increase while the noise falls. They are None
    unless the pair asks for `slopes`.
    """

    position: Any
    time: Any
    lam: Any
    alpha: Any
    sigma: Any
    dalpha: Any = None
    dsigma: Any = None
    rate: Any = None


class Nodes(NamedTuple):
    """The nodes of an attempt: where it starts, where it leads, where the network is called."""

    at: Node
    to: Node
    call: Node


class Judgement(NamedTuple):
    """How an attempt is judged.

    Attributes:
        error: row of the error estimate.
        before, after: rows whose larger size the tolerance is relative to; None with the form
            "scalar".
        noise: row of the attempt's noise z, whose size the error is divided by; None: it is not.
        atol, rtol: numbers or arrays [B].
    """

    error: dict
    before: dict | None
    after: dict | None
    noise: dict | None
    atol: Any
    rtol: Any


class Pair:
    """What every pair has; a pair is a subclass with its own rows.

    Attributes:
        name: what people call it.
        clock: one of CLOCKS.
        fractions: where in the attempt each call stands, as parts of it, one a call.
        reuses: whether the entry of the new state comes with the attempt.
        form, norm: of the error, see `diffast.ops` ("scalar", "max", "sum"; "l2", "linf").
        noise: "point" (in the model input), "state" (added after the decision) or "none".
        keeps: names of tensors held beside x and the entries.
        slots: how many rejected points a sample remembers.
        slopes: whether nodes need derivatives.
        controller: numbers of the step-size rule by name, see `diffast.ops` (RULE and FLAGS).
        step: first step, in units of the clock.
    """

    name = "pair"
    clock = "lam"
    fractions: tuple[float, ...] = (1.0,)
    reuses = False
    form, norm = "max", "l2"
    noise = "none"
    keeps: tuple[str, ...] = ()
    slots = 2
    slopes = False
    controller: dict[str, float]
    step = 0.1

    @property
    def calls(self) -> int:
        """Returns the number of network calls of an attempt."""
        return len(self.fractions)

    @property
    def entries(self) -> tuple[str, ...]:
        """Returns the names of the entries that are held."""
        return tuple(f"e{k}" for k in range(self.calls))

    def entry(self, xp, node: Node) -> dict:
        """Returns the row of an entry made of ("point", "d") at a node."""
        return {"d": 1.0}

    def reach(self, xp, at, to):
        """Returns the positions that `fractions` are parts of the way to."""
        return to

    def point(self, xp, call: int, nodes: Nodes) -> dict:
        """Returns the row of the model input of that call, 1 .. calls."""
        raise NotImplementedError

    def states(self, xp, nodes: Nodes) -> dict[str, dict]:
        """Returns the rows of what an accepted attempt changes, by name ("x" at least)."""
        raise NotImplementedError

    def judge(self, xp, nodes: Nodes) -> Judgement:
        """Returns how the attempt is judged."""
        raise NotImplementedError

    def estimate(self, xp, node: Node) -> dict:
        """Returns the row over ("x", "e0") of the x0 estimate for x."""
        return {"e0": 1.0}


def check_positive(name: str, **numbers: float) -> None:
    """Raises ValueError for a number that is not above 0."""
    for option, value in numbers.items():
        if not value > 0.0:
            raise ValueError(f"{name}: {option} = {value}, but it must be above 0")


def check_tolerances(name: str, rtol: float, atol: float) -> None:
    """Raises ValueError for a negative or endless tolerance, or if both are 0."""
    for option, value in (("rtol", rtol), ("atol", atol)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name}: {option} = {value}, but it must be finite and not negative")
    if rtol == 0.0 == atol:
        raise ValueError(f"{name}: rtol = 0 and atol = 0, but no step has an error of 0")
