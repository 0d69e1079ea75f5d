"""ODE solvers with noise put back between steps: EDM's churn, and restarts.

Both use the time variable rho = sigma/alpha. Raising the noise from rho to rho_hat, at a noisier
time t_hat, is

    x_hat = (alpha_hat / alpha) x + alpha_hat sqrt(rho_hat^2 - rho^2) z

which needs no network call. It is multiplied into the row that ends the step: x then stands at the
raised time, and the stage's noise is the noise that was put back.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid, karras
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.noise_split import check_eta, check_s_noise

Base = Literal["heun", "euler", "dpm_2"]
BASES = get_args(Base)

# Levels closer than this, relatively, are one.
ROUNDING = 1e-9


@builder
def churn(
    schedule: Schedule,
    grid: ArrayLike,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = np.inf,
    s_noise: float = 1.0,
    base: Base = "heun",
) -> Plan:
    """Returns the stochastic sampler of EDM, Karras et al. 2022, algorithm 2. 1 or 2 calls a step.

    Before step n of N, where s_tmin <= rho_n <= s_tmax, noise is put back to

        rho_hat = rho_n (1 + min(s_churn / N, sqrt(2) - 1))

    and the base method steps from there to rho_{n+1}. The noise of the first step is the plan's
    `opening`. Where rho_hat lies beyond the schedule's noisiest time it stands there; at alpha = 0
    there is nothing to add. s_churn = 0 is the base method. With a fixed s_churn the variance
    converges with the order of the base, 2 or 1 (euler); a fixed share a step, which is s_churn
    of 0.41 N and more, does not converge to the data's.

    Args:
        s_churn: amount of noise over the whole run; 0 for none.
        s_tmin: least sigma/alpha at which noise is put back.
        s_tmax: largest one.
        base: "heun", "euler" or "dpm_2" (k-diffusion's sample_heun, sample_euler, sample_dpm_2).
    """
    _check_base("churn", base)
    s_noise, check = check_s_noise("churn", s_noise)
    check_eta("churn", s_churn, "s_churn")
    if not 0 <= s_tmin <= s_tmax:
        raise ValueError(
            f"churn: s_tmin = {s_tmin} and s_tmax = {s_tmax}, but 0 <= s_tmin <= s_tmax"
        )
    grid = check_grid(schedule, grid)
    steps = len(grid) - 1
    gamma = min(s_churn / steps, np.sqrt(2.0) - 1.0)
    lam = schedule.lam(grid[:-1])
    least = schedule.lam(schedule.domain[1])
    # not exp(-lam), whose rounding could put a level beside a bound that it equals
    with np.errstate(divide="ignore"):
        rho = schedule.sigma(grid[:-1]) / schedule.alpha(grid[:-1])
    raised = (gamma > 0.0) & np.isfinite(lam) & (s_tmin <= rho) & (rho <= s_tmax)
    hats = grid.copy()
    goal = np.maximum(lam[raised] - np.log1p(gamma), least)
    hats[:-1][raised] = np.where(goal < lam[raised], schedule.time(goal), grid[:-1][raised])
    legs = [(hats[n], grid[n + 1], hats[n + 1]) for n in range(steps)]
    name = f"churn({base}, s_churn={s_churn:g})"
    return _walk(schedule, base, grid, legs, s_noise, name, check)


@builder
def restart(
    schedule: Schedule,
    grid: ArrayLike,
    intervals: Iterable[tuple[float, float, int, int]],
    base: Base = "heun",
    s_noise: float = 1.0,
) -> Plan:
    """Returns restart sampling, Xu et al. 2023 ("Restart sampling"), algorithm 1.

    The base method follows the grid. At the grid time nearest to `low`, noise is put back up to
    `high` and the base method goes down again over a grid of Karras et al. 2022 (rho = 7); this is
    done `repeats` times. Times rise at each repeat, and the noise is new each time, so plans cannot
    run on a fixed Brownian path.

    Args:
        intervals: (low, high, repeats, steps) for each: sigma/alpha from where and to where noise
            is put back, how often, and in how many steps the base method goes down.
        base: "heun", "euler" or "dpm_2".

    Raises:
        ValueError: another base; an interval that is not 0 < low < high, or whose high is not above
            the grid time nearest to low or is beyond the schedule, with less than one step or
            repeat, or that meets another at one grid time; a grid that `check_grid` refuses.
    """
    _check_base("restart", base)
    s_noise, check = check_s_noise("restart", s_noise)
    grid = check_grid(schedule, grid)
    with np.errstate(divide="ignore"):
        rho = np.exp(-schedule.lam(grid))
    again = {}
    for low, high, repeats, steps in intervals:
        n, legs = _interval(schedule, grid, rho, low, high, repeats, steps)
        if n in again:
            raise ValueError(
                f"restart: two intervals begin at grid time {grid[n]}, low = {low} the second"
            )
        again[n] = legs
    legs = []
    for n in range(len(grid) - 1):
        here = again.get(n + 1, [])
        legs.append((grid[n], grid[n + 1], here[0][0] if here else grid[n + 1]))
        legs += here
    return _walk(schedule, base, grid, legs, s_noise, f"restart({base})", check)


def _interval(schedule, grid, rho, low, high, repeats, steps):
    """Returns the grid index where an interval begins, and all legs from its `high`."""
    if not 0 < low < high < np.inf:
        raise ValueError(f"restart: low = {low} and high = {high}, but 0 < low < high")
    for option, value in (("repeats", repeats), ("steps", steps)):
        try:
            positive = operator.index(value) >= 1
        except TypeError:
            positive = False
        if not positive:
            raise ValueError(f"restart: {option} = {value!r}, but it must be a whole number, 1 up")
    # a grid of given levels may go on below t_min, where grids in log-SNR have no time
    least = max(np.exp(-float(schedule.lam(schedule.t_min))) * (1.0 - ROUNDING), 0.0)
    inside = np.flatnonzero((rho > 0.0) & (rho >= least) & (np.arange(len(rho)) > 0))
    if not inside.size:
        raise ValueError(
            f"restart: low = {low}, but no step of the grid ends above sigma = 0 and the "
            "schedule's t_min"
        )
    n = int(inside[np.argmin(np.abs(rho[inside] - low))])
    if not rho[n] < high * (1.0 - ROUNDING):
        raise ValueError(
            f"restart: high = {high}, but it must be above sigma/alpha = {rho[n]:.6g} of the grid "
            f"time nearest to low = {low}"
        )
    down = karras(schedule, steps, sigma_min=rho[n], sigma_max=high, to_zero=False)
    down[-1] = grid[n]
    once = [(s, t, t) for s, t in zip(down[:-1], down[1:], strict=True)]
    back = [*once[:-1], (*once[-1][:2], down[0])]
    return n, back * (repeats - 1) + once


def _check_base(name, base):
    if base not in BASES:
        raise ValueError(f"{name}: base = {base!r}, but it must be one of {', '.join(BASES)}")


def _walk(schedule, base, grid, legs, s_noise, name, check):
    """Returns the plan of legs (from, to, to which noise is raised after)."""
    stages = Stages(schedule, grid[0])
    first = legs[0][0]
    grow, up = _lift(schedule, grid[0], first)
    if (grow, up) != (1.0, 0.0):  # noise before the first call
        stages.add(None, first, {"y": grow, "z1": s_noise * up}, span=(grid[0], first))
    for s, t, hat in legs:
        calls = _step(base, schedule, s, t)
        for (stop, row, closes), to in zip(calls, [*(c[0] for c in calls[1:]), hat], strict=True):
            if not closes:
                stages.add(stop, to, row, y="keep", span=(s, t))
                continue
            grow, up = _lift(schedule, t, hat)
            raised = {column: grow * weight for column, weight in row.items()}
            span = (t, hat) if up else (s, t)
            stages.add(stop, to, raised | {"z1": s_noise * up}, span=span)
    return stages.plan(name, len(grid) - 1, check=check)


def _lift(schedule, t, hat):
    """Returns (factor on the state, noise) that raise a state from time t to time hat."""
    if hat == t:
        return 1.0, 0.0
    alpha, alpha_hat = schedule.alpha(np.array([t, hat]))
    sigma, sigma_hat = schedule.sigma(np.array([t, hat]))
    grow = alpha_hat / alpha
    part = grow * sigma / sigma_hat  # rho / rho_hat
    return grow, sigma_hat * np.sqrt((1.0 - part) * (1.0 + part))


def _step(base, schedule, s, t):
    """Returns the stages (time, row of x, whether the step ends there) of one step from s to t.

    See `heun` and `dpm_2_ancestral` (eta = 0) for the rows; Euler's where they have no value.
    """
    alpha_s, alpha_t = schedule.alpha(np.array([s, t]))
    sigma_s, sigma_t = schedule.sigma(np.array([s, t]))
    keep = sigma_t / sigma_s
    new = alpha_t - alpha_s * keep
    if base == "euler" or sigma_t == 0.0 or alpha_s == 0.0:
        return [(s, {"y": keep, "d": new}, True)]
    if base == "heun":
        w = 0.5 * alpha_t * new / (alpha_s * keep)
        corrected = {"y": keep, "d": w, "h1": new - w}
        return [(s, {"y": keep, "d": new}, False), (t, corrected, True)]
    m = schedule.time(0.5 * schedule.lam(np.array([s, t])).sum())
    alpha_m, sigma_m = schedule.alpha(m), schedule.sigma(m)
    keep_m = sigma_m / sigma_s
    late = new * alpha_m / (alpha_s * keep_m)  # new rho_s / rho_m
    inner = {"y": keep_m, "d": alpha_m - alpha_s * keep_m}
    return [(s, inner, False), (m, {"y": keep, "d": late, "h1": new - late}, True)]
