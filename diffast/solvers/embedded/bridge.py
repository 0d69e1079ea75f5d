"""The noise of an attempt, drawn so that points remembered from rejected attempts stay true.

Each sample has one Brownian path in the pair's clock. Known of it are the value V where the sample
stands and those at the positions of rejected attempts; a new attempt draws its value from the two
known neighbours, so whatever was rejected, the path has its law. Two clocks:

    "lam"   V = W / exp(lam) with W a Brownian motion in exp(2 lam): an Ornstein-Uhlenbeck process
            of variance 1 and correlation exp(-h). Between neighbours at distances h1 below and h2
            above its mean is (sinh(h2) V1 + sinh(h1) V2) / sinh(h1 + h2), its variance
            (1 - e^-2h1)(1 - e^-2h2) / (1 - e^-2(h1+h2)).
    "time"  V = W, a Brownian motion in the position.

The noise of the attempt, N(0, 1), is V at its end less what V at its start lets expect.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

NEW = "new"  # the path's value at the end of the attempt
HELD = "value"  # that at its start


class Draw(NamedTuple):
    """The rows of an attempt's noise.

    Attributes:
        value: weights of the path's new value over HELD and the slots' names.
        fresh: weight of a fresh N(0, 1) number in it.
        noise: weights of z over NEW and HELD.
    """

    value: dict
    fresh: Any
    noise: dict


def bridge(xp, clock: str, at, to, slots: dict) -> Draw:
    """Returns the rows of an attempt from `at` to `to`.

    Args:
        xp: array module.
        clock: "lam" or "time".
        at: positions [B] where samples stand.
        to: positions [B] that they step to.
        slots: positions [B] of remembered points by name, inf where there is none.
    """
    low, high = at, math.inf
    for position in slots.values():
        low = xp.where((position <= to) & (position > low), position, low)
        high = xp.where(position > to, xp.where(position < high, position, high), high)
    below, above = to - low, high - to
    on_low, on_high, variance = (_lam if clock == "lam" else _time)(xp, below, above)
    value = {HELD: xp.where(low == at, on_low, 0.0)} if slots else {HELD: on_low}
    for name, position in slots.items():
        from_below = (position == low) & (low > at)
        value[name] = xp.where(from_below, on_low, xp.where(position == high, on_high, 0.0))
    return Draw(value, xp.sqrt(variance), increment(xp, clock, at, to))


def increment(xp, clock: str, at, to) -> dict:
    """Returns the row over (NEW, HELD) of the N(0, 1) noise between two positions."""
    h = to - at
    if clock == "lam":
        gain = 1.0 / xp.sqrt(-xp.expm1(-2.0 * h))
        return {NEW: gain, HELD: -xp.exp(-h) * gain}
    gain = 1.0 / xp.sqrt(h)
    return {NEW: gain, HELD: -gain}


def _lam(xp, below, above):
    if not hasattr(above, "shape"):
        return xp.exp(-below), 0.0, -xp.expm1(-2.0 * below)
    gone, left = -xp.expm1(-2.0 * below), -xp.expm1(-2.0 * above)
    both = -xp.expm1(-2.0 * (below + above))
    return xp.exp(-below) * left / both, xp.exp(-above) * gone / both, gone * left / both


def _time(xp, below, above):
    if not hasattr(above, "shape"):
        return xp.ones_like(below), 0.0, below
    free = above == math.inf
    above = xp.where(free, 1.0, above)
    both = below + above
    on_low = xp.where(free, 1.0, above / both)
    return on_low, xp.where(free, 0.0, below / both), below * on_low
