"""Plan: what it refuses, down to every single number of every solver, and what unroll means."""

import dataclasses
import re

import numpy as np
import pytest
from plan_tables import changed

from diffast import grids, schedules, solvers
from diffast.plans import Plan, Stages, one_call_plan
from diffast.plans.checks import TOLERANCE_NOISE, TOLERANCE_X0
from diffast.plans.registers import levels_of

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
    """Heun with its distance to Euler as error row, and slopes (x - x0) / sigma as entries."""
    grid = np.asarray(grid)
    assert (schedule.alpha(grid) == 1).all()
    stages = Stages(schedule, grid[0])
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        half = 0.5 * (t - s)
        stages.add(s, t, {"y": 1.0, "h0": t - s}, y="keep", h={"x": 1 / s, "d": -1 / s})
        both = {"y": 1.0, "h0": half, "h1": half}
        error = {"h0": half, "h1": -half}
        stages.add(t, t, both, h={"x": 1 / t, "d": -1 / t}, error=error)
    return stages.plan("heun+error", len(grid) - 1)


def split_euler(schedule, grid):
    """DDIM whose weights are shared out: to y and x, which are equal, and to d and d_raw."""
    plan = solvers.ddim(schedule, grid, eta=0.5)
    keep, new = 0.5 * plan.weights("x", "x"), 0.5 * plan.weights("x", "d")
    row = {"y": keep, "x": keep, "d": new, "d_raw": new, "z1": plan.weights("x", "z1")}
    at = levels_of(schedule, grid[1:])
    return one_call_plan("split", schedule, np.asarray(grid), row, y=row, y_at=at)


def churned(schedule, grid):
    """Noise before the first call, where there is something above the start; and between steps."""
    grid = np.asarray(grid)
    if schedule.sigma(grid[-2]) and len(grid) > 3:
        grid = grid[1:]
    return solvers.churn(schedule, grid, s_churn=2.0)


BUILDERS = {
    "split": split_euler,
    "churn": churned,
    "euler": solvers.euler,
    "ddim_half": lambda s, g: solvers.ddim(s, g, eta=0.5),
    "ancestral": solvers.euler_ancestral,
    "heun": solvers.heun,
    "midpoint": solvers.dpmpp_2m,
    "res": lambda s, g: solvers.dpmpp_2m(s, g, kind="heun"),
}


def unread(plan):
    """Stages whose entry no row weighs: nothing depends on it."""
    made = np.flatnonzero(plan.matrix[:, plan.rows.index("h")].any(axis=1)).tolist()
    read = set()
    for i in range(plan.stages):
        used = {c for c, w in zip(plan.columns, plan.matrix[i].T, strict=True) if w.any()}
        before = [k for k in made if k < i]
        read |= {before[-int(c[1:])] for c in used if c[0] == "h" and c != "h0"}
        read |= {i} if "h0" in used else set()
    return set(range(plan.stages)) - read


def every_number(plan):
    """(field, index) of every number of a plan that matters; index () for `end` and `start`.

    All do but these: entries that nobody reads; and an ancestral step out of alpha = 0 forgets the
    initial state: 1e-6 of it coming back adds 1e-12 to the variance, which is rounding.
    """
    state = "y" if "y" in plan.rows else "x"
    forgets = plan.weights("x", state)[0] == 0.0 and plan.weights("x", "x")[0] == 0.0
    forgets = forgets and plan.stages > 1
    nobody = unread(plan) if "h" in plan.rows else set()
    yield from (("end", ()), *([] if forgets else [("start", ())]))
    for i, r, c in np.ndindex(plan.matrix.shape):
        if plan.rows[r] == "h" and i in nobody:
            continue
        if plan.rows[r] == "error" and not plan.matrix[i, r].any():
            continue
        if forgets and i == 0 and plan.columns[c] in ("x", "y"):
            continue
        yield "matrix", (i, r, c)
    for i, r, k in np.ndindex(plan.levels.shape):
        holds = plan.rows[r] == "x" or plan.matrix[i, r].any()
        if plan.rows[r] != "h" and holds:
            yield "levels", (i, r, k)


