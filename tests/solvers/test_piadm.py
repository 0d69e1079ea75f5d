"""The methods of PIADM: their law on Gaussian data, exactly; the Langevin corrector; refusals."""

from decimal import Decimal, localcontext
from functools import cache, partial

import numpy as np
import pytest
import torch
from numpy_executor import run as run_numpy
from plan_tables import rows_of_x, standing, table

import diffast as df
from diffast import grids, solvers
from diffast.solvers.correctors import exact_step

# OU time 8 at the start; data N(0.7, 0.25), stopped at OU time 0.01 as in docs/solvers.md.
VP = df.schedules.vp_linear(beta_max=15.9)
MEAN, VARIANCE = 0.7, 0.25
EARLY = float(np.sqrt(np.expm1(0.01)))
CLOCK = 7.0 + np.log(100.0)  # of ou_early from 8 to 0.01


def grid_of(per_block, schedule=VP):
    return grids.ou_early(schedule, round(CLOCK * per_block), sigma_min=EARLY)


def level(t, schedule=VP):
    """Mean and variance of the data's law at time t."""
    alpha = schedule.alpha(t)
    return alpha * MEAN, alpha**2 * VARIANCE + schedule.sigma(t) ** 2


def law(plan, exact=True):
    """Mean and variance of a plan's samples, exactly: the denoiser of Gaussian data is affine.

    The state is its own weights on (1, initial noise, z_0 .., z2_0 ..). exact: begun at the data's
    law; else at N(0, I).
    """
    stages, schedule = plan.stages, plan.schedule
    unit = np.eye(2 * stages + 2)

    def x0(x, t):
        mean, variance = level(t, schedule)
        pull = schedule.alpha(t) * VARIANCE / variance
        return pull * x + (MEAN - pull * mean) * unit[0]

    mean, variance = level(plan.start, schedule) if exact else (0.0, 1.0)
    start = mean * unit[0] + np.sqrt(variance) * unit[1]
    x = run_numpy(plan, x0, start, lambda i: unit[2 + i], lambda i: unit[2 + stages + i])[-1]
    return x[0], (x[1:] ** 2).sum()


def gaps(plan, exact=True):
    """How far mean and variance are from those of the data's law at the plan's end."""
    return np.subtract(law(plan, exact), level(plan.end, plan.schedule))


def slope(counts, errors):
    return -np.polyfit(np.log(counts), np.log(np.abs(errors)), 1)[0]


COUNTS = (8, 16, 32, 64)
CORRECTED = partial(solvers.piadm_ode, corrector=(0.5, 4))
PLAIN = {"sde": solvers.piadm_sde, "ode": solvers.piadm_ode}


@cache
def curve(name):
    """Errors of mean and variance at `COUNTS` steps a block, [4, 2]."""
    return np.array([gaps(PLAIN[name](VP, grid_of(count))) for count in COUNTS])


@pytest.mark.parametrize("name", PLAIN)
def test_the_variance_is_of_first_order(name):
    mean, variance = curve(name).T
    assert np.abs(mean).max() < 1e-12
    assert abs(slope(COUNTS, variance) - 1.0) <= 0.15, variance


@pytest.mark.parametrize("schedule", [df.schedules.vp_cosine(), df.schedules.trig()], ids=str)
@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN)
def test_other_schedules_have_the_same_law_in_ou_time(build, schedule):
    def plan_on(space):
        return build(space, grids.ou_early(space, 90, sigma_min=EARLY, sigma_max=10.0))

    np.testing.assert_allclose(law(plan_on(schedule)), law(plan_on(VP)), rtol=1e-9)


