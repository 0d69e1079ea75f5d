"""Maps as other programs write them, against the published methods where both mean the same."""

from dataclasses import fields

import numpy as np
import pytest
from numpy_executor import run
from plan_tables import place_of_y, rows_of_x, table, with_y
from test_solvers import BETAS, SCHEDULES, each_schedule, many_grids

from diffast import grids, schedules, solvers
from diffast.plans import unroll
from diffast.solvers import compat

EDM, FLOW, VP = schedules.edm(), schedules.flow(), schedules.vp_linear()
TABLE = schedules.from_betas(BETAS)


def wavy(x, t):
    return np.tanh(1.5 * x) + 0.1 * np.cos(t)


def points(plan, clamp=None, seed=0):
    """All points of a run with noise, for something that is no denoiser of anything."""
    random = np.random.default_rng(seed)
    x, z = random.normal(size=6), random.normal(size=(plan.stages, 6))
    x = x * plan.schedule.sigma(plan.start)
    return run(plan, wavy if clamp is None else clamp, x, lambda i: z[i])


def same_tables(one, two):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name not in ("name", "check"):
            np.testing.assert_array_equal(a, b, err_msg=field.name)


def same_run(one, two, atol=1e-12):
    a, b = points(one), points(two)
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * np.abs(a).max())


# --- ddim_strides -----------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@each_schedule
def test_strides_that_meet_are_ddim(schedule, eta):
    for grid in many_grids(schedule):
        plan = compat.ddim_strides(schedule, grid[:-1], grid[1:], eta)
        same_tables(plan, solvers.ddim(schedule, grid, eta=eta))
        assert plan.check == "full"


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_raw_noise_is_the_same_until_something_is_done_to_the_estimate(eta):
    grid = grids.uniform_time(VP, 6)
    plain = compat.ddim_strides(VP, grid[:-1], grid[1:], eta)
    raw = compat.ddim_strides(VP, grid[:-1], grid[1:], eta, raw_noise=True)
    same_run(plain, raw)
    assert raw.check == "full"
    # with d' = clamp(d): x_t = alpha_t d' + (down / sigma_s) (x_s - alpha_s d) + up z
    for i in range(plain.stages):
        keep, up, new = rows_of_x(plain)[i]
        alpha_s, alpha_t = VP.alpha(grid[i : i + 2])
        np.testing.assert_allclose(rows_of_x(raw)[i], [keep, up, alpha_t], atol=1e-15)
        beside = raw.weights("x", "d_raw")[i]
        np.testing.assert_allclose(beside, -alpha_s * keep, atol=1e-15)
        np.testing.assert_allclose(alpha_t + beside, new, atol=1e-14)


def test_strides_that_do_not_meet_go_where_they_are_sent():
    starts, ends = np.array([900.0, 600.0, 300.0]), np.array([650.0, 350.0, -1.0])
    plan = compat.ddim_strides(TABLE, starts, ends)
    assert plan.check == "finite"
    assert plan.end == -1
    got = points(plan)
    for i, (s, t) in enumerate(zip(starts, ends, strict=True)):
        d = wavy(got[i], s)
        eps = (got[i] - TABLE.alpha(s) * d) / TABLE.sigma(s)
        wanted = TABLE.alpha(t) * d + TABLE.sigma(t) * eps
        np.testing.assert_allclose(got[i + 1], wanted, rtol=0, atol=1e-12)


# --- late_churn -------------------------------------------------------------------------------


def euler_reads(grid):
    """A network that predicts eps, alpha = 1: d = x - sigma eps."""
    level = grid[:-1]
    return np.ones_like(level), -level


def test_late_churn_without_churn_is_euler():
    grid = grids.karras(EDM, 7)
    reads = euler_reads(grid)
    plan = compat.late_churn(EDM, grid, np.zeros(7), 1.0, reads, reads)
    same_run(plan, solvers.euler(EDM, grid))
    assert not plan.stochastic
    assert plan.weights("x", "d")[-1] == pytest.approx(1.0, abs=1e-15)


