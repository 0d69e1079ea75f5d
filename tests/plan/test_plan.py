"""Plan: what it refuses, down to every single number of every solver, and what unroll means."""

import dataclasses
import re
import time

import numpy as np
import pytest
from numpy_executor import run

from diffast import grids, schedules, solvers
from diffast.plan import Plan, unroll
from diffast.plan.checks import TOLERANCE_NOISE, TOLERANCE_X0
from diffast.plan.unroll import unroll_noise

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


def direct_euler(schedule, grid):
    """Euler whose weights on the estimate and the state are half of them direct ones."""
    plan = solvers.ddim(schedule, grid, eta=0.5)
    half, direct = np.array(plan.point), np.zeros((plan.stages, 2, 2))
    direct[:, :, 0], direct[:, :, 1] = 0.5 * half[:, :1], 0.5 * half[:, 2:3]
    half[:, [0, 2]] *= 0.5
    return dataclasses.replace(plan, point=half, anchor=half, direct=direct, name="direct")


def churned(schedule, grid):
    """Noise at the opening, where there is something above the start; and between steps."""
    grid = np.asarray(grid)
    if schedule.sigma(grid[-2]) and len(grid) > 3:
        grid = grid[1:]
    return solvers.churn(schedule, grid, s_churn=2.0)


BUILDERS = {
    "direct": direct_euler,
    "churn": churned,
    "euler": solvers.euler,
    "ddim_half": lambda s, g: solvers.ddim(s, g, eta=0.5),
    "ancestral": solvers.euler_ancestral,
    "heun": solvers.heun,
    "midpoint": solvers.dpmpp_2m,
    "res": lambda s, g: solvers.dpmpp_2m(s, g, kind="heun"),
}
FIELDS = ("times", "end", "start", "read", "point", "anchor", "error", "direct", "opening")


def every_number(plan):
    """(field, index) of every number of a plan that matters; index () for `end` and `start`.

    All do but these: an ancestral step out of alpha = 0 forgets the initial state, and 1e-6 of it
    coming back adds 1e-12 to the variance: rounding.
    """
    forgets = plan.point[0, 0] == 0.0 and plan.stages > 1
    beside = [(field, (0, 0)) for field in ("read", "point", "anchor")] if forgets else ()
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
    monkeypatch.setattr("diffast.plan.checks.TOLERANCE_X0", TOLERANCE_X0 / 100)
    monkeypatch.setattr("diffast.plan.checks.TOLERANCE_NOISE", TOLERANCE_NOISE / 100)
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
        ("anchor_at", lambda a: a + 1, "stage 2: anchor_at = 4, but -2 to 3"),
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

    opening = random.normal(size=4)
    points = run(plan, denoise, x, lambda i: z[i] if i >= 0 else opening)
    np.testing.assert_array_equal(points[0], plan.opening @ np.stack([x, opening]))
    rows = unroll(plan)
    everything = np.concatenate([points[:1], seen, z])
    np.testing.assert_allclose(rows.point @ everything, points[1:], rtol=1e-13, atol=1e-14)
    stages = plan.stages
    assert rows.point.shape == rows.anchor.shape == (stages, 1 + 2 * stages)
    assert rows.error is None
    # the noise check's rows: the same columns, of noise only if there is any
    noise = unroll_noise(plan)
    fresh = range(1 + stages, 1 + 2 * stages) if plan.point[:, 1].any() else ()
    for field in ("point", "anchor"):
        wanted = getattr(rows, field)[:, [0, *fresh]]
        np.testing.assert_allclose(getattr(noise, field), wanted, rtol=1e-13, atol=1e-16)
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


# --- direct weights, openings, spans, checks ------------------------------------------------------


def anything(check="finite", **changes):
    """A plan whose numbers mean nothing, of 3 stages and 2 remembered entries."""
    random = np.random.default_rng(6)
    point, anchor = (np.tril(random.normal(size=(3, 4)), 2) for _ in range(2))
    fields = {
        "schedule": schedules.edm(),
        "times": [9.0, 4.0, 1.0],
        "end": 0.5,
        "read": random.normal(size=(3, 2)),
        "point": point,
        "anchor": anchor,
        "anchor_at": [0, 2, 3],
        "direct": random.normal(size=(3, 2, 2)),
        "opening": (0.7, 2.0),
        "start": 12.0,
        "check": check,
    }
    return Plan(**(fields | changes))


