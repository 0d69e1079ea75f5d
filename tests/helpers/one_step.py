"""Schedules, grids and comparisons of the tests of one-step solvers."""

import numpy as np
import pytest
from numpy_executor import run

from diffast import grids, schedules

EDM, FLOW, VP = schedules.edm(), schedules.flow(), schedules.vp_linear()
INDEXED = schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
ZERO_SNR = schedules.from_betas(np.append(np.linspace(0.03, 0.14, 999) ** 2, 1.0))
SIGMA_GRIDS = {
    "to_zero": grids.karras(EDM, 12),
    "open": grids.karras(EDM, 12, to_zero=False),
    "even": grids.uniform_logsnr(EDM, 9, sigma_max=3.0, sigma_min=0.5, to_zero=False),
}
each_sigmas = pytest.mark.parametrize("sigmas", SIGMA_GRIDS.values(), ids=SIGMA_GRIDS)
OTHERS = {
    "vp": (VP, grids.uniform_logsnr(VP, 8)),
    "flow": (FLOW, grids.uniform_time(FLOW, 9)[1:]),
    "indexed": (INDEXED, grids.trailing(INDEXED, 9)),
}
each_other = pytest.mark.parametrize(("schedule", "grid"), OTHERS.values(), ids=OTHERS)


def wavy(schedule):
    """Some nonlinear x0 estimate; the formulas must agree for any."""
    return lambda x, t: np.sin(2 * x / (schedule.alpha(t) + schedule.sigma(t))) + 0.1


def start(schedule, grid):
    return np.random.default_rng(6).normal(size=5) * schedule.sigma(grid[0])


def agree(plan, step, schedule, grid, tolerance=1e-12):
    """Whether the plan's states at the grid points are those of step(x, s, t, denoise) -> x."""
    x, denoise = start(schedule, grid), wavy(schedule)
    got = run(plan, denoise, x)[1:]
    assert plan.nfe == plan.stages
    ends = np.append(plan.step_starts()[1:], plan.stages) - 1
    assert len(ends) == len(grid) - 1
    for i, end in enumerate(ends):
        # each step from the plan's own state: wide steps amplify rounding, in either
        before = x if i == 0 else got[ends[i - 1]]
        wanted = step(before, grid[i], grid[i + 1], denoise)
        scale = np.abs(wanted).max() * max(1.0, np.abs(plan.matrix[: end + 1]).max())
        assert np.abs(got[end] - wanted).max() <= tolerance * scale


def same(one, other, tolerance=1e-13):
    """Whether two plans are the same matrices; an entry that is d may be weighed under its name."""
    assert one.stages == other.stages
    np.testing.assert_allclose(one.times, other.times, rtol=tolerance)
    first, second = named(one), named(other)
    for name in first.keys() | second.keys():
        a, b = (found.get(name, np.zeros(one.stages)) for found in (first, second))
        scale = max(np.abs(w).max() for (row, _), w in first.items() if row == name[0])
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def named(plan):
    """The weights that are not all zero, by (row, column)."""
    found = {}
    entry = {c for c in plan.columns if plan.weights("h", c).any()}
    plain = entry <= {"d"} and (plan.weights("h", "d")[plan.calls] == 1.0).all()
    for row in plan.rows:
        for column in plan.columns:
            weight = plan.weights(row, column)
            if not weight.any() or (row == "h" and plain):
                continue
            key = row, "d" if column == "h0" and plain else column
            found[key] = found.get(key, 0.0) + weight
    return found
