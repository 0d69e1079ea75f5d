"""What one step of a sampler should do, and what it did: sums over a batch.

The reverse process of x = alpha x0 + sigma eps, with noise of strength eta, reads in u = x / alpha
and lam = log(alpha / sigma), with D the x0 estimate:

    du = (1 + eta^2) (D - u) dlam + sqrt(2) eta (sigma / alpha) dB

Over a step from (alpha, sigma) at s to t, h = lam_t - lam_s, with D held,

    mean of x_t = alpha_t D + (sigma_t / sigma_s) exp(-eta^2 h) (x_s - alpha_s D)
    variance    = sigma_t^2 (1 - exp(-2 eta^2 h))

For eta = 1 the mean is exact, not only for D held: D is a martingale of the exact process. Samplers
of first order take this very step. A batch of pairs (x_s, x_t) then has residuals
r = (x_t - mean) / sigma_t of known variance, without correlation with anything at s, and three
numbers of them tell what a sampler did:

    temperature    E|r|^2 over the designed variance; 1 where the noise is right
    drift          1 + the regression of r on the score's share of the step; 1 where it is right
    shift          the regression of r on what the mean changes by where the network is told
                   another lam; 0 where it is told the right one

Other dynamics dx = f dt + sqrt(2 T) dB have mean x + tau f, variance 2 T tau, and no shift.

Methods of higher order read D at times within the step, or extrapolate it to them. To read it at
the far end is a shift of h: that is the allowance of the shift, and what this shift does to the
drift that of the drift. The exact process has more variance than D held gives, by the variance of
x0 given x_s. That is half of the correlation of r with the change of D over the step
(`Step.change`, for a step of first order), and the allowance of the temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NAMES = ("drift", "temperature", "shift")


class Step(NamedTuple):
    """A batch over one step, in the units in which the state at its end has noise 1.

    Attributes:
        residual: r [n, m], what x_t has beside the designed mean.
        variance: the designed variance of each element of r.
        push: [n, m], the score's (or the drift's) share of the mean. NaN: it has no size.
        turn: [n, m], change of the mean for a shift of 1 in lam; None: no shift is asked for.
        change: [n, m], change of the mean where the estimate at the far state and time is used.
        far: shift that reads the estimate at the time of the far end.
        times: (from, to), as the caller counts them.
    """

    residual: np.ndarray
    variance: float
    push: np.ndarray
    turn: np.ndarray | None
    change: np.ndarray
    far: float
    times: tuple[float, float]


class Measured(NamedTuple):
    """The three numbers of a step, in the order of `NAMES`.

    Attributes:
        value: [3]; NaN where a number could not be measured.
        error: [3] standard errors, of the samples.
        null: [3] standard errors that a sound sampler has: its residuals are normal, with the
            designed variance, so that these are known.
        allowance: [3], by how much a method of higher order may differ.
        times: (from, to).
    """

    value: np.ndarray
    error: np.ndarray
    null: np.ndarray
    allowance: np.ndarray
    times: tuple[float, float]


def measure(step: Step, allow: bool) -> Measured:
    """Returns the three numbers of a step, their standard errors and allowances.

    Standard errors are those of sums over independent samples; the elements of one sample may
    depend on each other.
    """
    r, q = step.residual, step.variance
    n, m = r.shape
    ratio = np.square(r).sum(1) / (q * m)
    value = np.array([np.nan, ratio.mean(), np.nan])
    error = np.array([np.nan, ratio.std(ddof=1) / np.sqrt(n), np.nan])
    null = np.array([np.nan, np.sqrt(2.0 / (n * m)), np.nan])
    change = step.change
    allowance = np.zeros(3)
    crossed = abs((r * change).sum(1).mean())
    allowance[1] = (crossed + np.square(change).sum(1).mean()) / (q * m)
    for k, along, base in ((0, step.push, 1.0), (2, step.turn, 0.0)):
        if along is None or not np.isfinite(along).all():
            continue
        size = np.square(along).sum()
        # Below this the direction is rounding, and a regression on it says nothing.
        if not size > 1e-20 * np.square(r).sum():
            continue
        terms = (r * along).sum(1)
        value[k] = base + terms.sum() / size
        error[k] = np.sqrt(np.square(terms).sum()) / size
        null[k] = np.sqrt(q / size)
        # Without a turn the mean change is all that is known of the far end.
        moved = change if step.turn is None else step.far * step.turn
        allowance[k] = step.far if k == 2 else abs((moved * along).sum()) / size
    return Measured(value, error, null, allowance if allow else np.zeros(3), step.times)


def pooled(steps: list[Measured]) -> Measured:
    """Returns the three numbers over all steps, weighted by 1 / null^2.

    Residuals of different steps are not correlated where the sampler does what it should, so the
    standard errors add up as those of independent numbers.
    """
    values, errors, nulls, allowed = (
        np.array([getattr(step, name) for step in steps])
        for name in ("value", "error", "null", "allowance")
    )
    known = np.isfinite(values) & (nulls > 0)
    weights = np.where(known, 1.0, 0.0) / np.where(known, nulls, 1.0) ** 2
    total = weights.sum(0)
    weights = weights / np.where(total > 0, total, np.nan)

    def mean(parts):
        return (weights * np.where(known, parts, 0.0)).sum(0)

    def root(parts):
        return np.sqrt(np.square(weights * np.where(known, parts, 0.0)).sum(0))

    times = steps[0].times[0], steps[-1].times[1]
    return Measured(mean(values), root(errors), root(nulls), mean(allowed), times)