def test_unroll_with_direct_weights_is_the_run():
    plan = anything()
    random = np.random.default_rng(2)
    x, z, seen = random.normal(size=5), random.normal(size=(4, 5)), []

    def denoise(x, t):
        seen.append(np.tanh(x) + t)
        return seen[-1]

    points = run(plan, denoise, x, lambda i: z[i])  # z[-1]: the opening's
    np.testing.assert_allclose(points[0], 0.7 * x + 2.0 * z[-1], rtol=1e-15)
    rows = unroll(plan)
    everything = np.concatenate([points[:1], seen, z[:3]])
    np.testing.assert_allclose(rows.point @ everything, points[1:], rtol=1e-12, atol=1e-12)
    # the anchor's rows: what a last point would be that is the anchor itself
    moved = dataclasses.replace(
        plan,
        point=np.concatenate([plan.point[:2], plan.anchor[2:]]),
        direct=np.concatenate([plan.direct[:2], plan.direct[2:, ::-1]]),
    )
    seen.clear()
    last = run(moved, denoise, x, lambda i: z[i])[-1]
    everything = np.concatenate([points[:1], seen, z[:3]])
    np.testing.assert_allclose(rows.anchor[2] @ everything, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"direct": np.ones((3, 2))}, r"direct has shape \[3, 2\], but it must be \[3, 2, 2\]"),
        ({"direct": np.ones((2, 2, 2))}, r"direct has shape \[2, 2, 2\]"),
        ({"opening": (1.0,)}, r"opening has shape \[1\], but it must be \[2\]"),
        ({"spans": np.ones((3,))}, r"spans has shape \[3\], but it must be \[3, 2\]"),
        ({"opening": (1.0, np.nan)}, r"opening\[1\] = nan"),
        ({"direct": np.full((3, 2, 2), np.inf)}, r"stage 0: direct\[0, 0\] = inf"),
        ({"spans": [[1, 2], [3, np.nan], [5, 6]]}, r"stage 1: spans\[1\] = nan"),
        ({"start": np.nan}, "start: t = nan"),
        ({"start": -1.0}, "start: t = -1.0, but the schedule holds for 0.0 to inf"),
        ({"check": "some"}, "check = 'some', but it must be one of full, x0, finite"),
        ({"check": None}, "check = None, but it must be one of full, x0, finite"),
        ({"check": "x0"}, "stage 0: point holds x0 with weight"),
        ({"check": "full"}, "stage 0: point holds x0 with weight"),
    ],
)
def test_new_fields_are_checked_too(changes, facts):
    with pytest.raises(ValueError, match=facts):
        anything(**changes)


def test_the_levels_of_checks():
    schedule = schedules.edm()
    plan = solvers.ddim(schedule, grids.karras(schedule, 3), eta=0.5)
    louder = np.array(plan.point)
    louder[1, 1] *= 1.5
    noisier = {"point": louder, "anchor": louder}
    with pytest.raises(ValueError, match="stage 1: point holds noise of level"):
        dataclasses.replace(plan, **noisier)
    assert dataclasses.replace(plan, **noisier, check="x0").check == "x0"
    drawn = np.array(plan.opening) + [0.0, 1.0]
    with pytest.raises(ValueError, match="opening holds noise of level"):
        dataclasses.replace(plan, opening=drawn)
    dataclasses.replace(plan, opening=drawn, check="x0")
    biased = np.array(plan.point)
    biased[1, 2] *= 1.5
    brighter = {"point": biased, "anchor": biased}
    for check in ("full", "x0"):
        with pytest.raises(ValueError, match="stage 1: point holds x0 with weight"):
            dataclasses.replace(plan, **brighter, check=check)
        with pytest.raises(ValueError, match="opening holds x0 with weight 0.5"):
            dataclasses.replace(plan, opening=(0.5, 0.0), check=check)
    dataclasses.replace(plan, **brighter, check="finite")
    dataclasses.replace(plan, opening=(0.5, 0.0), check="finite")
    for check in ("full", "x0", "finite"):
        with pytest.raises(ValueError, match="nan"):
            dataclasses.replace(plan, point=poisoned(plan.point, (1, 2), np.nan), check=check)
        with pytest.raises(ValueError, match="history entry"):
            early = np.pad(plan.point, ((0, 0), (0, 1)), constant_values=1.0)
            dataclasses.replace(plan, point=early, anchor=early, check=check)