def test_the_figures_of_the_docs():
    # from N(0, I): the mean keeps what the start has missed, 0.7 exp(-4) of it at most
    np.testing.assert_allclose(level(grid_of(32)[-1]), (0.6965, 0.2575), atol=5e-5)
    np.testing.assert_allclose(
        law(solvers.piadm_sde(VP, grid_of(32)), False), (0.6965, 0.2612), atol=6e-5
    )
    np.testing.assert_allclose(
        law(solvers.piadm_ode(VP, grid_of(32)), False), (0.6900, 0.2597), atol=6e-5
    )
    plan = solvers.piadm_ode(VP, grid_of(32), corrector=(0.5, 128))
    np.testing.assert_allclose(law(plan, False), (0.6944, 0.2587), atol=6e-5)


def test_the_corrector_mends_what_the_steps_have_missed():
    before = curve("ode")[1, 1]

    def after(length, inner):
        mean, variance = gaps(solvers.piadm_ode(VP, grid_of(16), corrector=(length, inner)))
        assert abs(mean) < 1e-12
        return variance

    # the longer the better, until the error of its own is left, which falls with its step
    assert before > 1.5 * after(0.5, 100) > 2.25 * after(1.0, 200) > 0
    own = [after(2.0, inner) for inner in (100, 200, 400)]
    assert abs(slope((100, 200, 400), own) - 1.0) <= 0.15
    assert own[-1] < before / 3


def test_the_corrector_mends_the_mean_that_the_start_has_missed():
    one, two = (
        gaps(solvers.piadm_ode(VP, grid_of(16), corrector=corrector), exact=False)[0]
        for corrector in (None, (2.0, 40))
    )
    assert abs(one) > 5e-3
    assert abs(two) < 1e-4


@pytest.mark.parametrize("friction", [1.0, 2.0, 4.0])
def test_the_corrector_leaves_its_law_alone_up_to_its_step(friction):
    """Walked until all else is forgotten: the variance is off by the first order of its step."""
    grid, steps = grid_of(4)[-2:], (0.2, 0.1, 0.05, 0.025)
    errors = []
    for step in steps:
        corrector = (10.0, round(10.0 / step))
        errors.append(gaps(solvers.piadm_ode(VP, grid, corrector=corrector, friction=friction))[1])
    # at large steps beside errors of second order, so of the smallest two
    assert abs(slope(1 / np.array(steps[-2:]), errors[-2:]) - 1.0) <= 0.15, errors
    assert all(a > b > 0 for a, b in zip(errors, errors[1:], strict=False)), errors


def test_a_corrector_in_small_steps_of_the_exact_law_changes_nothing():
    # one step of the ODE so short that it misses nothing, then 200 of the corrector
    t = VP.time(-np.log(np.array([0.5, 0.5 * (1 - 1e-7)])))
    mean, variance = gaps(solvers.piadm_ode(VP, t, corrector=(0.02, 200)))
    assert abs(mean) < 1e-12
    assert abs(variance) < 1e-6


# --- the numbers of one Langevin step -------------------------------------------------------------

LENGTHS = (1e-6, 1e-4, 1e-2, 0.3, 0.999, 1.0, 3.0, 30.0)


def decimal_step(friction, length):
    """(q, c1, c2, Var zu, Cov, Var zv) by the formulas, to 60 digits."""
    with localcontext() as context:
        context.prec = 90
        g, e = Decimal(friction), Decimal(length)
        q = (-g * e).exp()
        c1 = (1 - q) / g
        c2 = (e - c1) / g
        state = 2 / g * (e - 2 * c1 + (1 - q * q) / (2 * g))
        return [float(n) for n in (q, c1, c2, state, (1 - q) ** 2 / g, 1 - q * q)]


