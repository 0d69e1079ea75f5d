"""Grids even in model time, whole training indices among them."""

from __future__ import annotations

import numpy as np

from diffast.grids.checks import check_grid, check_steps
from diffast.schedules import Schedule


def uniform_time(
    schedule: Schedule,
    steps: int,
    start: float | None = None,
    end: float | None = None,
    to_zero: bool = False,
) -> np.ndarray:
    """Returns times evenly spaced in model time; [steps+1] float64.

    For `flow` the usual Euler grid 1, 1 - 1/N ... 0; for `from_betas` N-1 down to -1, fractional
    where it must be, the same as `trailing` where steps divides the number of training steps.

    Args:
        schedule: any schedule.
        steps: number of grid intervals.
        start: first time, by default schedule.t_start.
        end: last time, by default schedule.t_end.
        to_zero: True: the steps before the last one are even from start to end, and the last one
            goes from end to the clean end. It makes no difference without an end above it.

    Raises:
        ValueError: steps < 1, more steps than training indices; start or end outside the schedule
            or out of order.
    """
    steps = check_steps("uniform_time", steps, getattr(schedule, "timesteps", None))
    start = schedule.t_start if start is None else float(start)
    end = schedule.t_end if end is None else float(end)
    extra = to_zero and end != schedule.t_end
    ramp = np.arange(steps + 1 - extra) / max(steps - extra, 1)
    times = start + ramp * (end - start)
    if len(times) > 1:
        times[-1] = end
    return check_grid(schedule, np.append(times, schedule.t_end) if extra else times)


def trailing(schedule: Schedule, steps: int) -> np.ndarray:
    """Returns the training indices round(N - i N / steps) - 1, then -1 (clean); [steps+1] float64.

    Starts at N-1, pure noise: the spacing Lin et al. 2024 ("Common diffusion noise schedules and
    sample steps are flawed"), table 2, recommend.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, at most N.

    Raises:
        ValueError: a schedule without training indices (`uniform_time` is the same thing there);
            steps < 1 or > N.
    """
    count, steps = _counted("trailing", schedule, steps)
    return _indices(schedule, np.round(count - np.arange(steps) * (count / steps)) - 1.0)


def leading(schedule: Schedule, steps: int, steps_offset: int = 0) -> np.ndarray:
    """Returns the training indices i floor(N / steps) + steps_offset, then -1; [steps+1] float64.

    The spacing of DDIM and PNDM (Lin et al. 2024, table 2). It does not start at N-1.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, at most N.
        steps_offset: added to every index; Stable Diffusion 1 and 2 use 1.

    Raises:
        ValueError: a schedule without training indices; steps < 1 or > N; an index above N-1.
    """
    count, steps = _counted("leading", schedule, steps)
    if steps_offset < 0:
        raise ValueError(f"leading: steps_offset = {steps_offset}, but it must not be negative")
    first = (steps - 1) * (count // steps) + steps_offset
    if first > count - 1:
        raise ValueError(
            f"leading: steps_offset = {steps_offset} makes the first index {first}, "
            f"but the last trained one is {count - 1}"
        )
    return _indices(schedule, first - np.arange(steps) * float(count // steps))


def linspace(schedule: Schedule, steps: int) -> np.ndarray:
    """Returns round(linspace(N-1, 0, steps)), then -1 (clean); [steps+1] float64.

    The spacing of improved DDPM (Lin et al. 2024, table 2): both the noisiest and the cleanest
    index are called.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, 2 to N.

    Raises:
        ValueError: a schedule without training indices; steps < 2 (no room for both ends) or > N.
    """
    count, steps = _counted("linspace", schedule, steps)
    if steps == 1:
        raise ValueError("linspace: 1 step, but both N-1 and 0 are to be called; use trailing")
    return _indices(schedule, np.round(np.arange(steps - 1, -1, -1) * ((count - 1) / (steps - 1))))


def _counted(name, schedule, steps):
    """Returns the number of training indices, and of steps."""
    count = getattr(schedule, "timesteps", None)
    if count is None:
        raise ValueError(
            f"{name}: {schedule} has no training indices, but {name} counts in them; "
            "use uniform_time"
        )
    return count, check_steps(name, steps, count)


def _indices(schedule, indices):
    return check_grid(schedule, np.append(indices, -1.0))
