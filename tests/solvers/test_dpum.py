"""DPOM and DPUM, and their grid: stages, blocks, formulas, order; any schedule."""

import numpy as np
import pytest
from gaussian_law import law, level
from numpy_executor import walk

import diffast as df
from diffast import solvers

TRIG, EDM, FLOW = df.schedules.trig(), df.schedules.edm(), df.schedules.flow()
SUB, VP = df.schedules.sub_vp(), df.schedules.vp_linear()
BOTH = {"dpom": solvers.dpom, "dpum": solvers.dpum}
each_method = pytest.mark.parametrize("name", BOTH)


def time_of(schedule, ou):
    """Model times of OU times u = log(1 + rho^2) / 2."""
    return schedule.time(-0.5 * np.log(np.expm1(2 * np.asarray(ou, dtype=float))))


def ou_of(schedule, t):
    return 0.5 * np.log1p((schedule.sigma(t) / schedule.alpha(t)) ** 2)


def stages_of(schedule, inner=1, lipschitz=None, start=3.0, end=1e-3, **options):
    ends = {"start": float(time_of(schedule, start)), "end": float(time_of(schedule, end))}
    return df.grids.ou_stages(schedule, inner, lipschitz=lipschitz, **ends, **options)


# --- the grid ---


def test_sixteen_stages_from_80_to_0002():
    grid = df.grids.ou_stages(EDM)
    assert len(grid) - 1 == 16
    ratio = grid[1:-1] / grid[2:]
    assert ratio[0] == pytest.approx(1 / np.exp(-1), rel=1e-2)  # by e at high noise
    assert ratio[-2] == pytest.approx(np.sqrt(3), rel=1e-3)  # near data; the last one is the rest
    assert (np.diff(ratio[:-1]) < 1e-9).all()
    ou = ou_of(EDM, grid)
    np.testing.assert_allclose((ou[:-1] - ou[1:])[:-1], -np.expm1(-2 * ou[1:-1]), rtol=1e-9)


@pytest.mark.parametrize("schedule", [EDM, TRIG, FLOW, SUB, VP], ids=str)
def test_the_grid_is_one_in_ou_time(schedule):
    for lipschitz in (None, 2.0):
        grid = stages_of(schedule, 3, lipschitz)
        wanted = ou_of(TRIG, stages_of(TRIG, 3, lipschitz))
        np.testing.assert_allclose(ou_of(schedule, grid), wanted, rtol=1e-7)