@pytest.mark.parametrize("friction", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_step_has_the_numbers_of_its_formulas(friction, length):
    step = exact_step.step(friction, length)
    got = [*step[:3], step.state_noise**2, step.state_noise * step.shared_noise]
    got.append(step.shared_noise**2 + step.own_noise**2)
    np.testing.assert_allclose(got, decimal_step(friction, length), rtol=1e-13)
    q, _, _, state, both, velocity = (Decimal(n) for n in decimal_step(friction, length))
    own = velocity - both * both / state
    np.testing.assert_allclose(step.own_noise**2, float(own), rtol=1e-12)


@pytest.mark.parametrize("length", [0.01, 0.3, 3.0])
def test_a_step_is_the_integral_of_its_equation(length):
    # by quadrature: what a kick at r has become at the end, c1(length - r) in u and q in v
    friction = 1.3
    node, weight = np.polynomial.legendre.leggauss(40)
    r, weight = 0.5 * length * (node + 1.0), 0.5 * length * weight
    kept = np.exp(-friction * r)
    moved = np.array(
        [
            w @ np.exp(-friction * s)
            for s, w in (
                (0.5 * x * (node + 1), 0.5 * x * np.polynomial.legendre.leggauss(40)[1]) for x in r
            )
        ]
    )
    step = exact_step.step(friction, length)
    want = 2 * friction * np.array([weight @ moved**2, weight @ (moved * kept), weight @ kept**2])
    velocity = step.shared_noise**2 + step.own_noise**2
    got = step.state_noise**2, step.state_noise * step.shared_noise, velocity
    np.testing.assert_allclose(got, want, rtol=1e-10)
    np.testing.assert_allclose([step.drift, step.push], [weight @ kept, weight @ moved], rtol=1e-10)


# --- what the plans are ---------------------------------------------------------------------------


def test_rows_are_the_formulas():
    grid = VP.time(-np.log(np.array([3.0, 1.0, 0.2])))
    alpha, sigma = VP.alpha(grid), VP.sigma(grid)
    e = 2 * np.log(alpha[1:] / alpha[:-1])
    for build, pull in ((solvers.piadm_sde, 2.0), (solvers.piadm_ode, 1.0)):
        plan, x, z = build(VP, grid), 1.7, np.array([0.3, -0.4])
        d = np.array([0.9, 0.1])
        for n in range(2):
            score = (alpha[n] * d[n] - x) / sigma[n] ** 2
            want = np.exp(e[n] / 2) * x + pull * (np.exp(e[n] / 2) - 1) * score
            want += (pull == 2.0) * np.sqrt(np.exp(e[n]) - 1) * z[n]
            got = rows_of_x(plan)[n] @ [x, z[n], d[n]]
            assert got == pytest.approx(want, rel=1e-12)
            x = want


def test_small_steps_near_data_lose_no_digits():
    # OU times of 1e-8 to 0.9e-8, where alpha is 1 - 5e-9
    schedule = df.schedules.trig()
    grid = schedule.time(-np.log(np.array([1e-4, 0.95e-4])))
    row = rows_of_x(solvers.piadm_ode(schedule, grid))[0]
    with localcontext() as context:
        context.prec = 50
        early, late = (Decimal(float(np.tan(t))) ** 2 for t in grid)  # of the angles as they are
        e = (1 + early).ln() - (1 + late).ln()
        gain = ((e / 2).exp() - 1) * (1 + early) / early
        want = float(gain / (1 + early).sqrt())
    assert row[2] == pytest.approx(want, rel=1e-11)


def test_blocks_begin_nearest_to_the_multiples():
    for block in (0.3, 1.0, 2.5, 100.0):
        grid = grid_of(10)
        passed = -2 * np.log(VP.alpha(grid[0]) / VP.alpha(grid))
        blocks = solvers.piadm_sde(VP, grid, block=block).blocks
        wanted = block * np.arange(np.floor(passed[-1] / block) + 1)
        nearest = [int(np.argmin(np.abs(passed - w))) for w in wanted]
        assert blocks.tolist() == sorted({n for n in nearest if n < len(grid) - 1})
    assert blocks.tolist() == [0]
    assert solvers.piadm_sde(VP, grid[:3], block=1e-9).blocks.tolist() == [0, 1]


def test_a_corrector_is_a_block_of_its_own_at_the_time_of_the_blocks_end():
    grid, inner = grid_of(6), 5
    plain = solvers.piadm_ode(VP, grid)
    plan = solvers.piadm_ode(VP, grid, corrector=(0.4, inner))
    ends = [*plain.blocks[1:].tolist(), plain.stages]
    assert plan.stages == plain.stages + inner * len(ends)
    assert plan.steps == plain.steps
    first = np.array(ends) + inner * np.arange(len(ends))  # of the correctors
    both = np.sort(np.concatenate([first, [0], first[:-1] + inner]))
    assert plan.blocks.tolist() == both.tolist()
    for begin, end in zip(first, ends, strict=True):
        assert (plan.times[begin : begin + inner] == grid[end]).all()
        momentum = plan.matrix[:, plan.rows.index("v")]
        held = standing(plan, "v")[begin - 1 : begin + inner - 1]
        assert held.tolist() == [[0.0, 1.0]] * inner
        at = [plan.columns.index(z) for z in ("z1", "z2")]
        assert momentum[begin - 1, at].tolist() == [0.0, 1.0]
        assert np.flatnonzero(momentum[begin - 1]).tolist() == [at[1]]
        assert not momentum[begin + inner - 1].any()  # and then it is let go
    drawn = plan.weights("v", "z2") != 0
    assert not plan.weights("x", "z2").any()
    assert drawn.sum() == inner * len(ends)
    assert plan.end == grid[-1]
    assert (plan.check, plain.check) == ("x0", "x0")
    assert "v" not in plain.rows
    assert plan.stochastic and not plain.stochastic


def test_lengths_and_frictions_may_follow_the_time():
    grid = grid_of(6)
    plan = solvers.piadm_ode(
        VP, grid, corrector=(lambda t: 0.2 * VP.sigma(t), 2), friction=lambda t: 1 / VP.sigma(t)
    )
    begin = plan.blocks[-1]
    sigma = VP.sigma(grid[-1])
    step = exact_step.step(1 / sigma, 0.1 * sigma)
    row = table(plan, "x", "v", "z1", "h0")[begin]
    np.testing.assert_allclose(row, [step.drift, step.state_noise, step.push])
    assert abs(gaps(plan)[1]) < 0.05


@pytest.mark.parametrize("corrector", [None, (0.3, 3)])
def test_into_the_clean_end_it_is_the_estimate_and_no_corrector_follows(corrector):
    grid = np.append(grid_of(6), 0.0)
    plan = solvers.piadm_ode(VP, grid, corrector=corrector)
    last = {
        c: w for c, w in zip(plan.columns, plan.matrix[-1, plan.rows.index("x")], strict=True) if w
    }
    assert last == {"d": 1.0}
    assert "v" not in plan.rows or not plan.matrix[-1, plan.rows.index("v")].any()
    assert standing(plan, "x")[-1].tolist() == [1.0, 0.0]
    assert plan.times[-1] == grid[-2]
    assert rows_of_x(solvers.piadm_sde(VP, grid))[-1].tolist() == [0.0, 0.0, 1.0]
    assert solvers.piadm_ode(VP, grid[-2:], corrector=corrector).stages == 1


EDM, FLOW, SUB = df.schedules.edm(), df.schedules.flow(), df.schedules.sub_vp()
TRIG = df.schedules.trig()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (
            lambda: solvers.piadm_sde(EDM, [8.0, 1.0]),
            r"piadm_sde: alpha\^2 \+ sigma\^2 = 65 at t = 8",
        ),
        (
            lambda: solvers.piadm_ode(FLOW, [1.0, 0.5, 0.1]),
            r"piadm_ode: .* = 0.5 at t = 0.5 on Flow",
        ),
        (lambda: solvers.piadm_sde(SUB, [0.5, 0.1]), r"but it must be 1 everywhere"),
        (lambda: solvers.piadm_sde(TRIG, [TRIG.t_start, 1.0]), "piadm_sde: alpha = 0 at t = 1.57"),
        (lambda: solvers.piadm_sde(VP, [0.1, 0.5]), "strictly from noisy to clean"),
        (lambda: solvers.piadm_sde(VP, [0.5, 0.1], block=0.0), "piadm_sde: block = 0.0, but"),
        (lambda: solvers.piadm_ode(VP, [0.5, 0.1], block=np.inf), "piadm_ode: block = inf, but"),
        (
            lambda: CORRECTED(VP, [0.5, 0.1], corrector=0.5),
            r"corrector = 0.5, but it must be \(len",
        ),
        (lambda: CORRECTED(VP, [0.5, 0.1], corrector=(0.5, 0)), r"corrector = \(0.5, 0\), but"),
        (lambda: CORRECTED(VP, [0.5, 0.1], corrector=(0.5, 2.5)), r"corrector = \(0.5, 2.5\), but"),
        (lambda: CORRECTED(VP, [0.5, 0.1], corrector=(0.0, 2)), "length = 0.0 at t = 0.1, but"),
        (lambda: CORRECTED(VP, [0.5, 0.1], corrector=(np.nan, 2)), "length = nan at t = 0.1"),
        (lambda: CORRECTED(VP, [0.5, 0.1], friction=-1), "friction = -1.0 at t = 0.1, but it must"),
        (lambda: CORRECTED(VP, [0.5, 0.1], friction=lambda t: np.inf), "friction = inf at t = 0.1"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


# --- sampled --------------------------------------------------------------------------------------


def score(x, t):
    """The data's score, as a network."""
    t = t.double()
    alpha, sigma = (torch.from_numpy(f(t.numpy())).reshape(-1, 1) for f in (VP.alpha, VP.sigma))
    x = x.double()
    return ((alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2)).float()


@pytest.mark.parametrize(
    ("build", "options"),
    [(solvers.piadm_sde, {}), (solvers.piadm_sde, {"noise": "path"}), (CORRECTED, {})],
    ids=["sde", "path", "corrected"],
)
def test_samples_have_the_law_of_the_plan(build, options):
    plan = build(VP, grid_of(3))
    shape = (4, 2**17)
    x = df.sample(df.Denoiser(score, VP, predicts="score"), plan, shape, seed=3, **options).x
    x, count = x.double(), shape[0] * shape[1]
    start = VP.sigma(plan.start)
    assert abs(start - 1.0) < 2e-4  # `law` begins at level 1
    mean, variance = law(plan, exact=False)
    assert abs(float(x.mean()) - mean) < 5 * np.sqrt(variance / count)
    assert abs(float(x.var()) - variance) < 5 * variance * np.sqrt(2 / count)
    # a wrong law is seen: the data's own is this far from the plan's
    assert abs(level(plan.end)[1] - variance) > 10 * variance * np.sqrt(2 / count)


# --- the grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP, EDM, FLOW], ids=["vp", "edm", "flow"])
def test_steps_of_ou_early_are_even_and_then_shrink_with_time(schedule):
    grid = grids.ou_early(schedule, 200, sigma_min=0.02, sigma_max=20.0)
    ou = np.log1p((schedule.sigma(grid) / schedule.alpha(grid)) ** 2)
    step = (ou[0] - 1.0 - np.log(ou[-1])) / 200
    assert (ou[:-1] - ou[1:] <= step * np.minimum(1.0, ou[:-1]) * (1 + 1e-9)).all()
    early, late = ou[ou > 1.0], ou[ou < 1.0]
    np.testing.assert_allclose(np.diff(early), -step, rtol=1e-9)
    np.testing.assert_allclose(np.diff(np.log(late)), -step, rtol=1e-7)
    np.testing.assert_allclose(ou[[0, -1]], np.log1p(np.array([20.0, 0.02]) ** 2), rtol=1e-11)


def test_ou_early_stops_at_the_schedules_least_time():
    assert grids.ou_early(VP, 7)[[0, -1]].tolist() == [VP.t_start, VP.t_min]
    assert grids.ou_early(VP, 7, to_zero=True)[-2:].tolist() == [VP.t_min, VP.t_end]
    with pytest.raises(ValueError, match="ou_early: sigma/alpha is infinite at t = 1.0"):
        grids.ou_early(FLOW, 7)