def off(plan, field, index, sign):
    """The plan with one number off by a relative 1e-6, or by 1e-6 where it is 0."""
    value = getattr(plan, field)[index] if index else getattr(plan, field)
    return changed(plan, field, index, value * (1 + sign * 1e-6) if value else sign * 1e-6)


def refused(plan, field, index, sign):
    with pytest.raises(ValueError, match=re.escape(plan.name)):
        off(plan, field, index, sign)
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
        numbers = list(every_number(plan))
        assert {plan.rows[index[1]] for field, index in numbers if index} == {*plan.rows}
        for field, index in numbers:
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
    monkeypatch.setattr("diffast.plans.checks.TOLERANCE_X0", TOLERANCE_X0 / 100)
    monkeypatch.setattr("diffast.plans.checks.TOLERANCE_NOISE", TOLERANCE_NOISE / 100)
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


def parts():
    """The fields of a plan with rows (h, x) and columns (x, h1, d)."""
    schedule = schedules.edm()
    plan = solvers.dpmpp_2m(schedule, grids.karras(schedule, 3))
    assert (plan.rows, plan.columns) == (("h", "x"), ("x", "h1", "d"))
    return {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}


def poisoned(array, index, value):
    array = np.array(array, dtype=float)
    array[index] = value
    return array


# Places in the matrix of `parts`.
H, X = 0, 1
AT_X, AT_H1, AT_D = range(3)


