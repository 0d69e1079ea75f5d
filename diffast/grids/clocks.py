"""Grids even in a time variable: model time, lam, sigma/alpha, a flow's time, an angle."""

from __future__ import annotations

from typing import Literal

import numpy as np

from diffast.grids.checks import check_grid, check_steps, grid_function, run_ends
from diffast.schedules import Schedule
from diffast.schedules.clocks import clock_at, time_on

CLOCKS = ("flow", "arctan", "lam", "rho", "time")


@grid_function
def even(
    schedule: Schedule,
    steps: int,
    clock: Literal["flow", "arctan", "lam", "rho", "time"] = "flow",
    start: float | None = None,
    end: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
) -> np.ndarray:
    """Returns times evenly spaced in a time variable; [steps+1] float64.

        flow      sigma / (alpha + sigma), the time of conditional optimal transport
        arctan    arctan(sigma / alpha), the angle of `trig`
        lam       log(alpha / sigma)
        rho       sigma / alpha
        time      the schedule's own

    Without an end the steps go on evenly to sigma = 0, but in lam, which is infinite there: these
    end at schedule.t_min, and the last step goes from there to the clean end. "flow" and "arctan"
    may start at pure noise, alpha = 0. `kl_optimal` has its levels even in the angle as well, but
    from the start to t_min, and the clean end after them.

    Args:
        clock: the time variable.
        end: last noisy model time, by default none (lam: schedule.t_min).

    Raises:
        ValueError: steps < 1; another clock, or one that is infinite at the start; an end given
            both ways, out of order or outside the schedule.
    """
    if clock not in CLOCKS:
        known = " or ".join(repr(name) for name in CLOCKS)
        raise ValueError(f"even: clock = {clock!r}, but it must be {known}")
    return _even("even", schedule, steps, clock, start, end, sigma_min, sigma_max, to_zero)


@grid_function
def uniform_flow(
    schedule: Schedule,
    steps: int,
    start: float | None = None,
    end: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
) -> np.ndarray:
    """Returns times evenly spaced in sigma/(alpha+sigma); [steps+1] float64: `even` in "flow".

    That is the time of conditional optimal transport (Lipman et al. 2023), to which every schedule
    can be reduced by scaling the state. On `flow` it is `uniform_time`.

    Args:
        end: last noisy model time, by default none: the steps go on evenly to sigma = 0.

    Raises:
        ValueError: steps < 1; an end given both ways, out of order or outside the schedule.
    """
    ends = start, end, sigma_min, sigma_max, to_zero
    return _even("uniform_flow", schedule, steps, "flow", *ends)


def _even(name, schedule, steps, clock, start, end, sigma_min, sigma_max, to_zero):
    steps = check_steps(name, steps)
    if clock == "time":
        check_steps(name, steps, getattr(schedule, "timesteps", None))
    first, last = run_ends(name, schedule, start, end, sigma_max, sigma_min)
    clean = schedule.t_end
    whole = last is None and to_zero and clock != "lam"
    last = clean if whole else schedule.t_min if last is None else last
    # sigma = 0 is a level of its own only after one above it
    extra = to_zero and not whole and float(schedule.sigma(last)) > 0.0
    count = steps if extra else steps + 1
    begin, finish = (float(clock_at(schedule, clock, t)) for t in (first, last))
    if not (np.isfinite(begin) and (count == 1 or np.isfinite(finish))):
        at = first if not np.isfinite(begin) else last
        raise ValueError(
            f"{name}: {clock} is infinite at t = {at}; use clock = 'flow' or 'arctan', or start "
            "or end the run elsewhere"
        )
    ramp = np.arange(1, max(count - 1, 1)) / max(count - 1, 1)
    inner = time_on(schedule, clock, begin + ramp * (finish - begin))
    times = [first, *np.atleast_1d(inner).tolist()]
    times += [last] * (count > 1) + [clean] * extra
    return check_grid(schedule, times)
