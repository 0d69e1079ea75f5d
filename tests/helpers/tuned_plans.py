"""Plans as tuning makes them, by hand: no standard solver has their weights, levels or times."""

from dataclasses import replace

import numpy as np

import diffast as df
from diffast.tuning.form import form_of


def tuned(schedule, calls=5, seed=0, **fields):
    """A multistep plan with full memory, levels off the schedule, told times off the levels."""
    rng = np.random.default_rng(seed)
    flow = schedule == df.schedules.flow()
    grid = df.grids.uniform_time if flow else df.grids.uniform_logsnr
    form = form_of(df.solvers.dpmpp_2m(schedule, grid(schedule, calls)))
    levels, told = form.levels.copy(), form.told.copy()
    levels[1:-1] *= 1.0 + 0.01 * rng.uniform(-1.0, 1.0, (calls - 1, 1))
    told *= 1.0 - 0.02 * rng.uniform(size=calls)
    if not flow:  # the least level has no room below it
        told[-1] = form.told[-1]
    weights = form.weights + np.tril(0.05 * rng.standard_normal((calls, calls)))
    found = replace(form, weights=weights, told=told, levels=levels, **fields)
    return found.plan("tuned")


def two_inputs(schedule):
    """Three stages; the second calls the network on x and x2 at once. Its x2 has another level."""
    grid = df.grids.uniform_logsnr(schedule, 3)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    other = float(schedule.time(schedule.lam(grid[1]) + 0.3))
    levels = np.full((3, 2, 2), np.nan)
    matrix = np.zeros((3, 2, 4))  # rows x2, x; columns x, x2, d, d2

    def step(i, level, share=0.0):
        keep = level[1] / sigma[i]
        gain = level[0] - keep * alpha[i]
        return [keep, 0.0, (1.0 - share) * gain, share * gain]

    def level_at(t):
        return np.array([float(schedule.alpha(t)), float(schedule.sigma(t))])

    for i in range(3):
        matrix[i, 1] = step(i, level_at(grid[i + 1]), 0.3 if i == 1 else 0.0)
        levels[i, 1] = level_at(grid[i + 1])
    matrix[0, 0], levels[0, 0] = step(0, level_at(other)), level_at(other)
    return df.Plan(
        schedule=schedule,
        times=[[grid[0], np.nan], [grid[1], other], [grid[2], np.nan]],
        start=float(grid[0]),
        end=float(grid[3]),
        rows=("x2", "x"),
        columns=("x", "x2", "d", "d2"),
        matrix=matrix,
        levels=levels,
        steps=3,
        name="two inputs",
    )
