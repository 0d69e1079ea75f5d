"""Checks of grids and of numbers of steps, and what is said of arguments that many grids have."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike

from diffast._docs import documented
from diffast.schedules import Schedule

grid_function = documented(
    {
        "schedule": "any schedule.",
        "steps": "number of grid intervals.",
        "sigma_min": "least sigma/alpha above 0, by default that of schedule.t_min.",
        "sigma_max": "sigma/alpha at the start, by default that of schedule.t_start.",
        "start": "the start as a model time, in place of sigma_max.",
        "end": "the last noisy level as a model time, in place of sigma_min.",
        "to_zero": "True: steps levels, then the clean end. False: steps + 1 levels, no more.",
        "timesteps": "size, 2 or more, of the table of a schedule without training indices.",
        "alpha": "first shape parameter, positive; below 1 points crowd at low noise.",
        "beta": "second shape parameter, positive; below 1 points crowd at high noise.",
    },
    "ValueError: steps < 1; options outside of these; levels out of order or beyond the schedule.",
)


def check_grid(schedule: Schedule, times: ArrayLike) -> np.ndarray:
    """Returns times as a float64 grid fit for a solver, [N+1].

    A time outside the schedule by less than 1e-9 of its range is moved to the schedule's end.

    Args:
        schedule: any schedule.
        times: N+1 model times, N >= 1, from noisy to clean.

    Raises:
        ValueError: unless the times are one-dimensional, finite, inside [t_end, t_start] and
            strictly monotone from noisy to clean, with the log-SNR strictly rising.
    """
    times = np.array(times, dtype=np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"grid: shape {list(times.shape)}, but it must be [N+1], N >= 1")
    if not np.isfinite(times).all():
        i = int(np.argmin(np.isfinite(times)))
        raise ValueError(f"grid[{i}] = {times[i]}, but the times of a grid must be finite")
    start, end = float(schedule.t_start), float(schedule.t_end)
    low, high = min(start, end), max(start, end)
    inside = np.clip(times, low, high)
    beyond = np.abs(times - inside) > 1e-9 * (high - low)
    if beyond.any():
        i = int(np.argmax(beyond))
        raise ValueError(f"grid[{i}] = {times[i]}, but the schedule runs from {start} to {end}")
    step = np.diff(inside) * np.sign(end - start)
    alpha, sigma = schedule.alpha(inside), schedule.sigma(inside)
    rising = alpha[1:] * sigma[:-1] > alpha[:-1] * sigma[1:]
    wrong = ~((step > 0) & rising)
    if wrong.any():
        i = int(np.argmax(wrong))
        what = "log-SNR must rise" if step[i] > 0 else "times must go strictly from noisy to clean"
        raise ValueError(
            f"grid[{i}] = {times[i]} is followed by grid[{i + 1}] = {times[i + 1]}, but {what}"
        )
    return inside


def check_steps(name: str, steps: int, count: int | None = None) -> int:
    """Returns steps as an int; ValueError unless it is whole, 1 or more and at most count."""
    try:
        steps = operator.index(steps)
    except TypeError:
        raise ValueError(f"{name}: steps = {steps!r}, but it must be a whole number") from None
    if steps < 1:
        raise ValueError(f"{name}: {steps} steps, but at least 1 is needed")
    if count is not None and steps > count:
        raise ValueError(f"{name}: {steps} steps, but the schedule has {count} training indices")
    return steps


def check_share(name: str, option: str, value: float) -> float:
    """Returns value as a float; ValueError unless it lies in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name}: {option} = {value}, but it must lie in (0, 1]")
    return float(value)


def check_positive(name: str, **options: float) -> None:
    """Raises ValueError unless every option is a positive, finite number."""
    for option, value in options.items():
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: {option} = {value}, but it must be positive and finite")


def run_ends(name, schedule, start, end, sigma_max, sigma_min) -> tuple[float, float | None]:
    """Returns the first and the last noisy model time of a grid; None: no end is given.

    Args:
        name: the grid's name in errors.
        schedule: any schedule.
        start: the first as a model time, or None.
        end: the last likewise.
        sigma_max: the first as sigma/alpha, or None.
        sigma_min: the last likewise.

    Raises:
        ValueError: an end given both ways, out of order or outside the schedule.
    """
    first = _run_end(name, schedule, "start", start, "sigma_max", sigma_max)
    last = _run_end(name, schedule, "end", end, "sigma_min", sigma_min)
    first = float(schedule.t_start) if first is None else first
    if last is not None and not schedule.lam(last) > schedule.lam(first):
        said = f"end = {end}" if sigma_min is None else f"sigma_min = {sigma_min}"
        raise ValueError(f"{name}: {said}, but the run starts at t = {first}, which is no noisier")
    return first, last


def _run_end(name, schedule, option, time, other, level):
    if time is not None and level is not None:
        raise ValueError(f"{name}: {option} = {time}, but {other} = {level} is given as well")
    if level is not None:
        check_positive(name, **{other: level})
        lam, least = -float(np.log(level)), float(schedule.lam(schedule.t_start))
        if lam < least - 1e-9:
            raise ValueError(
                f"{name}: {other} = {level:.6g}, but sigma/alpha of the schedule starts at "
                f"{np.exp(-least):.6g}"
            )
        return float(schedule.time(max(lam, least)))
    if time is None:
        return None
    low, high = sorted((float(schedule.t_start), float(schedule.t_end)))
    if not low <= time <= high:
        raise ValueError(
            f"{name}: {option} = {time}, but the schedule runs from {schedule.t_start} to "
            f"{schedule.t_end}"
        )
    return float(time)
