"""The noise of a trial step, drawn so that points remembered from rejected steps stay true.

Each sample has one Brownian path in the solver's time variable. The path's value V is known where
the sample stands and at the positions of rejected steps. A new step draws its value from the two
known neighbours, so the path has its law whatever was rejected. There are two kinds of paths:

    "lam"   V = W / exp(lam) with W a Brownian motion in exp(2 lam): an Ornstein-Uhlenbeck process
            of variance 1 and correlation exp(-h). Between neighbours at distances h1 below and h2
            above its mean is (sinh(h2) V1 + sinh(h1) V2) / sinh(h1 + h2), its variance
            (1 - e^-2h1)(1 - e^-2h2) / (1 - e^-2(h1+h2)).
    "time"  V = W, a Brownian motion in the position.

The step's noise is V(end) - E[V(end) given V(start)], divided by its standard deviation.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

NEW = "new"  # the path's value at the end of the step
HELD = "value"  # the path's value at the start


class Draw(NamedTuple):
    """The rows of a step's noise.

    Attributes:
        value: weights of the path's new value over HELD and the names of the rejected points.
        fresh: weight of a fresh N(0, 1) number in it.
        noise: weights of z over NEW and HELD.
    """

    value: dict[str, Any]
    fresh: Any
    noise: dict[str, Any]


def bridge(xp: Any, kind: str, start: Any, end: Any, rejected: dict[str, Any]) -> Draw:
    """Returns the rows of a step from `start` to `end`.

    Args:
        xp: array module.
        kind: "lam" or "time".
        start: positions [B] where samples stand.
        end: positions [B] that they step to.
        rejected: positions [B] of remembered points by name, inf where there is none.
    """
    noise = increment(xp, kind, start, end)
    if not rejected:
        h = end - start
        held, variance = (xp.exp(-h), -xp.expm1(-2.0 * h)) if kind == "lam" else (1.0, h)
        return Draw({HELD: held}, xp.sqrt(variance), noise)
    low, high = start, math.inf
    for position in rejected.values():
        low = xp.where((position <= end) & (position > low), position, low)
        high = xp.where(position > end, xp.where(position < high, position, high), high)
    on_low, on_high, variance = (_lam if kind == "lam" else _time)(xp, end - low, high - end)
    value = {HELD: xp.where(low == start, on_low, 0.0)}
    for name, position in rejected.items():
        from_below = (position == low) & (low > start)
        value[name] = xp.where(from_below, on_low, xp.where(position == high, on_high, 0.0))
    return Draw(value, xp.sqrt(variance), noise)


def increment(xp: Any, kind: str, start: Any, end: Any) -> dict[str, Any]:
    """Returns the row over NEW and HELD of the N(0, 1) noise between two positions."""
    h = end - start
    if kind == "lam":
        gain = 1.0 / xp.sqrt(-xp.expm1(-2.0 * h))
        return {NEW: gain, HELD: -xp.exp(-h) * gain}
    gain = 1.0 / xp.sqrt(h)
    return {NEW: gain, HELD: -gain}


def _lam(xp, below, above):
    """Returns the weights of the neighbours and the variance of the new value."""
    gone, left = -xp.expm1(-2.0 * below), -xp.expm1(-2.0 * above)
    both = -xp.expm1(-2.0 * (below + above))
    return xp.exp(-below) * left / both, xp.exp(-above) * gone / both, gone * left / both


def _time(xp, below, above):
    """Returns the same for a Brownian motion; above is inf where no point lies beyond."""
    free = above == math.inf
    above = xp.where(free, 1.0, above)
    both = below + above
    on_low = xp.where(free, 1.0, above / both)
    return on_low, xp.where(free, 0.0, below / both), below * on_low
