"""Grids whose noise levels were found by optimisation and published as tables."""

from __future__ import annotations

from typing import Literal

import numpy as np

from diffast.grids.checks import check_steps
from diffast.grids.given import levels_to_grid
from diffast.schedules import Schedule

# Sabour et al. 2024, "Align your steps", table 3: sigma/alpha of the 10-step grids.
AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
DIGIT = 5e-4  # half a unit of the tables' last digit


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