def test_late_churn_is_the_formula_of_its_docstring():
    grid = grids.karras(EDM, 5, sigma_max=10.0, to_zero=False)
    gamma, s_noise = np.array([0.0, 0.2, 0.4, 0.1, 0.0]), 1.003
    raised = (1 + gamma) * grid[:-1]
    a, b = euler_reads(grid)
    plan = compat.late_churn(EDM, grid, gamma, s_noise, (a, b), (a, -raised))
    assert plan.check == "finite"
    random = np.random.default_rng(3)
    x, z = random.normal(size=6) * 10, random.normal(size=(5, 6))
    got = run(plan, wavy, x, lambda i: z[i])
    for i, s in enumerate(grid[:-1]):
        eps = (got[i] - wavy(got[i], s)) / s  # the network's output, for the state before
        up = got[i] + s_noise * np.sqrt(raised[i] ** 2 - s**2) * z[i]
        wanted = up + (grid[i + 1] - raised[i]) * eps
        np.testing.assert_allclose(got[i + 1], wanted, rtol=0, atol=1e-12)


# --- with_boundary, with_noise_weights --------------------------------------------------------


def test_a_boundary_of_nothing_is_the_plan():
    plan = solvers.lcm(VP, grids.uniform_time(VP, 5))
    same_tables(compat.with_boundary(plan, np.zeros(5), np.ones(5)), plan)


def test_a_boundary_scales_the_estimate_and_adds_the_input():
    plan = solvers.lcm(VP, grids.uniform_time(VP, 5))
    skip, out = np.linspace(0.1, 0.9, 5), np.linspace(1.1, 0.3, 5)
    scaled = compat.with_boundary(plan, skip, out)
    assert scaled.check == "finite"
    steps = dict(zip(plan.times.tolist(), zip(skip, out, strict=True), strict=True))

    def both(x, t):
        c_skip, c_out = steps[float(t)]
        return c_skip * x + c_out * wavy(x, t)

    np.testing.assert_allclose(points(scaled), points(plan, both), rtol=0, atol=1e-13)


def test_other_noise_weights_change_the_noise_alone():
    plan = solvers.ddim(VP, grids.uniform_time(VP, 5), eta=1.0)
    weights = np.linspace(0.0, 2.0, 5)
    other = compat.with_noise_weights(plan, weights)
    assert other.check == "x0"
    np.testing.assert_array_equal(other.weights("x", "z1"), weights)
    again = other.with_weights({("x", "z1"): plan.weights("x", "z1")})
    same_tables(again, plan)
    same_tables(compat.with_noise_weights(plan, plan.weights("x", "z1")), plan)
    apart = with_y(plan)  # the noise of x and that of y
    other = compat.with_noise_weights(apart, weights)
    for register in ("x", "y"):
        np.testing.assert_array_equal(other.weights(register, "z1"), weights)
    finite = compat.with_noise_weights(compat.with_boundary(plan, weights, weights), weights)
    assert finite.check == "finite"


# --- pndm -------------------------------------------------------------------------------------

MEANS = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def outputs_are_noise(plan):
    """A plan of pndm runs on the network's outputs: here the noise that goes with `wavy`."""
    schedule = plan.schedule
    return lambda x, t: (x - schedule.alpha(t) * wavy(x, t)) / schedule.sigma(t)


def even_pndm(schedule, grid):
    """PNDM with a repeated step, by its arguments: what it remembers, from where it steps."""
    times, transfers = [grid[0], grid[1]], [(grid[0], grid[1])] * 2
    means, based = [{0: 1.0}, {0: 0.5, 1: 0.5}], [False, True]
    past = [0]  # stages whose output is remembered; that of the first step's end is not
    for n in range(1, len(grid) - 1):
        stage = len(times)
        times.append(grid[n])
        transfers.append((grid[n], grid[n + 1]))
        past.append(stage)
        weights = MEANS[min(len(past), 4)]
        means.append(dict(zip(past[: -len(weights) - 1 : -1], weights, strict=True)))
        based.append(False)
    return compat.pndm(schedule, times, transfers, means, based)


def prk_pndm(schedule, grid):
    """PNDM with three steps of the pseudo Runge-Kutta method before."""
    times, transfers, means, based, past = [], [], [], [], []
    for n in range(len(grid) - 1):
        s, t, i = grid[n], grid[n + 1], len(times)
        past.append(i)
        if n < 3:
            m = 0.5 * (s + t)
            times += [s, m, m, t]
            transfers += [(s, m), (s, m), (s, t), (s, t)]
            last = {i: 1 / 6, i + 1: 1 / 3, i + 2: 1 / 3, i + 3: 1 / 6}
            means += [{i: 1.0}, {i + 1: 1.0}, {i + 2: 1.0}, last]
            based += [False, True, True, True]
            continue
        times.append(s)
        transfers.append((s, t))
        means.append(dict(zip(past[:-5:-1], MEANS[4], strict=True)))
        based.append(False)
    return compat.pndm(schedule, times, transfers, means, based)


