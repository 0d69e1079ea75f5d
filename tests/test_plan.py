"""Plan: what it refuses, down to every single number of every solver, and what unroll means."""

import dataclasses
import re
import time

import numpy as np
import pytest
from numpy_executor import run

from diffast import grids, solvers
from diffast import schedule as schedules
from diffast.plan import Plan, unroll
from diffast.plan_checks import TOLERANCE_NOISE, TOLERANCE_X0

BETAS = np.linspace(0.0001, 0.02, 1000)
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(np.append(BETAS[:-1], 1.0)),
}


def heun_with_error(schedule, grid):
    """Heun with its distance to Euler as error row, and slopes (x - x0) / sigma as history."""
    grid = np.asarray(grid)
    s, t = grid[:-1], grid[1:]
    steps, stages = len(s), 2 * len(s)
    assert (schedule.alpha(grid) == 1).all()
    read, point, anchor, error = (np.zeros((stages, n)) for n in (2, 4, 4, 4))
    times = np.stack([s, t], axis=1).ravel()
    read[:] = np.stack([1 / times, -1 / times], axis=1)
    point[0::2] = np.stack([np.ones(steps), np.zeros(steps), t - s, np.zeros(steps)], axis=1)
    anchor[0::2, 0] = 1.0
    point[1::2, 0] = 1.0
    point[1::2, 2:] = 0.5 * (t - s)[:, None]
    anchor[1::2] = point[1::2]
    error[1::2, 2] = 0.5 * (t - s)
    error[1::2, 3] = -0.5 * (t - s)
    at = np.stack([np.arange(0, stages, 2), np.arange(2, stages + 1, 2)], axis=1).ravel()
    return Plan(schedule, times, grid[-1], read, point, anchor, at, error, steps, "heun+error")


BUILDERS = {
    "euler": solvers.euler,
    "ddim_half": lambda s, g: solvers.ddim(s, g, eta=0.5),
    "ancestral": solvers.euler_ancestral,
    "heun": solvers.heun,
    "midpoint": solvers.dpmpp_2m,
    "res": lambda s, g: solvers.dpmpp_2m(s, g, kind="heun"),
}
FIELDS = ("times", "end", "read", "point", "anchor", "error")


def every_number(plan):
    """(field, index) of every number of a plan that matters; index () for the scalar `end`.

    All do but these: an ancestral step out of alpha = 0 forgets the initial state, so nothing
    depends on where that stood, and 1e-6 of it coming back adds 1e-12 to the variance: rounding.
    """
    forgets = plan.point[0, 0] == 0.0 and plan.stages > 1
    beside = (
        [("times", (0,)), *((field, (0, 0)) for field in ("read", "point", "anchor"))]
        if forgets
        else ()
    )
    for field in FIELDS:
        if getattr(plan, field) is not None:
            for index in np.ndindex(np.shape(getattr(plan, field))):
                if (field, index) not in beside:
                    yield field, index


def changed(plan, field, index, sign):
    """The plan's field with one number off by a relative 1e-6, or by 1e-6 where it is 0."""
    array = np.array(getattr(plan, field))
    array[index] = array[index] * (1 + sign * 1e-6) if array[index] else sign * 1e-6
    return dataclasses.replace(plan, **{field: array if index else float(array)})


def refused(plan, field, index, sign):
    with pytest.raises(ValueError, match=re.escape(plan.name)):
        changed(plan, field, index, sign)
        pytest.fail(f"{plan}: {field}{list(index)} changed by {sign}e-6 went through")


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_every_wrong_number_is_refused(schedule, build):
    top = None if np.isfinite(schedule.lam(schedule.t_start)) else 100.0
    ways = (
        grids.uniform_time(schedule, 4),
        grids.karras(schedule, 5, sigma_max=top),
        grids.uniform_logsnr(schedule, 3, sigma_max=20.0, sigma_min=0.05, to_zero=False)
        if schedule.sigma(schedule.t_min) < 0.05 and schedule.lam(schedule.t_start) < -3
        else grids.karras(schedule, 3, sigma_max=9.0, to_zero=False),
    )
    for grid in ways:
        plan = build(schedule, grid)
        for field, index in every_number(plan):
            for sign in (1, -1):
                refused(plan, field, index, sign)