@pytest.mark.parametrize(("lipschitz", "inner"), [(1.0, 1), (2.0, 2), (5.0, 3)])
def test_the_grid_of_a_number_is_that_of_the_paper(lipschitz, inner):
    start, end = 4.2, 0.003
    ou = ou_of(TRIG, stages_of(TRIG, inner, lipschitz, start, end))
    h, whole = 1 / (lipschitz * inner), int(np.floor(lipschitz * (start - 1 / lipschitz)))
    steps = ou[:-1] - ou[1:]
    np.testing.assert_allclose(steps[: whole * inner], h, rtol=1e-9)
    assert start - whole / lipschitz >= 1 / lipschitz - 1e-9  # of the last piece
    halves = steps[ou[1:] < h * (1 - 1e-9)]
    np.testing.assert_allclose(halves[:-1], h / 2.0 ** np.arange(1, len(halves)), rtol=1e-9)
    assert halves[-1] <= h / 2 ** (len(halves) - 1)
    assert (steps <= h * (1 + 1e-9)).all()
    assert ou[-1] == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (
            lambda: df.grids.ou_stages(FLOW),
            "ou_stages: alpha = 0 at t = 1, but the OU time must be",
        ),
        (
            lambda: df.grids.ou_stages(EDM, 0),
            "ou_stages: inner = 0, but a stage has a whole number",
        ),
        (
            lambda: df.grids.ou_stages(EDM, lipschitz=-1.0),
            "lipschitz = -1.0, but it must be positive",
        ),
        (lambda: df.grids.ou_stages(EDM, start=1.0, end=2.0), "strictly from noisy to clean"),
    ],
)
def test_the_grid_refuses(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


# --- the plans ---


def visits_of(plan):
    """(first call, number of calls) of each visit: calls at one time, after a step."""
    times = plan.call_times
    found = {}
    for i, t in enumerate(times.tolist()):
        found.setdefault(t, []).append(i)
    ends = [t for t, calls in found.items() if len(calls) > 1 or t == plan.end]
    return [(found[t][0], len(found[t]) - (t != plan.end)) for t in ends]


@each_method
@pytest.mark.parametrize("schedule", [EDM, TRIG, FLOW, SUB, VP], ids=str)
def test_stages_have_a_predictor_and_a_corrector_at_their_end(name, schedule):
    inner = 2
    plan = BOTH[name](schedule, stages_of(schedule, inner))
    visits = visits_of(plan)
    assert [n for _, n in visits] == [inner] * len(visits)  # as many calls as the stage has steps
    assert plan.nfe == 2 * plan.steps
    firsts = sorted({0, *(k for k, _ in visits), *(k + n for k, n in visits)})
    assert plan.blocks.tolist() == firsts[: len(plan.blocks)]
    assert len(plan.blocks) == 2 * len(visits)
    assert plan.check == "x0"


@each_method
def test_a_number_makes_the_stages_of_the_paper(name):
    inner, lipschitz, start = 3, 2.0, 4.2
    grid = stages_of(TRIG, inner, lipschitz, start)
    plan = BOTH[name](TRIG, grid, lipschitz=lipschitz, n=4)
    whole = int(np.floor(lipschitz * start - 1))
    ends = [*grid[inner * np.arange(1, whole + 1)].tolist(), grid[-1]]
    assert [plan.call_times[k] for k, _ in visits_of(plan)] == ends
    assert [n for _, n in visits_of(plan)] == [4] * (whole + 1)


def test_rows_are_the_formulas():
    """In OU space: x <- e^h x + (e^h - 1) s, whatever the schedule; then the corrector's steps."""
    for schedule in (TRIG, EDM, FLOW, SUB):
        grid = stages_of(schedule, 1, start=1.5, end=0.5)[:2]
        h = float(-np.diff(ou_of(schedule, grid))[0])
        alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
        space = np.hypot(alpha, sigma)
        random = np.random.default_rng(0)
        x, d, z = random.normal(size=5), [random.normal(size=5) for _ in range(2)], {}

        def normal(i, name, z=z, random=random):
            return z.setdefault((i, name), random.normal(size=5))

        plan = solvers.dpom(schedule, grid, n=1)
        calls = iter(d)
        found = walk(plan, lambda x, t, calls=calls: next(calls), space[0] * x, normal)
        score = (alpha[0] / space[0] * d[0] - x) / (sigma[0] / space[0]) ** 2
        want = np.exp(h) * x + np.expm1(h) * score
        np.testing.assert_allclose(found[0]["x"] / space[1], want, rtol=1e-10)
        level1 = (sigma[1] / space[1]) ** 2  # 1/L
        score = (alpha[1] / space[1] * d[1] - want) / level1
        want = want + 0.25 * level1 * score + np.sqrt(0.5 * level1) * z[1, "z1"]
        np.testing.assert_allclose(found[1]["x"] / space[1], want, rtol=1e-10)


@each_method
def test_one_law_on_all_schedules(name):
    def law_on(schedule, **options):
        plan = BOTH[name](schedule, stages_of(schedule, 2), **options)
        total = level(plan, plan.end, 0.7, 0.25)
        mean, variance = law(plan, 0.7, 0.25)
        return mean / total[0], variance / total[1]

    for options in ({}, {"lipschitz": 4.0, "n": 3}, {"lipschitz": 4.0}):
        wanted = law_on(TRIG, **options)
        for schedule in (EDM, FLOW, SUB, VP):
            np.testing.assert_allclose(law_on(schedule, **options), wanted, rtol=1e-8)


@each_method
def test_weak_order_one(name):
    """With L = 4 of the data, both steps halved: the error of the variance halves."""
    errors = []
    for inner in (4, 8, 16):
        grid = stages_of(TRIG, inner, 4.0, start=2.0, end=0.05)
        plan = BOTH[name](TRIG, grid, lipschitz=4.0, n=2 * inner, step=1.0 / (2 * inner))
        total = level(plan, plan.end, 0.7, 0.25)
        mean, variance = law(plan, 0.7, 0.25)
        assert abs(mean / total[0] - 1) < 1e-10
        errors.append(variance / total[1] - 1)
    slope = -np.polyfit(np.log([4, 8, 16]), np.log(np.abs(errors)), 1)[0]
    assert abs(slope - 1.0) <= 0.15, errors


def test_dpum_without_corrector_is_the_ode_of_piadm():
    grid = df.grids.ou_early(VP, 12)
    plan, other = solvers.dpum(VP, grid, n=0), solvers.piadm_ode(VP, grid)
    np.testing.assert_allclose(plan.weights("x", "x"), other.weights("x", "x"), rtol=1e-10)
    np.testing.assert_allclose(plan.weights("x", "d"), other.weights("x", "d"), rtol=1e-10)
    assert not plan.stochastic


@each_method
def test_into_the_clean_end_it_is_the_estimate_and_no_corrector_follows(name):
    plan = BOTH[name](EDM, stages_of(EDM, 2, to_zero=True))
    last = dict(zip(plan.columns, plan.matrix[-1, plan.rows.index("x")], strict=True))
    assert {c: w for c, w in last.items() if w} == {"d": 1.0}
    assert plan.call_times[-1] == plan.call_times[-2]  # the corrector at the last noisy level
    for steps in (1, 2):
        made = BOTH[name](EDM, df.grids.karras(EDM, steps))
        assert np.isfinite(made.matrix).all()


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SPACES = {
    "vp_linear": VP,
    "vp_cosine": df.schedules.vp_cosine(),
    "sub_vp": SUB,
    "edm": EDM,
    "ve": df.schedules.ve(),
    "flow": FLOW,
    "from_betas": df.schedules.from_betas(BETAS),
    "zero_snr": df.schedules.from_betas(np.append(BETAS[:-1], 1.0)),
}


@each_method
@pytest.mark.parametrize("schedule", SPACES.values(), ids=SPACES)
def test_all_is_finite_and_a_point_mass_exact(name, schedule):
    x0, random = np.array([0.3, -1.2, 2.0]), np.random.default_rng(5)
    for steps in (1, 2, 3, 7, 40):
        for make in (df.grids.karras, df.grids.uniform_logsnr):
            for to_zero in (True, False):
                grid = make(schedule, steps, sigma_max=10.0, to_zero=to_zero)
                for options in ({"lipschitz": 1.5}, {"lipschitz": lambda t: 2.0, "n": 3}, {}):
                    plan = BOTH[name](schedule, grid, **options)
                    assert np.isfinite(plan.matrix).all()
                    assert (plan.times[0], plan.end, plan.steps) == (grid[0], grid[-1], steps)
                start = schedule.alpha(grid[0]) * x0
                start = start + schedule.sigma(grid[0]) * random.normal(size=3)
                found = walk(plan, lambda x, t: x0, start, lambda i, z: random.normal(size=3))
                if schedule.sigma(grid[-1]) == 0:
                    np.testing.assert_allclose(found[-1]["x"], x0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (
            lambda: solvers.dpum(FLOW, [1.0, 0.5]),
            "dpum: alpha = 0 at t = 1, but the OU time must be",
        ),
        (
            lambda: solvers.dpom(EDM, [8.0, 1.0], lipschitz=0.0),
            "dpom: lipschitz = 0.0, but it must",
        ),
        (
            lambda: solvers.dpom(EDM, [8.0, 1.0], step=-1),
            "dpom: step = -1, but it must be a positive",
        ),
        (
            lambda: solvers.dpum(EDM, [8.0, 1.0], n=1.5),
            "dpum: n = 1.5, but it must be a whole number",
        ),
        (lambda: solvers.dpum(EDM, [8.0, 1.0], friction=0), "dpum: friction = 0, but it must be a"),
        (
            lambda: solvers.dpum(EDM, [8.0, 1.0], lipschitz=lambda t: -t),
            "dpum: lipschitz = -8.0 at t = 8, but it must be positive and finite",
        ),
        (lambda: solvers.dpum(EDM, [1.0, 8.0]), "strictly from noisy to clean"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()
