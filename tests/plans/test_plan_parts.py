"""Plans unrolled, changed, with spans and as text, and what the levels of checks let through."""

import dataclasses

import numpy as np
import pytest
from numpy_executor import run
from plan_tables import changed, weighed
from test_plan import BUILDERS, heun_with_error
from unrolled_runs import check_unrolled

from diffast import grids, schedules, solvers
from diffast.plans import Plan, Stages, unroll
from diffast.plans.registers import levels_of


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_unroll_is_the_run(build):
    schedule = schedules.vp_linear()
    check_unrolled(build(schedule, grids.uniform_time(schedule, 6)))


def test_error_rows_are_the_gap_between_the_solutions():
    schedule = schedules.edm(sigma_max=10.0)
    grid = grids.karras(schedule, 5, to_zero=False)
    plan = heun_with_error(schedule, grid)
    check_unrolled(plan)
    rows = unroll(plan)
    np.testing.assert_allclose(rows["x"][1::2] - rows["x"][0::2], rows["error"][1::2], atol=1e-13)
    assert not rows["error"][0::2].any()
    at = plan.levels[:, plan.rows.index("error")]
    assert (at == 0).all()
    x = np.array([3.0, -8.0])
    points = run(plan, lambda x, t: np.tanh(x / (1 + t)), x)
    same = run(solvers.heun(schedule, grid), lambda x, t: np.tanh(x / (1 + t)), x)
    np.testing.assert_allclose(points, same, rtol=1e-12)


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        ({"d": 0.5}, "error holds x0 with weight 0.5, but it must be alpha = 0.0"),
        ({"h0": 0.5}, "error holds x0 with weight 0.5, but it must be alpha = 0.0"),
        ({"x": 1.0, "d": -1.0}, "error holds noise of level 8.0, but it must be sigma = 0.0"),
        ({"z1": 0.1}, "error holds noise of level 0.1, but it must be sigma = 0.0"),
        ({"z1": 0.0}, None),
        ({"d": 0.5, "h0": -0.5}, None),
    ],
)
def test_errors_hold_nothing_of_a_known_x0(error, facts):
    stages = Stages(schedules.edm(), 8.0)
    stages.add(8.0, 4.0, {"x": 0.5, "d": 0.5}, h={"d": 1.0}, error=error)
    if facts is None:
        assert stages.plan("errs", 1).rows == ("h", "x", "error")
        return
    with pytest.raises(ValueError, match=f"stage 0: {facts}"):
        stages.plan("errs", 1)


# --- any registers, checks ------------------------------------------------------------------------


def anything(check="finite", **changes):
    """A plan whose numbers mean nothing: 1 stage without a call, 3 calls, 2 remembered entries."""
    random = np.random.default_rng(6)
    columns = ("y", "x", "h0", "h1", "h2", "d", "d_raw", "z1")
    matrix = random.normal(size=(4, 3, len(columns)))
    matrix[0], matrix[:, 0, :1], matrix[:, 0, 2] = 0.0, 0.0, 0.0
    matrix[0, 1:, [1, 7]] = [[0.7], [2.0]]
    matrix[1, :, 3:5] = matrix[2, :, 4] = 0.0
    fields = {
        "schedule": schedules.edm(),
        "times": [np.nan, 9.0, 4.0, 1.0],
        "end": 0.5,
        "rows": ("h", "y", "x"),
        "columns": columns,
        "matrix": matrix,
        "levels": np.ones((4, 3, 2)),
        "start": 12.0,
        "check": check,
    }
    return Plan(**(fields | changes))


def test_unroll_of_every_kind_of_weight_is_the_run():
    plan = anything()
    check_unrolled(plan)
    x, z = np.random.default_rng(2).normal(size=(2, 5))
    points = run(plan, lambda x, t: np.tanh(x) + t, x, lambda i: z if i == -1 else 0 * z)
    np.testing.assert_allclose(points[0], 0.7 * x + 2.0 * z, rtol=1e-15)


def test_numbers_that_mean_nothing_are_refused_unless_checks_are_off():
    for check in ("x0", "full"):
        with pytest.raises(
            ValueError, match="Plan plan: (end: the last x has sigma|stage 0: y holds x0 with)"
        ):
            anything(check)


