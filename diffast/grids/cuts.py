"""Parts of grids, for runs that start at a noised image or end before sigma = 0.

Slices are grids too: grid[:k + 1] is the first k steps, grid[k:] the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids.checks import check_grid, check_share, check_steps
from diffast.schedules import Schedule


def part(
    schedule: Schedule,
    grid: ArrayLike,
    start: float | None = None,
    end: float | None = None,
    sigma_start: float | None = None,
    sigma_end: float | None = None,
) -> np.ndarray:
    """Returns the grid from start to end, both of them points of it; [M+1] float64.

    The grid's own points between the two are kept.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        start: first time, by default grid[0].
        end: last time, by default grid[-1].
        sigma_start: the first time given as sigma/alpha.
        sigma_end: the last time given as sigma/alpha; 0 is the clean end.

    Raises:
        ValueError: an end given both ways; start or end outside the grid or out of order; a grid
            that `check_grid` refuses.
    """
    grid = check_grid(schedule, grid)
    first = _end("part", schedule, "start", start, sigma_start, grid[0])
    last = _end("part", schedule, "end", end, sigma_end, grid[-1])
    low, high = min(grid[0], grid[-1]), max(grid[0], grid[-1])
    slack = 1e-9 * (high - low)
    for option, value in (("start", first), ("end", last)):
        if not low - slack <= value <= high + slack:
            raise ValueError(
                f"part: {option} = {value}, but the grid runs from {grid[0]} to {grid[-1]}"
            )
    first, last = np.clip([first, last], low, high)
    way = np.sign(grid[-1] - grid[0])
    if (last - first) * way <= slack:
        raise ValueError(f"part: start = {first}, but it must come before end = {last}")
    between = ((grid - first) * way > slack) & ((last - grid) * way > slack)
    return check_grid(schedule, np.concatenate([[first], grid[between], [last]]))


def part_by_strength(schedule: Schedule, grid: ArrayLike, strength: float) -> np.ndarray:
    """Returns the last floor(N strength) steps of a grid of N; [floor(N strength) + 1] float64.

    The img2img of diffusers: noise the image to the first time returned and go on from there.
    Its flow pipelines (Flux, Stable Diffusion 3) drop floor(N - N strength) steps instead, which
    can be one step more of work: grid[int(N - N * strength):]. Fewer steps are made than the grid
    has; `part_by_denoise` keeps their number.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        strength: share of the grid to run, in (0, 1].

    Raises:
        ValueError: strength outside (0, 1], or so small that no step is left; a grid that
            `check_grid` refuses.
    """
    grid = check_grid(schedule, grid)
    check_share("part_by_strength", "strength", strength)
    steps = len(grid) - 1
    keep = int(steps * strength)
    if keep == 0:
        raise ValueError(
            f"part_by_strength: strength = {strength}, but of {steps} steps that leaves none"
        )
    return grid[steps - keep :]


def part_by_denoise(make: Callable[[int], np.ndarray], steps: int, denoise: float) -> np.ndarray:
    """Returns the last steps steps of a grid of floor(steps / denoise); [steps+1] float64.

    The img2img of ComfyUI: the number of steps is what was asked for, and they are as small as
    those of the longer grid.

    Args:
        make: steps -> grid, as partial(karras, schedule).
        steps: number of grid intervals.
        denoise: share of the longer grid to run, in (0, 1].

    Raises:
        ValueError: steps < 1; denoise outside (0, 1]; what make raises.
    """
    steps = check_steps("part_by_denoise", steps)
    check_share("part_by_denoise", "denoise", denoise)
    return make(int(steps / denoise))[-(steps + 1) :]


def _end(name, schedule, option, time, level, default):
    if time is not None and level is not None:
        raise ValueError(
            f"{name}: {option} = {time}, but sigma_{option} = {level} is given as well"
        )
    if level is None:
        return default if time is None else float(time)
    if not level >= 0:
        raise ValueError(f"{name}: sigma_{option} = {level}, but it must be 0 or more")
    with np.errstate(divide="ignore"):
        lam = -np.log(np.float64(level))
    least = float(schedule.lam(schedule.t_start))
    if not lam >= least - 1e-9:
        raise ValueError(
            f"{name}: sigma_{option} = {level}, but sigma/alpha of the schedule starts at "
            f"{np.exp(-least):.6g}"
        )
    return float(schedule.time(max(lam, least)))
