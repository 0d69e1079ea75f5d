"""Underdamped Langevin correctors: the exact exponential step, and BAOAB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.solvers.correctors import exact_step
from diffast.solvers.correctors.corrector import Corrector, Value, checked_option
from diffast.solvers.correctors.exact_step import ScoreRow


@dataclass(frozen=True, repr=False)
class Underdamped(Corrector):
    """The step of exact_step.py: the score held, all else exact."""

    def steps(self, h: float, g: float | None, n: int) -> list[tuple[ScoreRow, ScoreRow | None]]:
        """Returns the rows of n steps; the first draws the momentum."""
        assert g is not None
        made = exact_step.step(g, h)
        return [made.first_rows(), *[made.rows()] * (n - 1)]


@dataclass(frozen=True, repr=False)
class Baoab(Corrector):
    """Half a kick, half a drift, the momentum's own process, half a drift, half a kick."""

    def steps(self, h: float, g: float | None, n: int) -> list[tuple[ScoreRow, ScoreRow | None]]:
        """Returns the rows of n steps, each up to its last drift.

        The last half kick of a step needs the score at its end, which is that of the next call: it
        joins the first half kick of the next step.
        """
        assert g is not None
        keep, half = float(np.exp(-g * h)), 0.5 * h
        fresh = float(np.sqrt(-np.expm1(-2.0 * g * h)))
        moved = half * (1.0 + keep)
        first = (
            {"x": 1.0, "s": half * moved, "z1": moved, "z2": half * fresh},
            {"s": half * keep, "z1": keep, "z2": fresh},
        )
        later = (
            {"x": 1.0, "v": moved, "s": h * moved, "z1": half * fresh},
            {"v": keep, "s": h * keep, "z1": fresh},
        )
        return [first, *[later] * (n - 1)]


def underdamped(
    step: Value = 0.8, *, friction: Value = 2.0, length: Value | None = None
) -> Corrector:
    """Returns ULMC, underdamped Langevin dynamics with the score held over a step, else exact.

    A momentum v ~ N(0, I) is drawn at the start of each visit and let go at its end. A call writes
    x and v with two correlated normals; the numbers are in
    `diffast/solvers/correctors/exact_step.py`. The error is of first order in h. Chen et al. 2023,
    "The probability flow ODE is provably fast" (arXiv 2305.11798), the corrector of DPUM; also the
    corrector of `piadm_ode`.

    Args:
        step: h in units of sigma; a number or a function of the model time.
        friction: in units of 1/sigma; a number or a function of the model time.
        length: in place of `step`: how long a visit lasts, in units of sigma.

    Raises:
        ValueError: an option that is neither a positive number nor a function.
    """
    return Underdamped("underdamped", *_options("underdamped", step, friction, length), power=1)


def baoab(step: Value = 0.8, *, friction: Value = 2.0, length: Value | None = None) -> Corrector:
    """Returns BAOAB, the splitting of underdamped Langevin dynamics with the least error in x.

        v += h/2 s,  x += h/2 v,  v <- e v + sqrt(1 - e^2) z,  x += h/2 v,  v += h/2 s

    with e = exp(-g h).

    The stationary variance of x on Gaussian data is exact for every h below the limit of stability,
    h = 2 deviations. A momentum is drawn at the start of each visit and let go at its end. The last
    half kick of a visit would only change that momentum, so a visit of n steps takes n network
    calls, one less than where steps are counted by their last kick. Leimkuhler and Matthews 2013,
    "Rational construction of stochastic numerical methods for molecular sampling".

    Args:
        step: h in units of sigma; a number or a function of the model time.
        friction: in units of 1/sigma; a number or a function of the model time.
        length: in place of `step`: how long a visit lasts, in units of sigma.

    Raises:
        ValueError: an option that is neither a positive number nor a function.
    """
    return Baoab("baoab", *_options("baoab", step, friction, length), power=1)


def _options(
    name: str, step: Value, friction: Value, length: Value | None
) -> tuple[Value, Value, Value | None]:
    step = checked_option(name, "step", step)
    friction = checked_option(name, "friction", friction)
    return step, friction, None if length is None else checked_option(name, "length", length)