def test_the_levels_of_checks():
    schedule = schedules.edm()
    plan = solvers.ddim(schedule, grids.karras(schedule, 3), eta=0.5)
    louder = {("x", "z1"): plan.weights("x", "z1") * [1.0, 1.5, 1.0]}
    with pytest.raises(ValueError, match="stage 1: x holds noise of level"):
        plan.with_weights(louder)
    assert plan.with_weights(louder, check="x0").check == "x0"
    for check in ("full", "x0"):
        with pytest.raises(ValueError, match="stage 1: x holds x0 with weight"):
            weighed(plan.with_weights({}, check=check), "x", "d", 1, 0.5)
        with pytest.raises(ValueError, match="end: the last x has alpha = 0.5, but at t = 0.0"):
            changed(plan.with_weights({}, check=check), "levels", (2, 0, 0), 0.5)
    ends = changed(plan.with_weights({}, check="x0"), "levels", (2, 0, 1), 0.5)
    with pytest.raises(ValueError, match="end: the last x has sigma = 0.5, but at t = 0.0"):
        dataclasses.replace(ends, check="full")
    weighed(plan.with_weights({}, check="finite"), "x", "d", 1, 0.5)
    for check in ("full", "x0", "finite"):
        with pytest.raises(ValueError, match="nan"):
            weighed(plan.with_weights({}, check=check), "x", "d", 1, np.nan)
        with pytest.raises(ValueError, match="x has weight 1.0 on h2, but 0 exist before it"):
            plan.with_weights({("x", "h2"): np.ones(3)}, check=check)


def opened(keep, fresh, start=8.0, at=10.0, check="full"):
    """Euler from `at` behind a stage that calls nothing: keep x + fresh z."""
    stages = Stages(schedules.edm(), start)
    stages.add(None, at, {"x": keep, "z1": fresh})
    stages.add(at, 2.0, {"x": 2.0 / at, "d": 1.0 - 2.0 / at})
    return stages.plan("opened", 1, check=check)


def test_noise_before_the_first_call_is_checked_as_any_other():
    assert opened(1.0, 6.0).nfe == 1
    with pytest.raises(ValueError, match="stage 0: x holds noise of level 9.4.* sigma = 10.0"):
        opened(1.0, 5.0)
    opened(1.0, 5.0, check="x0")
    for check in ("full", "x0"):
        with pytest.raises(ValueError, match="stage 0: x holds x0 with weight 0.5"):
            opened(0.5, 6.0, check=check)
    opened(0.5, 6.0, check="finite")


@pytest.mark.parametrize("weight", [1e-6, -1e-6, 1e-4])
def test_noise_is_none_or_seen(weight):
    with pytest.raises(ValueError, match="stage 0: x holds fresh noise of weight"):
        opened(1.0, weight, start=80.0, at=80.0)
    stages = Stages(schedules.edm(), 1.0)
    stages.add(1.0, 0.5, {"x": 0.5, "h0": 0.5}, h={"d": 1.0, "z1": 0.01 * weight})
    with pytest.raises(ValueError, match="stage 0: h holds fresh noise of weight"):
        stages.plan("entry", 1)


# --- other weights --------------------------------------------------------------------------------


def test_with_weights_sets_some_and_keeps_the_rest():
    plan = solvers.heun(schedules.edm(), [8.0, 2.0, 1.0])
    halves = 0.5 * plan.weights("x", "d")
    other = plan.with_weights({("x", "d"): halves, ("x", "d_raw"): halves}, name="halves", steps=1)
    assert (other.name, other.steps, other.rows) == ("halves", 1, plan.rows)
    assert other.columns == ("y", "x", "h1", "d", "d_raw")
    for row in plan.rows:
        for column in plan.columns:
            kept = plan.weights(row, column) if (row, column) != ("x", "d") else halves
            np.testing.assert_array_equal(other.weights(row, column), kept)
    assert other.weights("x", "d_raw").tolist() == halves.tolist()
    assert not other.weights("y", "d_raw").any()
    assert other.levels.tobytes() == plan.levels.tobytes()
    same = plan.with_weights({("x", "d"): plan.weights("x", "d")})
    assert same.matrix.tobytes() == plan.matrix.tobytes()
    with pytest.raises(ValueError, match="stage 0: x holds x0 with weight"):
        plan.with_weights({("x", "d"): halves})
    with pytest.raises(ValueError, match="heun: no row error, but h, y, x"):
        plan.with_weights({("error", "d"): halves})


def test_weights_of_what_is_not_there_are_zero():
    plan = solvers.euler(schedules.edm(), [8.0, 2.0, 1.0])
    for row, column in (("x", "z2"), ("v", "x"), ("error", "d")):
        assert plan.weights(row, column).tolist() == [0.0, 0.0]
    assert plan.weights("x", "d").tolist() == [0.75, 0.5]


# --- annotations ----------------------------------------------------------------------------------


def test_spans_go_from_the_state_before_to_x_after():
    schedule = schedules.edm()
    grid = grids.karras(schedule, 3)
    plan = solvers.euler(schedule, grid)
    assert plan.spans.tolist() == np.stack([grid[:-1], grid[1:]], axis=1).tolist()
    heun = solvers.heun(schedule, grid)
    ends = [(grid[0], grid[1])] * 2 + [(grid[1], grid[2])] * 2 + [(grid[2], grid[3])]
    assert heun.spans.tolist() == np.array(ends).tolist()
    given = [[3.0, 2.0], [np.nan, np.nan], [1.0, 0.0]]
    mixed = dataclasses.replace(plan, spans=given).spans.tolist()
    assert mixed == [[3.0, 2.0], [grid[1], grid[2]], [1.0, 0.0]]
    late = opened(1.0, 6.0)
    assert late.spans.tolist() == [[8.0, 10.0], [10.0, 2.0]]
    plain = dataclasses.replace(plan, spans=None)
    assert plain.spans.tolist() == plan.spans.tolist()


