"""DPOM and DPUM: the probability-flow ODE with a Langevin corrector after every stage.

In OU time u the forward process is dx = -x du + sqrt(2) dB, with alpha = exp(-u) and alpha^2 +
sigma^2 = 1. Every schedule is that process after a division of x by c = sqrt(alpha^2 + sigma^2);
u = log(1 + (sigma/alpha)^2) / 2. With a score that is L-Lipschitz in OU space,

    stages of length 1/L:
        predictor: steps h of the ODE dx = (x + s(x)) du with the score held,
                   x <- e^h x + (e^h - 1) s(x)
        corrector: Langevin dynamics at the arrival time: overdamped for a time of the order 1/L
                   (DPOM), underdamped for 1/sqrt(L) with a friction of the order sqrt(L) (DPUM)
    the last piece, of at least 1/L: steps that halve towards the end; then one more corrector

(Chen, Chewi, Lee, Li, Lu and Salim 2023, "The probability flow ODE is provably fast", arXiv
2305.11798, algorithms 1 and 2.) For alpha^2 + sigma^2 = 1 the predictor is that of `piadm_ode`,
whose OU time is 2 u. It misses a part of the noise level of order h^2, and so does the corrector of
its step: the plans are checked for x0 alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.correctors.corrector import Corrector, Value, checked_option, positive, whole
from diffast.solvers.correctors.overdamped import overdamped
from diffast.solvers.correctors.underdamped import underdamped

Lipschitz = float | Callable[[float], float] | None


def dpom(
    schedule: Schedule,
    grid: ArrayLike,
    *,
    lipschitz: Lipschitz = None,
    n: int | None = None,
    step: Value = 0.25,
) -> Plan:
    """Returns DPOM: the ODE with the score held, and overdamped Langevin correctors.

    Weak order 1; 2 calls a step by default, one of the predictor and one of the corrector. Chen et
    al. 2023, algorithm 1: see the top of the file. The paper's bound asks for corrector steps of
    the order eps^2/(L^3 d) for an accuracy eps in dimension d, so the calls grow as d; for `dpum`
    they grow as sqrt(d). docs/correctors.md has measured numbers.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean, alpha > 0: the predictor's steps.
            `df.grids.ou_stages` makes those of the paper.
        lipschitz: L of the score in OU space, a number or a function of the model time; None:
            1 + (alpha/sigma)^2, that of the noise alone. A stage lasts 1/L. For a number, stages
            end at the grid points nearest to the multiples of 1/L, and the rest of 1/L to 2/L is
            one stage. Otherwise a stage goes on to the last grid point whose own 1/L is not passed.
            A stage is one step at least.
        n: corrector calls of a stage; None: as many as the stage has steps.
        step: of the corrector, in units of 1/L; a number or a function of the model time.

    Raises:
        ValueError: a grid that starts at alpha = 0, where the OU time is infinite, or that
            `check_grid` refuses; an L or a step that is not positive and finite; an n that is no
            whole number of 0 or more.
    """
    return _plan("dpom", schedule, grid, lipschitz, n, overdamped(_option("dpom", "step", step)))


def dpum(
    schedule: Schedule,
    grid: ArrayLike,
    *,
    lipschitz: Lipschitz = None,
    n: int | None = None,
    step: Value = 0.8,
    friction: Value = 2.0,
) -> Plan:
    """Returns DPUM: the ODE with the score held, and underdamped Langevin correctors.

    Weak order 1; 2 calls a step by default, one of the predictor and one of the corrector. Chen et
    al. 2023, algorithm 2: see the top of the file. For an accuracy eps in dimension d the paper
    asks for predictor steps of the order eps/(L^2 sqrt(d)) and corrector steps of the order
    eps/(L^(3/2) sqrt(d)). `sample_parallel` runs the plan in blocks (method "piadm"): each
    predictor's stage and each corrector is one.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean, alpha > 0: the predictor's steps.
            `df.grids.ou_stages` makes those of the paper.
        lipschitz: L of the score in OU space; see `dpom`.
        n: corrector calls of a stage; None: as many as the stage has steps.
        step: of the corrector, in units of 1/sqrt(L); a number or a function of the model time.
        friction: in units of sqrt(L); a number or a function of the model time.

    Raises:
        ValueError: as `dpom`; a friction that is not positive and finite.
    """
    step, friction = _option("dpum", "step", step), _option("dpum", "friction", friction)
    corrector = underdamped(step, friction=friction)
    return _plan("dpum", schedule, grid, lipschitz, n, corrector)


def _option(name: str, option: str, value: Value) -> Value:
    return checked_option(name, option, value)


def _plan(
    name: str,
    schedule: Schedule,
    grid: ArrayLike,
    lipschitz: Lipschitz,
    n: int | None,
    corrector: Corrector,
) -> Plan:
    times = check_grid(schedule, grid)
    if lipschitz is not None:
        lipschitz = checked_option(name, "lipschitz", lipschitz)
    calls = None if n is None else whole(name, n)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    if alpha[0] == 0.0:
        raise ValueError(
            f"{name}: alpha = 0 at t = {times[0]:g}, but the OU time must be finite: start the "
            "grid later"
        )
    ou = 0.5 * np.log1p((sigma / alpha) ** 2)
    rows = _predictor(alpha, sigma)
    ends = _stage_ends(name, lipschitz, times, ou, alpha, sigma)
    stages, blocks, begin = Stages(schedule, times[0]), [0], 0
    for i in range(len(times) - 1):
        stages.add(times[i], times[i + 1], {column: w[i] for column, w in rows.items()})
        if i + 1 not in ends:
            continue
        count = i + 1 - begin if calls is None else calls
        begin = i + 1
        if sigma[begin] > 0.0 and count:
            at = float(times[begin]), float(alpha[begin]), float(sigma[begin])
            unit = None
            if lipschitz is not None:
                space = np.hypot(alpha[begin], sigma[begin])  # of x, in units of OU space
                unit = float(space / np.sqrt(positive(f"{name}: lipschitz", lipschitz, at[0])))
            blocks.append(len(stages))
            for made in corrector.visit(*at, count, unit=unit):
                stages.add(at[0], at[0], made["x"], v=made.get("v"))
        blocks.append(len(stages))
    blocks = sorted({first for first in blocks if first < len(stages)})
    said = "" if calls is None else f"({calls})"
    return stages.plan(f"{name}{said}", len(times) - 1, check="x0", blocks=blocks)


def _predictor(alpha: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of x of the steps, weights [N] by column."""
    rho = sigma / alpha
    inverse = 1.0 / (1.0 + rho[1:] ** 2)
    h = 0.5 * np.log1p((rho[:-1] - rho[1:]) * (rho[:-1] + rho[1:]) * inverse)
    space = np.hypot(alpha, sigma)
    gain = space[1:] / space[:-1] * np.expm1(h) * (1.0 + rho[:-1] ** -2.0)
    clean = sigma[1:] == 0.0
    return {
        "x": np.where(clean, 0.0, alpha[1:] / alpha[:-1] - gain),
        "d": np.where(clean, 1.0, gain * alpha[:-1]),
    }