@pytest.mark.parametrize(
    ("field", "change", "facts"),
    [
        (
            "times",
            lambda a: a[:, None, None],
            r"times has shape \[3, 1, 1\], but it must be \[S\] or \[S, E\]",
        ),
        ("times", lambda a: a[:0], r"times has shape \[0\]"),
        ("matrix", lambda a: a[:2], r"matrix has shape \[2, 2, 3\], but it must be \[3, 2, 3\]"),
        ("matrix", lambda a: a[:, :, :2], r"matrix has shape \[3, 2, 2\], but it must be"),
        ("levels", lambda a: a[:, :1], r"levels has shape \[3, 1, 2\], but it must be \[3, 2, 2\]"),
        ("spans", lambda a: a[:, 0], r"spans has shape \[3\], but it must be \[3, 2\]"),
        ("blocks", lambda a: [[0, 1]], r"blocks has shape \[1, 2\], but it must be \[B\]"),
        ("blocks", lambda a: [0.0, 1.0], "blocks holds float64, but it must be int"),
        ("blocks", lambda a: [1, 2], r"blocks = \[1, 2\], but they must start with 0 and rise"),
        ("blocks", lambda a: [0, 0], r"blocks = \[0, 0\], but they must start with 0 and rise"),
        ("blocks", lambda a: np.zeros(0, int), r"blocks = \[\], but they must start with 0"),
        ("blocks", lambda a: [0, 3], "a block begins at call 3, but there are 3"),
        ("rows", lambda a: ("x", "h"), r"rows = \('x', 'h'\), but they must be x and others"),
        ("rows", lambda a: ("h", "y"), "rows = .* must be x and others"),
        ("rows", lambda a: ("h", "w"), "rows = .* must be x and others"),
        ("rows", lambda a: ("y", "x"), "y is a row alone, but it must be both"),
        ("columns", lambda a: ("x", "d", "h1"), "columns = .* but they must be in order"),
        ("columns", lambda a: ("x", "h1", "h1"), "columns = .* but they must be in order"),
        ("columns", lambda a: ("h1", "d", "z1"), "x is a row alone, but it must be both"),
        ("columns", lambda a: ("y", "x", "d"), "y is a column alone, but it must be both"),
        ("columns", lambda a: ("v", "x", "d"), "v is a column alone, but it must be both"),
        (
            "columns",
            lambda a: ("x", "h1", "z3"),
            "weighs 'z3', but the columns are y, v, x, x2 .., h0",
        ),
        ("columns", lambda a: ("x", "h1", "g0"), "weighs 'g0', but the columns are"),
        ("columns", lambda a: ("x", "h", "d"), "weighs 'h', but the columns are"),
        ("columns", lambda a: ("x", "d", "error"), "weighs 'error', but the columns are"),
        ("levels", lambda a: poisoned(a, (1, X), np.nan), "stage 1: alpha = nan, .* for x, but"),
        ("levels", lambda a: poisoned(a, (2, X, 1), np.inf), "stage 2: alpha = 1.0, sigma = inf"),
        ("levels", lambda a: poisoned(a, (0, X, 0), 0.5), "stage 0: x holds x0 with weight 1.0"),
        ("levels", lambda a: poisoned(a, (1, X, 1), 7.0), r"stage 1: x holds .* must be sigma = 7"),
        ("times", lambda a: poisoned(a, 1, np.inf), "stage 1: t = inf"),
        ("times", lambda a: poisoned(a, 1, -1.0), "stage 1: t = -1.0, but .* 0.0 to inf"),
        (
            "times",
            lambda a: np.full(3, np.nan),
            r"call the network on \[0\] of \['x'\], but one must call it",
        ),
        (
            "times",
            lambda a: poisoned(a, 1, np.nan),
            "3 steps, but 2 network calls",
        ),
        ("start", lambda a: np.nan, "start: t = nan"),
        ("start", lambda a: -1.0, "start: t = -1.0, but the schedule holds for 0.0 to inf"),
        ("start", lambda a: 70.0, "stage 0: x holds noise of level .*, but it must be sigma"),
        ("end", lambda a: np.inf, "end: t = inf"),
        ("end", lambda a: 1.0, "end: the last x has sigma = 0.0, but at t = 1.0 it is 1.0"),
        ("matrix", lambda a: poisoned(a, (2, H, AT_D), np.inf), "stage 2: weight of d in h = inf"),
        ("matrix", lambda a: poisoned(a, (0, X, AT_X), np.nan), "stage 0: weight of x in x = nan"),
        (
            "matrix",
            lambda a: poisoned(a, (0, X, AT_H1), 0.5),
            "stage 0: x has weight 0.5 on h1, but 0 exist before it",
        ),
        ("matrix", lambda a: poisoned(a, (1, X, AT_D), 0.5), "stage 1: x holds x0 with weight"),
        (
            "matrix",
            lambda a: poisoned(a, (0, H), 0.0),
            "stage 1: x has weight .* on h1, but 0 exist before it",
        ),
        ("spans", lambda a: np.full((3, 2), np.inf), r"stage 0: spans\[0\] = inf"),
        ("steps", lambda a: 4, "4 steps, but 3 network calls"),
        ("steps", lambda a: 0, "0 steps"),
        ("check", lambda a: "some", "check = 'some', but it must be one of full, x0, finite"),
        ("check", lambda a: None, "check = None, but it must be one of full, x0, finite"),
    ],
)
def test_refusals(field, change, facts):
    fields = parts()
    fields[field] = change(fields[field])
    with pytest.raises(ValueError, match=f"(?s)(Plan dpmpp_2m|^plan: a row).*{facts}"):
        Plan(**fields)


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        ({"x": {"x": 1.0, "h0": 1.0}}, "x has weight 1.0 on h0, but the stage makes no entry"),
        ({"h": {"h0": 1.0, "d": 1.0}}, "h has weight 1.0 on h0, but an entry is not made of"),
        ({"x": {"x": 1.0, "v": 2.0}}, "x has weight 2.0 on v, but it holds nothing"),
        ({"v": {"v": 1.0}}, "v has weight 1.0 on v, but it holds nothing"),
        ({"error": {"h1": 1.0}}, "error has weight 1.0 on h1, but 0 exist before it"),
    ],
)
def test_reading_what_nobody_wrote_is_refused(rows, facts):
    schedule = schedules.edm()
    stages = Stages(schedule, 8.0)
    rows = {"h": {} if facts.endswith("no entry") else {"d": 1.0}} | rows
    stages.add(8.0, 8.0, **({"x": {"x": 1.0}, "v": {"z1": 1.0} if "v" in facts else None} | rows))
    with pytest.raises(ValueError, match=f"stage 0: {re.escape(facts)}"):
        stages.plan("unwritten", 1, check="finite")