def test_every_wrong_number_is_refused_with_slopes_and_errors():
    schedule = schedules.edm()
    for low in (0.002, 0.5):
        grid = grids.karras(schedule, 6, sigma_min=low, to_zero=False)
        plan = heun_with_error(schedule, grid)
        for field, index in every_number(plan):
            for sign in (1, -1):
                refused(plan, field, index, sign)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_wrong_number_among_a_thousand_stages_is_refused(build):
    random = np.random.default_rng(0)
    for schedule in (schedules.edm(), schedules.vp_linear(), schedules.flow()):
        plan = build(schedule, grids.uniform_time(schedule, 500))
        numbers = list(every_number(plan))
        for k in random.choice(len(numbers), 12, replace=False):
            refused(plan, *numbers[k], 1)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_tolerance_has_a_hundredfold_margin(build, monkeypatch):
    monkeypatch.setattr("diffast.plan_checks.TOLERANCE_X0", TOLERANCE_X0 / 100)
    monkeypatch.setattr("diffast.plan_checks.TOLERANCE_NOISE", TOLERANCE_NOISE / 100)
    random = np.random.default_rng(1)
    for schedule in SCHEDULES.values():
        low, high = schedule.t_end, schedule.t_start
        build(schedule, grids.uniform_time(schedule, 1000))
        build(schedule, grids.karras(schedule, 1000, sigma_max=10.0))
        for steps in (1, 2, 7, 50):
            build(schedule, grids.uniform_time(schedule, steps))
            build(schedule, grids.karras(schedule, steps, sigma_max=10.0))
            build(schedule, grids.uniform_logsnr(schedule, steps, sigma_max=9.0, to_zero=False))
            inner = np.unique(random.random(steps - 1) ** random.choice([0.3, 1, 3]))[::-1]
            build(schedule, np.concatenate([[high], low + inner * (high - low), [low]]))


def euler_parts():
    schedule = schedules.edm()
    plan = solvers.dpmpp_2m(schedule, grids.karras(schedule, 3))
    return {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}


def poisoned(array, index, value):
    array = np.array(array, dtype=float)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("field", "change", "facts"),
    [
        ("times", lambda a: a[:, None], r"times has shape \[3, 1\], but it must be \[S\]"),
        ("times", lambda a: a[:0], r"times has shape \[0\]"),
        ("read", lambda a: a[:2], r"read has shape \[2, 2\], but it must be \[3, 2\]"),
        ("point", lambda a: a[:, :2], r"point has shape \[3, 2\], but it must be \[3, 2\+H\]"),
        ("anchor", lambda a: a[:, :3], r"anchor has shape \[3, 3\], but it must be \[3, 4\]"),
        ("error", lambda a: np.zeros((3, 3)), r"error has shape \[3, 3\]"),
        ("anchor_at", lambda a: a[:2], r"anchor_at has shape \[2\]"),
        ("anchor_at", lambda a: a + 0.5, "anchor_at holds float64"),
        ("anchor_at", lambda a: a + 1, "stage 2: anchor_at = 4, but 0 to 3"),
        ("anchor_at", lambda a: a - 1, "stage 0: anchor holds noise of level|x0 with weight"),
        ("times", lambda a: poisoned(a, 1, np.nan), "stage 1: t = nan"),
        ("times", lambda a: poisoned(a, 1, -1.0), "stage 1: t = -1.0, but .* 0.0 to inf"),
        ("end", lambda a: np.inf, "end: t = inf"),
        ("end", lambda a: 1.0, "stage 2: point holds noise of level 0.0.* sigma = 1.0"),
        ("read", lambda a: poisoned(a, (2, 1), np.inf), r"stage 2: read\[1\] = inf"),
        ("point", lambda a: poisoned(a, (0, 0), np.nan), r"stage 0: point\[0\] = nan"),
        ("point", lambda a: poisoned(a, (0, 3), 0.5), "weight 0.5 on history entry 1, but 1 exist"),
        ("point", lambda a: poisoned(a, (1, 2), 0.5), "stage 1: point holds x0 with weight"),
        ("anchor", lambda a: poisoned(a, (1, 1), 0.5), "stage 1: anchor holds noise of level"),
        ("point", lambda a: poisoned(a, (0, 1), 1e-6), "stage 0: point holds fresh noise"),
        ("error", lambda a: np.tile([0, 0, 1, 0], (3, 1)), "stage 0: error holds x0 with weight 1"),
        ("steps", lambda a: 4, "4 steps, but 3 network calls"),
        ("steps", lambda a: 0, "0 steps"),
    ],
)
def test_refusals(field, change, facts):
    parts = euler_parts()
    parts[field] = change(parts[field])
    with pytest.raises(ValueError, match=facts):
        Plan(**parts)


