"""Grids given as lists of numbers: model times or noise levels, and published tables of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids.checks import check_grid, check_positive, check_steps
from diffast.schedules import Schedule
from diffast.schedules.domain import check_inside

# A list of noise levels in float32 may pass the schedule's own start by its rounding.
ROUNDING = 1e-6

# Sabour et al. 2024, "Align your steps", table 3: sigma/alpha of the 10-step grids.
AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
DIGIT = 5e-4  # half a unit of the tables' last digit


def from_times(schedule: Schedule, times: ArrayLike, to_zero: bool = False) -> np.ndarray:
    """Returns the given model times as a grid; [N+1] float64.

    For `from_betas` these are training indices (diffusers' custom timesteps), for `flow` its t
    (what diffusers and ComfyUI call the sigmas of a flow model), for `edm` noise levels.

    Args:
        schedule: any schedule.
        times: model times from noisy to clean.
        to_zero: True: the clean end is appended. False: the list is the grid.

    Raises:
        ValueError: times that `check_grid` refuses.
    """
    times = _one_dimensional("from_times", "times", times)
    return check_grid(schedule, np.append(times, schedule.t_end) if to_zero else times)


def from_sigmas(schedule: Schedule, sigmas: ArrayLike, to_zero: bool = False) -> np.ndarray:
    """Returns the model times that have the given noise levels sigma/alpha; [N+1] float64.

    The sigmas of k-diffusion, and of diffusers' and ComfyUI's models with noise or v prediction.
    For `flow` sigma/alpha is t / (1 - t), inf at pure noise: a list of its t goes to `from_times`.
    A level above the schedule's first by less than 1e-6 of it (float32) is that first one.

    Args:
        schedule: any schedule.
        sigmas: levels sigma/alpha, falling; the last one may be 0, the clean end.
        to_zero: True: a 0 is appended. False: the list is the grid.

    Raises:
        ValueError: a level that is negative, not a number, or above the schedule's first; levels
            that do not fall.
    """
    sigmas = _one_dimensional("from_sigmas", "sigmas", sigmas)
    return levels_to_grid("from_sigmas", schedule, np.append(sigmas, 0.0) if to_zero else sigmas)


def vp(
    schedule: Schedule,
    steps: int,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    eps_s: float = 0.001,
    to_zero: bool = True,
) -> np.ndarray:
    """Returns the noise levels of a variance-preserving model in even times; [steps+1] float64.

    sigma/alpha = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t from 1 to eps_s in even steps
    (Karras et al. 2022, table 1; k-diffusion's get_sigmas_vp). On `vp_linear(beta_min, beta_min +
    beta_d)` those times themselves; on another schedule the times of the same levels, which must
    reach the first of them (152 with the defaults).

    Args:
        schedule: any schedule that starts at that level or above.
        steps: number of grid intervals.
        beta_d: rise of the rate beta(t) from t = 0 to 1.
        beta_min: rate at t = 0.
        eps_s: last time before the clean end, in (0, 1).
        to_zero: True: steps levels, then the clean end. False: steps + 1 levels, no more.

    Raises:
        ValueError: steps < 1; rates not positive; eps_s outside (0, 1); a schedule that starts at
            less noise.
    """
    steps = check_steps("vp", steps)
    check_positive("vp", beta_d=beta_d, beta_min=beta_min)
    check_inside("vp", "eps_s", eps_s)
    count = steps if to_zero else steps + 1
    t = 1.0 + np.arange(count) / max(count - 1, 1) * (eps_s - 1.0)
    levels = np.sqrt(np.expm1(t * (0.5 * beta_d * t + beta_min)))
    return levels_to_grid("vp", schedule, np.append(levels, 0.0) if to_zero else levels)


def ays(
    schedule: Schedule,
    steps: int,
    model: Literal["sd15", "sdxl", "svd", "deepfloyd"] = "sd15",
    to_zero: bool = True,
) -> np.ndarray:
    """Returns the Align Your Steps grid of a published model; [steps+1] float64.

    The table's 11 levels for 10 steps; for other counts the logarithm of the level is interpolated
    linearly over the steps, as the authors say to. With to_zero the last level gives its place to
    the clean end, as in diffusers' AysSchedules and ComfyUI's node; the paper's own table ends
    above 0, and stable-diffusion-webui appends the clean end to it.

    A level that differs from an end of the schedule by the rounding of the table is that end
    (14.615 on Stable Diffusion's schedule, which starts at 14.6146).

    Args:
        schedule: the schedule of the model: from_betas for "sd15" and "sdxl", edm(0.002, 700) for
            "svd".
        steps: number of grid intervals.
        model: "sd15", "sdxl", "svd" or "deepfloyd" (its first stage).
        to_zero: True: the last time is the clean end. False: it is the table's last level.

    Raises:
        ValueError: another model; steps < 1; a schedule that starts at less noise.
    """
    if model not in AYS:
        raise ValueError(f"ays: model = {model!r}, but it must be one of {', '.join(AYS)}")
    steps = check_steps("ays", steps)
    table = np.log(AYS[model])
    places = np.arange(steps + 1) * ((len(table) - 1) / steps)
    levels = np.exp(np.interp(places, np.arange(len(table)), table))
    for end in np.exp(-schedule.lam(np.array([schedule.t_start, schedule.t_min]))):
        levels[np.abs(levels - end) < DIGIT * (1.0 + 1e-9)] = end
    if to_zero:
        levels[-1] = 0.0
    return levels_to_grid("ays", schedule, levels)


def levels_to_grid(
    name: str, schedule: Schedule, levels: np.ndarray, forgive: float = ROUNDING
) -> np.ndarray:
    """Returns the grid of the noise levels sigma/alpha; see `from_sigmas`.

    Args:
        levels: [N+1] float64.
        forgive: relative excess over the schedule's first level that counts as that level.
    """
    if not (levels >= 0).all():
        i = int(np.argmin(levels >= 0))
        raise ValueError(f"{name}: sigmas[{i}] = {levels[i]}, but it must be 0 or more")
    falls = np.diff(levels) < 0
    if not falls.all():
        i = int(np.argmin(falls))
        raise ValueError(
            f"{name}: sigmas[{i}] = {levels[i]} is followed by sigmas[{i + 1}] = {levels[i + 1]}, "
            "but they must fall"
        )
    with np.errstate(divide="ignore"):
        lam = -np.log(levels)
    least = float(schedule.lam(schedule.t_start))
    beyond = lam < least - forgive
    if beyond.any():
        i = int(np.argmax(beyond))
        raise ValueError(
            f"{name}: sigmas[{i}] = {levels[i]:.6g}, but sigma/alpha of the schedule starts at "
            f"{np.exp(-least):.6g}"
        )
    first = lam <= least + 1e-9
    times = np.where(first, schedule.t_start, schedule.time(np.maximum(lam, least)))
    return check_grid(schedule, times)


def _one_dimensional(name, argument, numbers):
    numbers = np.asarray(numbers, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"{name}: {argument} has shape {list(numbers.shape)}, but it must be [N]")
    return numbers