@pytest.mark.parametrize(("make", "start"), [(even_pndm, "repeat"), (prk_pndm, "prk")])
@pytest.mark.parametrize("schedule", [VP, TABLE], ids=["vp_linear", "from_betas"])
def test_pndm_on_an_even_grid_is_plms(schedule, make, start):
    low, high = schedule.time(np.array([2.0, -2.0]))
    grid = grids.uniform_time(schedule, 8, start=high, end=low)
    plan, plms = make(schedule, grid), solvers.plms(schedule, grid, order=4, start=start)
    assert plan.times.tolist() == plms.times.tolist()
    got = points(plan, outputs_are_noise(plan))
    np.testing.assert_allclose(got, points(plms), rtol=0, atol=1e-11)


def test_pndm_of_a_velocity_reads_the_mean_at_the_steps_start():
    # v = alpha eps - sigma x0, so eps = alpha v + sigma x where alpha^2 + sigma^2 = 1
    grid = np.array([0.8, 0.6, 0.4])
    means = [{0: 1.0}, {1: 1.5, 0: -0.5}]
    pairs = list(zip(grid[:-1], grid[1:], strict=True))
    plan = compat.pndm(VP, grid[:-1], pairs, means, [False, False], velocity=True)
    got = points(plan)
    seen = [wavy(got[i], grid[i]) for i in range(2)]
    for i, mean in enumerate(means):
        s, t = grid[i : i + 2]
        velocity = sum(weight * seen[j] for j, weight in mean.items())
        eps = VP.alpha(s) * velocity + VP.sigma(s) * got[i]
        x0 = (got[i] - VP.sigma(s) * eps) / VP.alpha(s)
        wanted = VP.alpha(t) * x0 + VP.sigma(t) * eps
        np.testing.assert_allclose(got[i + 1], wanted, rtol=0, atol=1e-12)


# --- slope_pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("to_zero", [True, False])
def test_pairs_of_slopes_are_heun_and_the_midpoint_rule(steps, to_zero):
    grid = grids.karras(EDM, steps, to_zero=to_zero)
    heun = compat.slope_pairs(EDM, grid)
    same_run(heun, solvers.heun(EDM, grid))
    assert heun.stages == 2 * steps - to_zero
    with np.errstate(divide="ignore"):
        middles = np.exp(0.5 * (np.log(grid[:-1]) + np.log(grid[1:])))
    midpoint = compat.slope_pairs(EDM, grid, middles)
    same_run(midpoint, solvers.dpm_2(EDM, grid))
    assert heun.check == midpoint.check == "x0"


