"""The methods of PIADM: exponential integrators that hold the score, in blocks of OU time.

With t = -2 log alpha the forward process of a schedule with alpha^2 + sigma^2 = 1 is that of
Ornstein-Uhlenbeck, dx = -x/2 dt + dw. Over a step from s to t = s - e of its reversals

    SDE:  dx = (x/2 + score) dr + dW,          ODE:  dx = (x + score) / 2 dr

the linear part is exact and the score is held, score = (alpha x0 - x) / sigma^2 at s:

    SDE:  x_t = exp(e/2) x_s + 2 (exp(e/2) - 1) score + sqrt(exp(e) - 1) z
    ODE:  x_t = exp(e/2) x_s + (exp(e/2) - 1) score

(Chen, Ren, Ying and Rotskoff 2024, "Accelerating diffusion models with parallel sampling", sections
3.1 and 3.2.) They are exact in x0. A step misses a part of order e^2 of the noise level, so the
plans are checked for x0 alone. A step into sigma = 0 is the last x0 estimate.

PIADM makes all network calls of one of the plans' `blocks` at once. Run one call after another,
the plans are solvers of weak order 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages, one_call_plan
from diffast.schedules import Schedule
from diffast.solvers.correctors import exact_step

# How far alpha^2 + sigma^2 may be from 1.
TOLERANCE = 1e-9


def piadm_sde(schedule: Schedule, grid: ArrayLike, *, block: float = 1.0) -> Plan:
    """Returns the reverse SDE with the score held over each step. Weak order 1, 1 call a step.

    Chen et al. 2024, algorithm 1 in plan form: see the top of the file.

    Args:
        schedule: any schedule with alpha^2 + sigma^2 = 1.
        grid: [N+1] model times from noisy to clean, alpha > 0; `df.grids.ou_early` is made for it.
        block: length of a block in OU time; blocks begin at the grid points nearest to its
            multiples, counted from the start.

    Raises:
        ValueError: another schedule; a grid that starts at alpha = 0, where the OU time is
            infinite, or that `check_grid` refuses; a block that is not positive.
    """
    grid, x, starts = _predictor("piadm_sde", schedule, grid, block, 2.0)
    return one_call_plan("piadm_sde", schedule, grid, x, check="x0", blocks=starts)


def piadm_ode(
    schedule: Schedule,
    grid: ArrayLike,
    *,
    block: float = 1.0,
    corrector: tuple[float | Callable[[float], float], int] | None = None,
    friction: float | Callable[[float], float] = 2.0,
) -> Plan:
    """Returns the reverse ODE with the score held over each step. Weak order 1, 1 call a step.

    After every block a corrector may run underdamped Langevin dynamics at the fixed time of the
    block's end (Chen et al. 2024, algorithm 2; the steps are those of `df.correctors.underdamped`).
    Its momentum is drawn anew each time. It adds noise and `inner` network calls a block, all at
    that time. It keeps the law at that time, up to an error of the order of its step, and so
    reduces the errors of the steps before.

    A corrector's stages are a block of their own. Where the grid ends at sigma = 0 the score has no
    value, and the last block has no corrector.

    Args:
        schedule: any schedule with alpha^2 + sigma^2 = 1.
        grid: [N+1] model times from noisy to clean, alpha > 0; `df.grids.ou_early` is made for it.
        block: length of a block in OU time, as in `piadm_sde`.
        corrector: (length, inner): how long the dynamics run, and in how many steps; None
            for none. The length may be a function of the model time: it should stay below
            1/sqrt(L), L the Lipschitz constant of the score there (1/sigma^2 at most), and a step
            well below.
        friction: g, positive, of the order of sqrt(L); or a function of the model time.

    Raises:
        ValueError: as `piadm_sde`; a corrector that is no such pair, or a length or a friction that
            is not positive and finite.
    """
    inner, length = _check_corrector(corrector)
    grid, row, starts = _predictor("piadm_ode", schedule, grid, block, 1.0)
    steps = len(grid) - 1
    starts = {*starts.tolist(), steps}
    stages, blocks = Stages(schedule, grid[0]), []
    for n, (s, t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        if n in starts:
            blocks.append(len(stages))
        step = {column: weights[n] for column, weights in row.items()}
        if not (inner and n + 1 in starts and schedule.sigma(t) > 0.0):
            stages.add(s, t, step)
            continue
        stages.add(s, t, step, v={"z2": 1.0})
        blocks.append(len(stages))
        e = exact_step.step(_at(friction, t, "friction"), _at(length, t, "length") / inner)
        _add_corrector(stages, schedule, t, e, inner)
    name = f"piadm_ode(corrector of {inner})" if inner else "piadm_ode"
    return stages.plan(name, steps, check="x0", blocks=blocks)


def _add_corrector(stages, schedule, t, e, inner):
    """Adds the calls of a corrector at time t; entries are the score."""
    share = 1.0 / schedule.sigma(t) ** 2
    score = {"x": -share, "d": schedule.alpha(t) * share}
    x, v = ({"h0" if c == "s" else c: weight for c, weight in row.items()} for row in e.rows())
    for last in [False] * (inner - 1) + [True]:
        stages.add(t, t, x, v=None if last else v, h=score)


def _predictor(name, schedule, grid, block, pull):
    """Returns the grid, the row of x with weights [N], and the first steps of blocks.

    Args:
        pull: 2 for the SDE, 1 for the ODE.
    """
    if not 0 < block < np.inf:
        raise ValueError(f"{name}: block = {block}, but it must be positive and finite")
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    total = alpha**2 + sigma**2
    if not (np.abs(total - 1.0) <= TOLERANCE).all():
        i = int(np.argmax(np.abs(total - 1.0)))
        raise ValueError(
            f"{name}: alpha^2 + sigma^2 = {total[i]:.6g} at t = {grid[i]:g} on {schedule}, but it "
            "must be 1 everywhere"
        )
    if alpha[0] == 0.0:
        raise ValueError(
            f"{name}: alpha = 0 at t = {grid[0]:g}, but the OU time -2 log(alpha) must be finite: "
            "start the grid later"
        )
    # near data 1 - alpha has lost digits that sigma still has
    with np.errstate(divide="ignore", invalid="ignore"):
        ou = np.where(sigma < alpha, -np.log1p(-(sigma**2)), -2.0 * np.log(alpha))
    e = ou[:-1] - ou[1:]
    gain = pull * np.expm1(0.5 * e) / sigma[:-1] ** 2
    fresh = np.sqrt(np.expm1(e)) if pull == 2.0 else np.zeros_like(e)
    clean = sigma[1:] == 0.0
    x = {
        "x": np.where(clean, 0.0, alpha[1:] / alpha[:-1] - gain),
        "d": np.where(clean, 1.0, gain * alpha[:-1]),
        "z1": np.where(clean, 0.0, fresh),
    }
    return grid, x, _blocks(ou[0] - ou, block)


def _blocks(passed, block):
    """Returns the grid points nearest to the multiples of block in `passed` [N+1]; not the end."""
    # such a point has a multiple between the middles of the steps before and after it
    below = np.floor(0.5 * (passed[:-1] + passed[1:]) / block)
    return np.flatnonzero(np.diff(below, prepend=-1.0) > 0.0)


def _check_corrector(corrector):
    """Returns (inner, length) of a corrector; (0, None) for None."""
    if corrector is None:
        return 0, None
    try:
        length, inner = corrector
        inner = operator.index(inner)
    except (TypeError, ValueError):
        inner = 0
    if inner < 1:
        raise ValueError(
            f"piadm_ode: corrector = {corrector!r}, but it must be (length, number of steps)"
        )
    return inner, length


def _at(value: Any, t: float, what: str) -> float:
    """Returns the number, or what the function says at t."""
    number = float(value(t) if callable(value) else value)
    if not 0.0 < number < np.inf:
        raise ValueError(
            f"piadm_ode: {what} = {number} at t = {t:g}, but it must be positive and finite"
        )
    return number
