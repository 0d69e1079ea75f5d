"""Grids and runs that the tests of multistep solvers share."""

import numpy as np
import pytest
from numpy_executor import run
from test_published import wavy

from diffast import grids, schedules

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SD = schedules.from_betas(BETAS)
EDM = schedules.edm()
FLOW = schedules.flow()
NAMED = {
    "vp": (SD, grids.uniform_time(SD, 12, end=0)),
    "vp_clean": (SD, grids.trailing(SD, 12)),
    "edm": (EDM, grids.karras(EDM, 12, to_zero=False)),
    "edm_clean": (EDM, grids.karras(EDM, 12)),
    "flow": (FLOW, grids.uniform_time(FLOW, 12, end=0.05)),
}
each_grid = pytest.mark.parametrize(("schedule", "grid"), NAMED.values(), ids=NAMED)
open_grids = pytest.mark.parametrize(
    ("schedule", "grid"), [NAMED["vp"], NAMED["edm"]], ids=["vp", "edm"]
)


def states(plan, schedule, seed=0):
    """Every point of a run with a nonlinear x0 estimate."""
    x = np.random.default_rng(seed).normal(size=6) * schedule.sigma(plan.start)
    return run(plan, wavy(schedule), x)


def walked(step, schedule, grid, seed=0):
    """The same for a published loop: step(x, denoise, n, memory) -> x."""
    x = np.random.default_rng(seed).normal(size=6) * schedule.sigma(grid[0])
    points, memory, denoise = [x], {}, wavy(schedule)
    for n in range(len(grid) - 1):
        points.append(step(points[-1], denoise, n, memory))
    return np.stack(points)


def assert_same(got, want, tolerance=1e-12):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def levels(schedule, grid):
    return schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