@pytest.mark.parametrize("name", sorted(solvers.SOLVERS))
def test_spans_that_nobody_gave_fit_the_levels(name):
    """Ends stand where x does; beginnings where y does if it is a state that noise is added to."""
    schedule = schedules.vp_linear()
    grid = grids.ou_early(schedule, 6) if name.startswith("piadm") else grids.karras(schedule, 6)
    options = {"churn": {"s_churn": 1.0}, "restart": {"intervals": [(0.2, 2.0, 2, 3)]}}
    plan = solvers.get(name)(schedule, grid, **options.get(name, {}))
    found = levels_of(schedule, dataclasses.replace(plan, spans=None).spans)
    at = {name: plan.levels[:, plan.rows.index(name)] for name in plan.rows}
    np.testing.assert_allclose(found[:, 1], at["x"], rtol=1e-12)
    start = levels_of(schedule, plan.start)
    before = np.concatenate([start[None], at["y" if "y" in at else "x"][:-1]])
    state = ~(before == (1.0, 0.0)).all(axis=1)  # PEC's y is an x0 estimate
    if name == "unipc":  # its y stands at the call before, which no noise of it begins at
        assert not plan.stochastic
        return
    np.testing.assert_allclose(found[state, 0], before[state], rtol=1e-12)
    assert state.all() == (name != "pec")


def test_a_step_starts_where_y_is_x():
    schedule = schedules.edm()
    grid = [8.0, 4.0, 2.0, 1.0]
    for plan, starts in (
        (solvers.euler(schedule, grid), [0, 1, 2]),
        (solvers.heun(schedule, grid), [0, 2, 4]),
        (solvers.rk4(schedule, grid), [0, 4, 8]),
        (solvers.unipc(schedule, grid), [0]),
        (solvers.churn(schedule, grid, s_churn=0.6), [0, 2, 4]),
        (solvers.churn(schedule, grid, s_churn=0.6, base="euler"), [0, 1, 2]),
    ):
        assert plan.step_starts().tolist() == starts, plan


# --- what people see ------------------------------------------------------------------------------


def test_text_names_what_is_weighed():
    schedule = schedules.edm()
    text = str(solvers.dpmpp_2m(schedule, [8.0, 2.0, 1.0, 0.5]))
    first, *lines = text.split("\n")
    assert first.startswith("Plan(dpmpp_2m")
    assert "3 steps, 3 calls, history 1, deterministic, t 8 -> 0.5" in first
    assert lines == [
        "     0  t = 8           x = +0.25 x +0.75 d",
        "     1  t = 2           x = +0.5 x -0.125 h1 +0.625 d",
        "     2  t = 1           x = +0.5 x -0.25 h1 +0.75 d",
    ]


def test_text_of_every_kind_of_row():
    schedule = schedules.edm()
    lines = str(solvers.heun(schedule, [4.0, 2.0, 0.0])).split("\n")[1:]
    assert lines == [
        "     0  t = 4           x = +0.5 y +0.5 d",
        "     1  t = 2           x = y = +0.5 y +0.5 d",
        "     2  t = 2           x = y = +1 d",
    ]
    lines = str(opened(1.0, 6.0)).split("\n")
    assert lines[0].endswith("stochastic, t 8 -> 2, SigmaSpace(sigma_min=0.002, sigma_max=80.0))")
    assert lines[1:] == [
        "     0  no call         x = +1 x +6 z1",
        "     1  t = 10          x = +0.2 x +0.8 d",
    ]
    text = str(anything())
    for part in ("h0 = ", "y = ", "x = ", " x ", " d ", " d_raw", " h2", " h1", " z1"):
        assert part in text
    assert "x = y = 0\n" in str(anything(matrix=np.zeros((4, 3, 8))))
    text = str(heun_with_error(schedule, [4.0, 2.0, 1.0]))
    assert "h0 = +0.25 x -0.25 d\n" in text
    assert "error = -1 h0 +1 h1\n" in text
    stages = Stages(schedule, 4.0)
    stages.add(4.0, 2.0, {"x": 0.5, "d": 0.5}, v={"z2": 1.0})
    stages.add(2.0, 2.0, {"x": 1.0}, v="keep")
    stages.add(2.0, 2.0, {"x": 0.6, "v": 1.6, "d": 0.4})
    assert str(stages.plan("moving", 3)).split("\n")[1:] == [
        "     0  t = 4           v = +1 z2",
        "                        x = +0.5 x +0.5 d",
        "     1  t = 2           x = +1 x",
        "     2  t = 2           x = +1.6 v +0.6 x +0.4 d",
    ]


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