def test_pairs_of_slopes_on_flow_are_heun_on_its_velocity():
    grid = grids.uniform_time(FLOW, 6)
    plan = compat.slope_pairs(FLOW, grid)
    got = points(plan)
    x = got[0]
    for n, (s, t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        slope = (x - wavy(x, s)) / s  # eps - x0
        moved = x + (t - s) * slope
        x = moved if t == 0 else x + 0.5 * (t - s) * (slope + (moved - wavy(moved, t)) / t)
        np.testing.assert_allclose(got[min(2 * n + 2, plan.stages)], x, rtol=0, atol=1e-12)


def test_a_changed_state_gets_its_own_slope():
    # the second slope is that of the state which the network was called on, whatever it is
    grid = grids.karras(EDM, 3, sigma_max=10.0)
    plan = compat.slope_pairs(EDM, grid)
    entry = table(plan, "h", "x", "d")[1]
    np.testing.assert_allclose(entry, [1 / grid[1], -1 / grid[1]], rtol=1e-15)
    half = 0.5 * (grid[1] - grid[0])
    assert table(plan, "x", "y", "h0", "h1")[1].tolist() == [1.0, half, half]


# --- singlestep_sde ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@each_schedule
def test_blocks_of_one_are_first_order(schedule, kind):
    for grid in many_grids(schedule):
        plan = compat.singlestep_sde(schedule, grid, [1] * (len(grid) - 1), kind)
        one, two = unroll(plan), unroll(solvers.ddim(schedule, grid, eta=1.0))
        np.testing.assert_allclose(one["x"], two["x"], rtol=0, atol=1e-13)
        assert plan.check == "full"


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_blocks_step_from_their_start(kind):
    # not even in lam, where the midpoint's weight of the first estimate is 0
    grid = grids.karras(VP, 6, sigma_max=5.0, to_zero=False)
    plan = compat.singlestep_sde(VP, grid, [1, 2, 3], kind)
    np.testing.assert_array_equal(place_of_y(plan), [1, 1, 3, 3, 3, 6])
    kept = (
        plan.matrix[:, plan.rows.index("y")] == np.eye(len(plan.columns))[plan.columns.index("y")]
    )
    assert np.flatnonzero(kept.all(axis=1)).tolist() == [1, 3, 4]
    np.testing.assert_array_equal(
        np.count_nonzero(rows_of_x(plan)[:, 2:], axis=1), [1, 1, 2, 1, 2, 3 - (kind == "midpoint")]
    )


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_blocks_have_the_moments_of_the_sde(kind):
    """Against the exact integrals of polynomial estimates in lam: weights of d_s + slope u."""
    from scipy.integrate import quad

    grid = grids.uniform_logsnr(VP, 2, sigma_max=2.0, sigma_min=0.4, to_zero=False)
    plan = compat.singlestep_sde(VP, grid, [2], kind)
    lam, alpha = VP.lam(grid), VP.alpha(grid)
    h = lam[2] - lam[0]
    # a line through the two estimates, 1 at the block's start and 1 + u later
    row = rows_of_x(plan)[1, 2:]
    got = row[1] * 1.0 + row[0] * (1.0 + lam[1] - lam[0])
    exact = alpha[2] * quad(lambda u: 2 * np.exp(-2 * (h - u)) * (1 + u), 0, h)[0]
    if kind == "heun":
        assert got == pytest.approx(exact, abs=1e-13)
    else:  # the slope's integral by the midpoint rule
        exact = alpha[2] * (1 + 0.5 * h) * -np.expm1(-2 * h)
        assert got == pytest.approx(exact, abs=1e-13)


# --- all of them ------------------------------------------------------------------------------


def blocks_of(steps):
    return [3] * (steps // 3) + [steps % 3] * (steps % 3 > 0)


ALL = {
    "strides": lambda s, g: compat.ddim_strides(s, g[:-1], g[1:], 0.5),
    "strides_raw": lambda s, g: compat.ddim_strides(s, g[:-1], g[1:], 0.5, raw_noise=True),
    "noise_weights": lambda s, g: compat.with_noise_weights(
        solvers.ddim(s, g, eta=1.0), np.linspace(0, 1, len(g) - 1)
    ),
    "blocks": lambda s, g: compat.singlestep_sde(s, g, blocks_of(len(g) - 1)),
    "blocks_heun": lambda s, g: compat.singlestep_sde(s, g, blocks_of(len(g) - 1), "heun"),
}
ON_SIGMAS = {
    "pairs": compat.slope_pairs,
    "pairs_middles": lambda s, g: compat.slope_pairs(s, g, 0.5 * (g[:-1] + g[1:])),
}


@pytest.mark.parametrize("name", [*ALL, *ON_SIGMAS])
@each_schedule
def test_point_mass_and_finite(schedule, name):
    if name in ON_SIGMAS and schedule not in (SCHEDULES["edm"], SCHEDULES["ve"], FLOW):
        return
    x0, random = np.array([0.3, -1.2, 2.0]), np.random.default_rng(5)
    for grid in many_grids(schedule):
        plan = (ALL | ON_SIGMAS)[name](schedule, grid)
        assert plan.steps == len(grid) - 1
        assert np.isfinite(plan.matrix).all()
        z = random.normal(size=(plan.stages, 3))
        alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
        start = alpha[0] * x0 + sigma[0] * random.normal(size=3)
        x = run(plan, lambda x, t: x0, start, lambda i, z=z: z[i])[-1]
        if name == "noise_weights" or sigma[-1] > 0 and plan.stochastic:
            unrolled = unroll(plan)["x"][-1]
            held = unrolled[0] * alpha[0] + unrolled[1 : 1 + plan.stages].sum()
            assert held == pytest.approx(alpha[-1], abs=1e-12)
        elif sigma[-1] == 0:
            np.testing.assert_allclose(x, x0, rtol=0, atol=1e-12 * sigma[0])
        else:
            eps = (start - alpha[0] * x0) / sigma[0]
            wanted = alpha[-1] * x0 + sigma[-1] * eps
            np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-12 * sigma[0])
