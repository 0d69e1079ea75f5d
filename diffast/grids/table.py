"""Grids that count in a model's table of training noise levels, as ComfyUI does.

The table of `from_betas` is its indices. The table of another schedule has `timesteps` entries, the
cleanest first: the times (i + 1) / timesteps of the way from the clean end to the start (for `flow`
1/1000, 2/1000 ... 1). Where the time is a noise level without bound (`edm`, `ve`), the times are
even in the logarithm from t_min to t_start.

A shift of a flow model's noise is applied afterwards, with `shifted`. ComfyUI's tables are shifted
before. For grids that take entries of the table (`simple`, `ddim_uniform`, `beta`) the result is
the same. ComfyUI's `normal` and `sgm_uniform` shift the table's last entry a second time.
"""

from __future__ import annotations

import numpy as np

from diffast.grids.beta_quantile import beta_quantile
from diffast.grids.checks import check_grid, check_positive, check_steps, grid_function
from diffast.schedules import Schedule


@grid_function
def simple(schedule: Schedule, steps: int, timesteps: int = 1000) -> np.ndarray:
    """Returns the entries N-1 - floor(i N / steps) of the table, then the clean end; [steps+1].

    Args:
        steps: number of grid intervals, at most N, the size of the table.
    """
    count, steps = _counted("simple", schedule, steps, timesteps)
    index = count - 1 - np.floor(np.arange(steps) * (count / steps))
    return _grid(schedule, index, count)


@grid_function
def ddim_uniform(schedule: Schedule, steps: int, timesteps: int = 1000) -> np.ndarray:
    """Returns every k-th entry of the table from the second on, then the clean end; [M+1] float64.

    Entries 1, 1 + k, 1 + 2k ... below N, k = floor(N / steps). Where steps does not divide N these
    are more than steps (31 for 30 of 1,000): M is what there is, as in ComfyUI. `leading` with
    steps_offset = 1, diffusers' grid, keeps the first steps of them.

    Args:
        steps: number of grid intervals asked for, at most N, the size of the table.
    """
    count, steps = _counted("ddim_uniform", schedule, steps, timesteps)
    return _grid(schedule, np.arange(1.0, count, count // steps)[::-1], count)


@grid_function
def normal(schedule: Schedule, steps: int, timesteps: int = 1000) -> np.ndarray:
    """Returns times even from the table's last entry to its first, then the clean end; [steps+1].

    Places N-1 - i (N-1) / (steps-1), not rounded: `linspace` is the rounded one.
    """
    count, steps = _counted("normal", schedule, steps, timesteps, bounded=False)
    return _grid(schedule, (count - 1) * (1.0 - np.arange(steps) / max(steps - 1, 1)), count)


@grid_function
def sgm_uniform(schedule: Schedule, steps: int, timesteps: int = 1000) -> np.ndarray:
    """Returns the first steps of the steps + 1 entries of `normal`, then the clean end; [steps+1].

    Places N-1 - i (N-1) / steps, not rounded (Stability's generative-models).
    """
    count, steps = _counted("sgm_uniform", schedule, steps, timesteps, bounded=False)
    return _grid(schedule, (count - 1) * (1.0 - np.arange(steps) / steps), count)


@grid_function
def beta(
    schedule: Schedule, steps: int, alpha: float = 0.6, beta: float = 0.6, timesteps: int = 1000
) -> np.ndarray:
    """Returns table entries at even quantiles of a beta distribution, then the clean end; [M+1].

    Entries round((N-1) q(1 - i/steps)), halves up, i = 0..steps-1, q the quantile function of
    Beta(alpha, beta) (Lee et al. 2024, "Beta sampling is all you need"). Points that round to one
    entry count once, so a grid of very many steps has M < steps, as in ComfyUI. diffusers'
    use_beta_sigmas takes the quantiles in sigma: see `beta_sigmas`.

    Args:
        steps: number of grid intervals asked for, at most N, the size of the table.
    """
    check_positive("beta", alpha=alpha, beta=beta)
    count, steps = _counted("beta", schedule, steps, timesteps)
    places = (count - 1) * beta_quantile(1.0 - np.arange(steps) / steps, alpha, beta)
    index = np.floor(places + 0.5 + 1e-9)  # the middle one of an even table stands between two
    return _grid(schedule, np.unique(index)[::-1], count)


def _counted(name, schedule, steps, timesteps, bounded=True):
    """Returns the size of the table, and the number of steps."""
    own = getattr(schedule, "timesteps", None)
    if own is None and timesteps < 2:
        raise ValueError(f"{name}: timesteps = {timesteps}, but a table has 2 or more")
    count = timesteps if own is None else own
    return count, check_steps(name, steps, count if bounded else None)


def _grid(schedule, index, count):
    """Returns the grid of fractional table places, and the clean end."""
    start, end = schedule.t_start, schedule.t_end
    if hasattr(schedule, "timesteps"):
        times = index
    elif np.isinf(schedule.domain[1]):
        share = index / (count - 1)
        times = schedule.t_min * (start / schedule.t_min) ** share
        times[index == count - 1] = start
    else:
        times = end + (index + 1.0) / count * (start - end)
    return check_grid(schedule, np.append(times, end))
