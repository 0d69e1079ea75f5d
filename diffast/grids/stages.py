"""The grid of DPOM and DPUM: stages of 1/L in OU time, and a last piece whose steps halve."""

from __future__ import annotations

import numpy as np

from diffast.grids.checks import check_grid
from diffast.schedules import Schedule

# Of the equation for the next stage's end; it is convex, and a few steps are enough.
_NEWTON = 60


def ou_stages(
    schedule: Schedule,
    inner: int = 1,
    *,
    lipschitz: float | None = None,
    start: float | None = None,
    end: float | None = None,
    to_zero: bool = False,
) -> np.ndarray:
    """Returns model times of stages of 1/L in OU time, `inner` steps each; float64.

    OU time is u = log(1 + (sigma/alpha)^2) / 2. The grid is that of `df.solvers.dpom` and `dpum`
    (Chen et al. 2023, "The probability flow ODE is provably fast", algorithms 1 and 2).

    With a number L there are floor(L (u_start - 1/L)) stages of 1/L, in steps of h = 1/(L inner).
    The last piece goes on with steps of at most h down to u = h, then with steps h/2, h/4 .. to the
    end. With None, L is 1 + (alpha/sigma)^2 at the cleaner end of each stage, the Lipschitz
    constant of the noise: sigma/alpha then falls by e in a stage at high noise, and by sqrt(3) near
    data.

    Args:
        schedule: any schedule.
        inner: steps of a stage, even in OU time.
        lipschitz: L of the score in OU space; None: that of the noise.
        start: model time at which the grid starts; None: the schedule's t_start.
        end: model time at which it ends; None: the schedule's t_min.
        to_zero: whether a step to sigma = 0 follows.

    Raises:
        ValueError: alpha = 0 at the start; inner < 1; an L that is not positive and finite; ends
            that `check_grid` refuses.
    """
    if not isinstance(inner, (int, np.integer)) or inner < 1:
        raise ValueError(f"ou_stages: inner = {inner}, but a stage has a whole number of steps")
    if lipschitz is not None and not 0.0 < lipschitz < np.inf:
        raise ValueError(f"ou_stages: lipschitz = {lipschitz}, but it must be positive and finite")
    start = float(schedule.t_start if start is None else start)
    end = float(schedule.t_min if end is None else end)
    check_grid(schedule, [start, end])
    if schedule.alpha(start) == 0.0:
        raise ValueError(
            f"ou_stages: alpha = 0 at t = {start:g}, but the OU time must be finite: give a start"
        )
    first, last = (_ou(schedule, t) for t in (start, end))
    if lipschitz is None:
        points = _by_noise(first, last, inner)
    else:
        points = _by_number(first, last, inner, lipschitz)
    # sigma/alpha = sqrt(exp(2 u) - 1)
    times = np.atleast_1d(schedule.time(-0.5 * np.log(np.expm1(2.0 * np.array(points)))))
    times[0], times[-1] = start, end
    return check_grid(schedule, np.append(times, schedule.t_end) if to_zero else times)


def _ou(schedule: Schedule, t: float) -> float:
    return float(0.5 * np.log1p(np.exp(-2.0 * schedule.lam(t))))


def _by_noise(first: float, last: float, inner: int) -> list[float]:
    points = [first]
    while points[-1] > last:
        begin = points[-1]
        stop = max(_next(begin), last)
        if stop - last < 1e-6 * (begin - stop):  # a sliver: part of this stage
            stop = last
        points += np.linspace(begin, stop, inner + 1)[1:].tolist()
    return points


def _next(begin: float) -> float:
    """Returns u with begin - u = 1 - exp(-2 u), which is 1/L at u."""
    u = begin / 3.0  # below the root: 1 - exp(-2 u) <= 2 u
    for _ in range(_NEWTON):
        u -= (u - np.expm1(-2.0 * u) - begin) / (1.0 + 2.0 * np.exp(-2.0 * u))
    return float(u)


def _by_number(first: float, last: float, inner: int, lipschitz: float) -> list[float]:
    step = 1.0 / (lipschitz * inner)
    count = max(int(np.floor(lipschitz * first - 1.0 + 1e-9)), 0) * inner
    points = [first - k * step for k in range(count + 1) if first - k * step > last]
    rest = points[-1]
    if rest > step:  # on to u = step, in steps of at most that
        more = int(np.ceil((rest - step) / step - 1e-9))
        points += [u for u in np.linspace(rest, step, more + 1)[1:].tolist() if u > last]
    while points[-1] > 2.0 * last:
        points.append(0.5 * points[-1])
    return points if points[-1] == last else [*points, last]