def test_a_register_that_was_left_empty_holds_nothing():
    schedule = schedules.edm()

    def plan(**second):
        stages = Stages(schedule, 8.0)
        stages.add(8.0, 4.0, {"y": 0.5, "d": 0.5}, v={"z1": 1.0})
        stages.add(4.0, 4.0, {"y": 1.0}, y="keep", **second)
        stages.add(4.0, 2.0, {"y": 0.5, "d": 0.5}, v={"v": 0.6, "z1": 0.8})
        return stages.plan("left", 2)

    assert plan(v="keep").weights("v", "v").tolist() == [0.0, 1.0, 0.6]
    with pytest.raises(ValueError, match="stage 2: v has weight 0.6 on v, but it holds nothing"):
        plan()


@pytest.mark.parametrize("column", ["d", "d_raw", "g1"])
def test_estimates_are_made_by_calls_alone(column):
    schedule = schedules.edm()
    stages = Stages(schedule, 8.0)
    stages.add(None, 8.0, {"x": 1.0, column: 0.5})
    stages.add(8.0, 4.0, {"x": 0.5, column: 0.5})
    reason = "evaluates no gradient" if column == "g1" else "calls no network"
    facts = f"stage 0: x has weight 0.5 on {column}, but the stage {reason}"
    with pytest.raises(ValueError, match=facts):
        stages.plan("silent", 1, check="finite")


def test_numbers_are_copied_and_frozen():
    fields = parts()
    fields["times"] = fields["times"].tolist()
    fields["matrix"] = np.array(fields["matrix"])
    fields["rows"], fields["columns"] = list(fields["rows"]), list(fields["columns"])
    plan = Plan(
        **fields,
    )
    fields["matrix"][:] = 7
    assert plan.weights("x", "h1")[0] == 0
    assert (plan.rows, plan.columns) == (("h", "x"), ("x", "h1", "d"))
    arrays = (plan.times, plan.matrix, plan.levels, plan.spans)
    assert {array.dtype for array in arrays} == {np.dtype(np.float64)}
    blocks = dataclasses.replace(plan, blocks=[0, 2]).blocks
    assert blocks.dtype == np.int64
    for array in (*arrays, blocks):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_properties_come_from_the_numbers():
    schedule = schedules.edm()
    grid = grids.karras(schedule, 8)
    heun, euler = solvers.heun(schedule, grid), solvers.euler(schedule, grid)
    assert (heun.stages, heun.nfe, heun.steps, heun.history) == (15, 15, 8, 1)
    assert (euler.stages, euler.nfe, euler.steps, euler.history) == (8, 8, 8, 0)
    assert not heun.stochastic
    assert not solvers.ddim(schedule, grid, eta=0.0).stochastic
    assert solvers.ddim(schedule, grid, eta=0.1).stochastic
    assert "heun: 8 steps, 15 calls, history 1, deterministic" in repr(heun)
    assert heun != solvers.heun(schedule, grid)
    assert len({heun, euler}) == 2


def test_stages_without_a_call_are_no_calls():
    schedule = schedules.edm()
    once = solvers.churn(schedule, [5.0, 1.0], s_churn=0.1, base="euler")
    assert (once.stages, once.nfe, once.steps) == (2, 1, 1)
    assert once.calls.tolist() == [1]
    assert np.isnan(once.times[0]) and once.call_times.tolist() == [once.times[1]]
    assert once.start == 5.0 < once.times[1]
    assert once.weights("x", "z1")[0] > 0 == once.weights("x", "z1")[1]
    assert once.stochastic
    assert "1 steps, 1 calls, history 0, stochastic, t 5 -> 1" in repr(once)
    with pytest.raises(ValueError, match="2 steps, but 1 network calls"):
        dataclasses.replace(once, steps=2)
    assert not solvers.euler(schedule, [5.0, 1.0]).stochastic


def test_the_second_normal_alone_makes_a_plan_stochastic():
    plan = solvers.ddim(schedules.edm(), [5.0, 1.0], eta=0.5)
    other = plan.with_weights({("x", "z1"): [0.0], ("x", "z2"): plan.weights("x", "z1")})
    assert other.columns == ("x", "d", "z1", "z2")
    assert other.stochastic
    assert not other.with_weights({("x", "z2"): [0.0]}, check="x0").stochastic