@pytest.mark.parametrize("weight", [1e-6, -1e-6, 1e-4])
def test_an_openings_noise_is_none_or_seen(weight):
    schedule = schedules.edm()
    plan = solvers.euler(schedule, grids.karras(schedule, 3))
    with pytest.raises(ValueError, match="opening holds fresh noise of weight"):
        dataclasses.replace(plan, opening=(1.0, weight))


def test_defaults_of_the_new_fields():
    schedule = schedules.edm()
    grid = grids.karras(schedule, 3)
    plan = solvers.euler(schedule, grid)
    assert (plan.direct, plan.check, plan.start) == (None, "full", grid[0])
    assert plan.opening.tolist() == [1.0, 0.0]
    assert dataclasses.replace(plan, direct=np.zeros((3, 2, 2))).direct is None
    for array in (plan.opening, plan.spans, anything().direct):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    # spans: from the anchor before the stage to the new point
    assert plan.spans.tolist() == np.stack([grid[:-1], grid[1:]], axis=1).tolist()
    heun = solvers.heun(schedule, grid)
    ends = [(grid[0], grid[1])] * 2 + [(grid[1], grid[2])] * 2 + [(grid[2], grid[3])]
    assert heun.spans.tolist() == np.array(ends).tolist()
    given = [[3.0, 2.0], [2.0, 1.0], [1.0, 0.0]]
    assert dataclasses.replace(plan, spans=given).spans.tolist() == given


def test_calls_and_noise_are_counted():
    schedule = schedules.edm()
    grid = grids.karras(schedule, 5)
    assert solvers.heun(schedule, grid).nfe == solvers.heun(schedule, grid).stages == 9
    assert not solvers.euler(schedule, grid[:2]).stochastic
    once = solvers.churn(schedule, [5.0, 1.0], s_churn=0.1, base="euler")
    assert once.opening[1] > 0
    assert not once.point[:, 1].any()
    assert once.stochastic


# --- what people see ------------------------------------------------------------------------------


def test_text_names_what_is_weighed():
    schedule = schedules.edm()
    text = str(solvers.dpmpp_2m(schedule, [8.0, 2.0, 1.0, 0.5]))
    first, *lines = text.split("\n")
    assert first.startswith("Plan(dpmpp_2m")
    assert "3 steps, 3 calls, history 2, deterministic, t 8 -> 0.5" in first
    assert lines == [
        "     0  t = 8           x = anchor = +0.25 anchor +0.75 d[0]",
        "     1  t = 2           x = anchor = +0.5 anchor +0.625 d[1] -0.125 d[0]",
        "     2  t = 1           x = anchor = +0.5 anchor +0.75 d[2] -0.25 d[1]",
    ]


def test_text_of_anchors_that_part_and_slopes_and_openings():
    schedule = schedules.edm()
    lines = str(solvers.heun(schedule, [4.0, 2.0, 0.0])).split("\n")[1:]
    assert lines[0] == "     0  t = 4           x = +0.5 anchor +0.5 d[0]"
    assert lines[1] == "                        anchor = +1 anchor"
    assert lines[2].startswith("     1  t = 2           x = anchor = +0.5 anchor ")
    assert lines[3] == "     2  t = 2           x = anchor = +1 d[2]"
    text = str(anything(opening=(1.0, 3.0)))
    assert "  opening      x = +1 x +3 z\n" in text
    assert "stochastic, t 12 -> 0.5" in text
    for part in ("h[0] = ", " input", " d[0]", " raw d[1]", "h[2]", "h[1]", " z "):
        assert part in text
    zeros = np.zeros((3, 4))
    assert "x = anchor = 0\n" in str(anything(point=zeros, anchor=zeros, direct=None))


def test_text_of_long_plans_is_cut_in_the_middle():
    schedule = schedules.edm()
    for steps, shown in ((15, 15), (16, 16), (17, 15), (1000, 15)):
        lines = str(solvers.euler(schedule, grids.karras(schedule, steps))).split("\n")[1:]
        stages = [int(line.split()[0]) for line in lines if not line.startswith("  ...")]
        assert len(stages) == shown
        assert stages[:12] == list(range(12))
        assert stages[-3:] == [steps - 3, steps - 2, steps - 1]
        cut = [line for line in lines if line.startswith("  ...")]
        assert cut == ([f"  ... {steps - 15} stages ..."] if shown < steps else [])