def test_numbers_are_copied_and_frozen():
    parts = euler_parts()
    parts["times"] = parts["times"].tolist()
    parts["point"] = np.array(parts["point"])
    plan = Plan(**parts)
    parts["point"][:] = 7
    assert plan.point[0, 1] == 0
    assert plan.times.dtype == plan.read.dtype == plan.point.dtype == np.float64
    assert plan.anchor_at.dtype == np.int64
    for array in (plan.times, plan.read, plan.point, plan.anchor, plan.anchor_at):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_properties_come_from_the_numbers():
    schedule = schedules.edm()
    grid = grids.karras(schedule, 8)
    heun, euler = solvers.heun(schedule, grid), solvers.euler(schedule, grid)
    assert (heun.stages, heun.steps, heun.history, heun.stochastic) == (15, 8, 2, False)
    assert (euler.stages, euler.history, euler.calls_per_step) == (8, 1, 1.0)
    assert not solvers.ddim(schedule, grid, eta=0.0).stochastic
    assert solvers.ddim(schedule, grid, eta=0.1).stochastic
    assert heun.calls_per_step == 15 / 8
    assert "heun: 8 steps, 15 calls, history 2, deterministic" in repr(heun)
    assert heun != solvers.heun(schedule, grid)
    assert len({heun, euler}) == 2


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_unroll_is_the_run(build):
    schedule = schedules.vp_linear()
    plan = build(schedule, grids.uniform_time(schedule, 6))
    random = np.random.default_rng(2)
    x, z = random.normal(size=4), random.normal(size=(plan.stages, 4))
    seen = []

    def denoise(x, t):
        seen.append(np.tanh(3 * x) + t)
        return seen[-1]

    points = run(plan, denoise, x, lambda i: z[i])
    rows = unroll(plan)
    everything = np.concatenate([[x], seen, z])
    np.testing.assert_allclose(rows.point @ everything, points[1:], rtol=1e-13, atol=1e-14)
    stages = plan.stages
    assert rows.point.shape == rows.anchor.shape == (stages, 1 + 2 * stages)
    assert rows.error is None
    for block in (rows.point[:, 1 : 1 + stages], rows.point[:, 1 + stages :]):
        assert (np.triu(block, 1) == 0).all()


def test_error_rows_are_the_gap_between_the_solutions():
    schedule = schedules.edm(sigma_max=10.0)
    grid = grids.karras(schedule, 5, to_zero=False)
    plan = heun_with_error(schedule, grid)
    rows = unroll(plan)
    np.testing.assert_allclose(rows.point[1::2] - rows.point[0::2], rows.error[1::2], atol=1e-13)
    x = np.array([3.0, -8.0])
    points = run(plan, lambda x, t: np.tanh(x / (1 + t)), x)
    same = run(solvers.heun(schedule, grid), lambda x, t: np.tanh(x / (1 + t)), x)
    np.testing.assert_allclose(points, same, rtol=1e-12)


def test_a_long_plan_is_made_quickly():
    schedule = schedules.edm()
    for steps, limit in ((20, 0.002), (1000, 0.2)):
        grid = grids.karras(schedule, steps)
        best = np.inf
        for _ in range(5):
            before = time.perf_counter()
            solvers.dpmpp_2m(schedule, grid)
            best = min(best, time.perf_counter() - before)
        assert best < limit
