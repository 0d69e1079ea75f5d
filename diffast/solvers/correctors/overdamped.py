"""Overdamped Langevin correctors: Euler-Maruyama, Leimkuhler-Matthews, and Song's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffast.solvers.correctors.corrector import Corrector, Value, checked_option
from diffast.solvers.correctors.exact_step import ScoreRow


@dataclass(frozen=True, repr=False)
class Overdamped(Corrector):
    """x <- x + h s + sqrt(2 h) z."""

    def steps(self, h: float, g: float | None, n: int) -> list[tuple[ScoreRow, ScoreRow | None]]:
        """Returns the rows of n steps; none of v."""
        return [({"x": 1.0, "s": h, "z1": float(np.sqrt(2.0 * h))}, None)] * n


@dataclass(frozen=True, repr=False)
class LeimkuhlerMatthews(Corrector):
    """x <- x + h s + sqrt(h / 2) (z_old + z); v holds z for the next step."""

    def steps(self, h: float, g: float | None, n: int) -> list[tuple[ScoreRow, ScoreRow | None]]:
        """Returns the rows of n steps; the first draws the old normal too."""
        half = float(np.sqrt(0.5 * h))
        first = {"x": 1.0, "s": h, "z1": half, "z2": half}, {"z2": 1.0}
        later = {"x": 1.0, "v": half, "s": h, "z1": half}, {"z1": 1.0}
        return [first, *[later] * (n - 1)]


def overdamped(step: Value = 0.25, *, length: Value | None = None) -> Corrector:
    """Returns OLMC, overdamped Langevin dynamics by Euler-Maruyama: one normal a call.

        x <- x + h score + sqrt(2 h) z

    The stationary variance on Gaussian data of variance V is V / (1 - h / (2 V)): an error of first
    order in h. Chen et al. 2023, "The probability flow ODE is provably fast" (arXiv 2305.11798),
    the corrector of DPOM.

    Args:
        step: h in units of sigma^2; a number or a function of the model time.
        length: in place of `step`: how long a visit lasts, in units of sigma^2.

    Raises:
        ValueError: an option that is neither a positive number nor a function.
    """
    return Overdamped("overdamped", *_options("overdamped", step, length))


def leimkuhler_matthews(step: Value = 0.25, *, length: Value | None = None) -> Corrector:
    """Returns the Leimkuhler-Matthews method: each normal is used in two steps, half in each.

        x <- x + h score + sqrt(h / 2) (z_k + z_(k+1))

    The stationary variance on Gaussian data is exact for every h below the limit of stability. The
    old normal z_k is kept in the register v; a visit begins with one that is drawn anew, so the
    first steps of a visit add less noise than they should: it wants visits of several calls.
    Leimkuhler and Matthews 2013, "Rational construction of stochastic numerical methods for
    molecular sampling".

    Args:
        step: h in units of sigma^2; a number or a function of the model time.
        length: in place of `step`: how long a visit lasts, in units of sigma^2.

    Raises:
        ValueError: an option that is neither a positive number nor a function.
    """
    options = _options("leimkuhler_matthews", step, length)
    return LeimkuhlerMatthews("leimkuhler_matthews", *options)


def snr(r: float = 0.16, *, scale: Value = 1.0) -> Corrector:
    """Returns the corrector of Song et al. 2021, whose step is set by a signal-to-noise ratio r.

    The published step is eps = 2 a (r |z| / |g|)^2 with the norms of this sample's normal z and of
    its score g; the move is x + eps g + sqrt(2 eps) z. A plan holds numbers that no sample changes.
    Here |z| and |g| stand for their values in high dimension d: |z|^2 = d, and |g|^2 = d / sigma^2,
    the score of noise of deviation sigma. That gives eps = 2 a r^2 sigma^2, `overdamped` with the
    step 2 a r^2 (r = 0.16: 0.0512). The quotient |z| sigma / |g| differs from 1 by some
    1/sqrt(d) for noise of deviation sigma, and by the factor sqrt(1 + (alpha s / sigma)^2) for data
    of spread s, along which the published step is longer.

    Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
    algorithms 4 and 5 and appendix G.

    Args:
        r: signal-to-noise ratio.
        scale: a, 1 for VE and 1 - beta_i for VP in the paper; a number or a function of the model
            time.

    Raises:
        ValueError: an option that is not positive and finite.
    """
    r = checked_option("snr", "r", r)
    scale = checked_option("snr", "scale", scale)
    if callable(r):
        raise ValueError("snr: r is a function, but it must be a number: scale may be a function")
    step = _times(2.0 * r**2, scale) if callable(scale) else 2.0 * r**2 * scale
    return Overdamped("snr", step)


def _times(factor: float, function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda t: factor * function(t)


def _options(name: str, step: Value, length: Value | None) -> tuple[Value, None, Value | None]:
    step = checked_option(name, "step", step)
    return step, None, None if length is None else checked_option(name, "length", length)
