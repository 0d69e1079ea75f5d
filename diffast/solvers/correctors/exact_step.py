"""The underdamped Langevin step: a state u and its momentum v at a fixed time, score held.

    du = v dr,      dv = -g v dr + score(u) dr + sqrt(2 g) dB

keeps the law of u and of v ~ N(0, I). With the score held over a step e, the rest is linear and is
solved exactly. With q = exp(-g e),

    u' = u + c1 v + c2 score + zu,          c1 = (1 - q) / g,      c2 = (e - c1) / g
    v' = q v + c1 score + zv

    Var zu = (2 / g) (e - 2 c1 + (1 - q^2) / (2 g)),    Var zv = 1 - q^2,    Cov = (1 - q)^2 / g

The noises are correlated: zu is a multiple of one normal, zv of that one and a second.

The correctors of this folder, PIADM-ODE and DPUM take these numbers from here.
"""

from __future__ import annotations

from math import factorial, hypot
from typing import NamedTuple

import numpy as np

from diffast.solvers.core.phi import phi

# Below this g e the variance of zu by series, above by its formula, which cancels near 0.
NEAR = 1.0

# The terms of the series fall below 1e-18 of its sum from here on.
TERMS = 26

# A row over the state x, the momentum v, the score s and two fresh normals.
ScoreRow = dict[str, float]


class Step(NamedTuple):
    """The numbers of one step; see the top of the file."""

    keep: float  # q
    drift: float  # c1
    push: float  # c2
    state_noise: float  # of z in u'
    shared_noise: float  # of z in v'
    own_noise: float  # of the second normal in v'

    def rows(self) -> tuple[ScoreRow, ScoreRow]:
        """Returns the rows of x and v."""
        x = {"x": 1.0, "v": self.drift, "s": self.push, "z1": self.state_noise}
        v = {"v": self.keep, "s": self.drift, "z1": self.shared_noise, "z2": self.own_noise}
        return x, v

    def first_rows(self) -> tuple[ScoreRow, ScoreRow]:
        """Returns the rows of x and v for a momentum that is drawn in this step, v ~ N(0, I).

        Both then hold c1 v + zu and q v + zv, two normals whose covariance is known: so the step
        draws two normals and not three.
        """
        state = hypot(self.drift, self.state_noise)
        shared = (self.drift * self.keep + self.state_noise * self.shared_noise) / state
        # The determinant of the covariance, as a sum of squares: nothing cancels.
        crossed = self.drift * self.shared_noise - self.keep * self.state_noise
        own = np.sqrt(crossed**2 + (self.drift**2 + self.state_noise**2) * self.own_noise**2)
        x = {"x": 1.0, "s": self.push, "z1": state}
        return x, {"s": self.drift, "z1": shared, "z2": float(own) / state}


def step(friction: float, length: float) -> Step:
    """Returns the numbers of a step of g > 0, to a relative error below 1e-13 for every e > 0."""
    x = friction * length
    fall = -np.expm1(-x)  # 1 - q
    cube = _cube(x)
    state = length * np.sqrt(2.0 * x * cube)
    shared = fall**2 / np.sqrt(2.0 * x**3 * cube)
    # of 1 - q^2 at least a quarter is left
    own = np.sqrt(-np.expm1(-2.0 * x) - shared**2)
    numbers = np.exp(-x), length * phi(1, x), length**2 * phi(2, x), state, shared, own
    return Step(*map(float, numbers))


def _cube(x: float) -> float:
    """Returns (x - 2 (1 - exp(-x)) + (1 - exp(-2x)) / 2) / x^3, which is 1/3 at 0.

    x^3 times it is the integral of (1 - exp(-r))^2 from 0 to x.
    """
    if x < NEAR:
        terms = [(-1.0) ** k * (2.0 - 2.0 ** (k - 1)) / factorial(k) for k in range(3, TERMS)]
        return float(np.polyval(terms[::-1], x))
    return (x + 2.0 * np.expm1(-x) - 0.5 * np.expm1(-2.0 * x)) / x**3