def _stage_ends(name, lipschitz, times, ou, alpha, sigma) -> set[int]:
    """Returns the grid points at which stages end; the last noisy one is among them."""
    last = len(times) - 1 if sigma[-1] > 0.0 else len(times) - 2
    if isinstance(lipschitz, float):
        # N0 stages of 1/L, counted from the start; the rest, 1/L to 2/L to the clean end, is one.
        passed = ou[0] - ou[: last + 1]
        whole_stages = int(np.floor(lipschitz * ou[0] - 1.0 + 1e-9))
        marks = np.arange(1, whole_stages + 1) / lipschitz
        near = [int(np.argmin(np.abs(passed - mark))) for mark in marks if mark <= passed[-1]]
        return {*(k for k in near if k > 0), last}
    if lipschitz is None:
        lengths = 1.0 / (
            1.0 + np.divide(alpha, sigma, out=np.zeros_like(sigma), where=sigma > 0) ** 2
        )
    else:
        lengths = [1.0 / positive(f"{name}: lipschitz", lipschitz, t) for t in times[: last + 1]]
    ends, begin = {last}, 0
    for i in range(1, last):
        # the stage goes on to i + 1 if that is within the stage's length there
        if ou[begin] - ou[i + 1] > lengths[i + 1] * (1.0 + 1e-9):
            ends.add(i)
            begin = i
    return ends - {0}
