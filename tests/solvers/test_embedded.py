"""Embedded solvers: what their rows are exact for, orders of solution and error, their plans."""

from functools import cache, partial

import numpy as np
import pytest
from embedded_walk import apply, interval_of, positions_of, run_plan, walk
from scipy.integrate import solve_ivp
from test_runge_kutta import density, trees
from test_solvers import fitted_slope, mixture, reference

import diffast as df
from diffast import grids, schedules
from diffast.solvers import embedded
from diffast.solvers.ode import runge_kutta

VP, EDM, FLOW = schedules.vp_linear(), schedules.edm(), schedules.flow()
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "vp": VP,
    "cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "edm": EDM,
    "flow": FLOW,
    "trig": schedules.trig(),
    "betas": schedules.from_betas(BETAS),
}
TABLEAUS = ("bosh3", "dopri5", "tsit5")
# name -> (how to make it, order of the ODE's solution, of the error in h); 0: not an ODE's
BUILDS = {
    "pec": (embedded.PEC, 0, 2),
    "ggf": (embedded.GGF, 2, 2),
    "ggf_plain": (partial(embedded.GGF, extrapolate=False), 1, 2),
    "ggf_lamba": (partial(embedded.GGF, lamba=True), 2, 2),
    "euler_heun": (embedded.EulerHeun, 2, 2),
    "dpm_12": (partial(embedded.DPM, 2), 2, 2),
    "dpm_23": (partial(embedded.DPM, 3), 3, 3),
} | {
    f"{name}_{clock}": (partial(embedded.RungeKutta, name, clock=clock), order, order)
    for name, order in (("bosh3", 3), ("dopri5", 5), ("tsit5", 5))
    for clock in ("rho", "flow")
}
# Exact for a point mass; the others go by Euler's method in time.
EXACT = [name for name in BUILDS if not name.startswith(("ggf", "euler"))]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_solver = pytest.mark.parametrize("name", BUILDS)


def even(schedule, steps, high=10.0, low=0.1):
    """Model times even in log-SNR from sigma/alpha = high to low."""
    return grids.uniform_logsnr(schedule, steps, sigma_max=high, sigma_min=low, to_zero=False)


def levels(schedule, times):
    return schedule.alpha(times), schedule.sigma(times)


# What the rows are exact for.


@each_schedule
@pytest.mark.parametrize("name", EXACT)
def test_point_mass_is_exact(name, schedule):
    solver, x0 = BUILDS[name][0](), np.array([0.3, -1.2, 2.0])
    random = np.random.default_rng(1)
    for steps in (1, 2, 9):
        times = even(schedule, steps)
        eps, z = random.normal(size=(2, 3)), random.normal(size=(steps, 2, 3))
        alpha, sigma = levels(schedule, times)
        found = walk(
            solver,
            schedule,
            positions_of(solver, schedule, times),
            lambda x, t: x0 + 0.0 * x,
            alpha[0] * x0 + sigma[0] * eps,
            z.__getitem__,
        )
        wanted, noise = [eps], eps
        for h, fresh in zip(np.diff(schedule.lam(times)), z, strict=True):
            if name == "pec":  # keeps its noise level: e^-2h + (1 - e^-2h) = 1
                noise = np.exp(-h) * noise + np.sqrt(-np.expm1(-2.0 * h)) * fresh
            wanted.append(noise)
        wanted = alpha[:, None, None] * x0 + sigma[:, None, None] * np.stack(wanted)
        # rows of steps of a ratio of 100 have weights of 100 and more
        np.testing.assert_allclose(found.states, wanted, rtol=0, atol=3e-12 if steps > 1 else 1e-9)
        assert np.abs(found.errors).max() <= (3e-12 if steps > 1 else 1e-9)


@each_schedule
@each_solver
def test_linear_in_the_data(name, schedule):
    """Shifted and scaled data give shifted and scaled states: sums of rows are consistent."""
    solver, random = BUILDS[name][0](), np.random.default_rng(2)
    times = even(schedule, 6, 3.0, 0.3)
    alpha, sigma = levels(schedule, times)
    z = random.normal(size=(6, 4, 2))
    denoise, places = mixture(schedule), positions_of(solver, schedule, times)
    eps = random.normal(size=(4, 2))
    one = walk(solver, schedule, places, denoise, sigma[0] * eps, z.__getitem__)
    half = walk(
        solver,
        schedule,
        places,
        lambda x, t: 2.0 * denoise(0.5 * x, t),
        2.0 * sigma[0] * eps,
        lambda n: 2.0 * z[n],
    )
    np.testing.assert_allclose(half.states, 2.0 * one.states, rtol=1e-12)
    np.testing.assert_allclose(half.errors, 2.0 * one.errors, rtol=1e-9, atol=1e-14)
    if name not in EXACT:
        return
    c = np.array([0.7, -2.0])
    moved = walk(
        solver,
        schedule,
        places,
        lambda x, t: c + denoise(x - float(schedule.alpha(t)) * c, t),
        alpha[0] * c + sigma[0] * eps,
        z.__getitem__,
    )
    shift = alpha[:, None, None] * c
    np.testing.assert_allclose(moved.states, one.states + shift, rtol=0, atol=1e-11)
    np.testing.assert_allclose(moved.errors, one.errors, rtol=0, atol=1e-11)


@each_schedule
@each_solver
def test_a_step_of_nothing_changes_nothing(name, schedule):
    solver = BUILDS[name][0]()
    interval = interval_of(solver, schedule)
    at = 0.5 * (interval.start + interval.end)
    to = at + 1e-9 * (interval.end - interval.start)
    found = walk(solver, schedule, [at, to], mixture(schedule), np.ones((1, 2)))
    assert np.abs(found.states[1] - found.states[0]).max() < 1e-7
    assert np.abs(found.errors).max() < 1e-13


@each_schedule
@each_solver
def test_the_estimate_is_the_last_answer(name, schedule):
    """`estimate` undoes `entry`: x0 of the entry that was made of x and d is d."""
    solver = BUILDS[name][0]()
    node = interval_of(solver, schedule).nodes(positions_of(solver, schedule, even(schedule, 4)))
    x, d = np.random.default_rng(3).normal(size=(2, 5, 2))
    entry = apply(solver.entry(node), {"y": x, "x": x, "d": d})
    found = apply(solver.estimate(node), {"y": x, "h0": entry})
    np.testing.assert_allclose(found, d, rtol=0, atol=1e-11)


@each_solver
def test_calls(name):
    solver = BUILDS[name][0]()
    steps = 4
    found = walk(
        solver,
        VP,
        positions_of(solver, VP, even(VP, steps)),
        mixture(VP),
        np.ones((1, 2)),
    )
    assert found.calls == 1 + steps * (
        solver.calls if solver.reuses_last_call else solver.calls + 1
    )
    assert solver.calls == {"dpm_12": 1, "dpm_23": 2, "bosh3": 3, "dopri5": 6, "tsit5": 6}.get(
        name.split("_rho")[0].split("_flow")[0], 1
    )


# Orders.


@cache
def drift_reference(schedule, start, end):
    """Eight states, and where dx/dt = f x - g^2 score takes them: the SDE's drift alone."""
    denoise, x = mixture(schedule), reference(schedule, start, end)[0]

    def slope(lam, x):
        t = schedule.time(lam)
        alpha, sigma = levels(schedule, t)
        dalpha, dsigma = schedule.derivatives(t)
        x = x.reshape(-1, 2)
        score = (alpha * denoise(x, float(t)) - x) / sigma**2
        diffusion = 2.0 * sigma**2 * (dsigma / sigma - dalpha / alpha)
        dlam = dalpha / alpha - dsigma / sigma
        return ((dalpha / alpha * x - diffusion * score) / dlam).ravel()

    span = schedule.lam(np.array([start, end]))
    found = solve_ivp(slope, span, x.ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    return x, found.y[:, -1].reshape(-1, 2)


def is_drift(name):
    return name.startswith(("ggf", "euler"))


# Positions are even in what the solver's own steps are smooth in.
ORDER_CASES = {"vp": VP, "edm": EDM, "flow": FLOW, "sub_vp": SCHEDULES["sub_vp"]}
LOW_ORDER = [name for name, (_, order, _) in BUILDS.items() if 0 < order < 5]
HIGH_ORDER = [name for name, (_, order, _) in BUILDS.items() if order == 5]


@pytest.mark.parametrize("schedule", ORDER_CASES.values(), ids=ORDER_CASES)
@pytest.mark.parametrize("name", LOW_ORDER)
def test_order_of_the_solution(name, schedule):
    build, order, _ = BUILDS[name]
    solver, counts = build(), (80, 160, 320, 640)
    ends = even(schedule, 1)
    x, truth = (drift_reference if is_drift(name) else reference)(schedule, *ends)
    errors = []
    for n in counts:
        places = positions_of(solver, schedule, even(schedule, n))
        got = walk(solver, schedule, places, mixture(schedule), x).states[-1]
        errors.append(np.sqrt(np.mean((got - truth) ** 2)))
    assert abs(fitted_slope(errors, counts) - order) <= 0.15, errors
    assert errors[-1] > 1e-12  # above rounding


@pytest.mark.parametrize("name", HIGH_ORDER)
def test_order_five(name):
    # the data and range of test_runge_kutta.py; tsit5's leading error is so small that the next
    # order shows beside it until 1e-13, by the clock "rho" less so on data that vary faster
    rate, counts = (6, (120, 160, 240)) if name.endswith("rho") else (3, (80, 120, 160))

    def denoise(x, t):
        return np.cos(rate * x)

    def slope(lam, y):
        return denoise(FLOW.alpha(FLOW.time(lam)) * y, None) - y

    solver = BUILDS[name][0]()
    s, t = even(FLOW, 1, 4.0, 0.5)
    x = np.linspace(-2, 2, 24)[:, None]
    span = FLOW.lam(np.array([s, t]))
    start = x.ravel() / FLOW.alpha(s)
    found = solve_ivp(slope, span, start, method="DOP853", rtol=1e-13, atol=1e-15)
    truth, errors = FLOW.alpha(t) * found.y[:, -1:], []
    for n in counts:
        places = positions_of(solver, FLOW, even(FLOW, n, 4.0, 0.5))
        got = walk(solver, FLOW, places, denoise, x).states[-1]
        errors.append(np.sqrt(np.mean((got - truth) ** 2)))
    assert abs(fitted_slope(errors, counts) - 5) <= 0.15, errors
    assert errors[-1] > 5e-14  # above rounding


def one_step_errors(solver, schedule, lam, steps, noise=None):
    """Size of the error row of one step from a log-SNR, by its length in lam."""
    x = np.random.default_rng(4).normal(size=(16, 2))
    t = float(schedule.time(np.array(lam)))
    x = schedule.alpha(t) * x * 0.8 + schedule.sigma(t) * x[::-1]
    sizes = []
    for h in steps:
        places = positions_of(solver, schedule, schedule.time(np.array([lam, lam + h])))
        found = walk(solver, schedule, places, mixture(schedule), x, noise)
        sizes.append(np.sqrt(np.mean(found.errors[0] ** 2)))
    return sizes


@pytest.mark.parametrize("schedule", ORDER_CASES.values(), ids=ORDER_CASES)
@each_solver
def test_order_of_the_error(name, schedule):
    build, _, order = BUILDS[name]
    steps = 0.5 ** (np.arange(4.0, 7.0) if order == 5 else np.arange(5.0, 9.0))
    sizes = one_step_errors(build(), schedule, 0.4, steps)
    assert abs(np.polyfit(np.log(steps), np.log(sizes), 1)[0] - order) <= 0.15, sizes
    assert sizes[-1] > (2e-14 if order == 5 else 1e-12)  # above rounding


@pytest.mark.parametrize("schedule", ORDER_CASES.values(), ids=ORDER_CASES)
@pytest.mark.parametrize("name", ["pec", "ggf"])
def test_order_of_the_error_with_noise(name, schedule):
    z = np.random.default_rng(5).normal(size=(16, 2))
    steps = 0.5 ** np.arange(8.0, 13.0)
    sizes = one_step_errors(BUILDS[name][0](), schedule, 0.4, steps, lambda n: z)
    assert abs(np.polyfit(np.log(steps), np.log(sizes), 1)[0] - 1.5) <= 0.1, sizes


@pytest.mark.parametrize(
    "name", ["ggf", "ggf_lamba", "dpm_12", "dpm_23", "bosh3_rho", "tsit5_flow"]
)
def test_the_error_is_the_difference_of_two_solutions(name):
    """One step: error = low order less high order (GGF: high less low), both made independently."""
    build, order, _ = BUILDS[name]
    solver, h = build(), 0.3
    times = VP.time(np.array([0.1, 0.1 + h]))
    places = positions_of(solver, VP, times)
    x = np.random.default_rng(6).normal(size=(5, 2))
    found = walk(solver, VP, places, mixture(VP), x)
    high, error = found.states[1], found.errors[0]
    if is_drift(name):
        plain = embedded.GGF(extrapolate=False, lamba=name == "ggf_lamba")
        low = walk(plain, VP, places, mixture(VP), x).states[1]
        np.testing.assert_allclose(error, high - low, rtol=1e-10)
    elif name.startswith("dpm"):
        grid, denoise = times, mixture(VP)
        if order == 2:
            plan = df.solvers.euler(VP, grid)
        else:
            plan = df.solvers.dpm_solver_2s(VP, grid, r=1 / 3, clock="rho")
        np.testing.assert_allclose(
            error, run_plan(plan, denoise, x)[-1] - high, rtol=1e-9, atol=1e-15
        )
    else:
        low = embedded_step(name.split("_")[0], solver, times, mixture(VP), x)
        np.testing.assert_allclose(error, high - low, rtol=1e-9, atol=1e-14)


def embedded_step(name, solver, times, denoise, x):
    """The embedded solution by the book: y + Delta sum_j (b_j - e_j) f_j with the last stage."""
    tableau = runge_kutta.TABLEAUS[name]
    rows = ((), *tableau.rows, tableau.weights)
    alpha, sigma = levels(VP, times)
    scales = alpha if solver.time_variable == "rho" else alpha + sigma
    q, end = sigma / scales
    slopes = []
    for c, row in zip((0.0, *tableau.nodes, 1.0), rows, strict=True):
        y = x / scales[0] + (end - q) * sum(a * f for a, f in zip(row, slopes, strict=True))
        level = q + c * (end - q)
        lam = -np.log(level) if solver.time_variable == "rho" else np.log1p(-level) - np.log(level)
        t = float(VP.time(np.array(lam)))
        scale = float(VP.alpha(t)) + (0.0 if solver.time_variable == "rho" else float(VP.sigma(t)))
        slopes.append((y - denoise(scale * y, t)) / level)
    weights = np.append(tableau.weights, 0.0) - np.array(runge_kutta.TABLEAUS[name].errors)
    return scales[1] * (
        x / scales[0] + (end - q) * sum(b * f for b, f in zip(weights, slopes, strict=True))
    )


# Tableaus of the embedded methods.


def stages_of(name):
    """The matrix a and nodes c of all stages, the one at the new state last."""
    tableau = runge_kutta.TABLEAUS[name]
    rows = (*tableau.rows, tableau.weights)
    a = np.zeros((len(rows) + 1, len(rows) + 1))
    for i, row in enumerate(rows):
        a[i + 1, : i + 1] = row
    return a


def condition(weights, a, tree):
    def stage(tree):
        return np.prod([np.ones(len(a))] + [a @ stage(branch) for branch in tree], axis=0)

    return np.dot(weights, stage(tree)) - 1.0 / density(tree)


@pytest.mark.parametrize(("name", "order"), [("bosh3", 2), ("dopri5", 4), ("tsit5", 4)])
def test_embedded_order_conditions(name, order):
    a, error = stages_of(name), np.array(runge_kutta.TABLEAUS[name].errors)
    assert abs(error.sum()) < 1e-15
    lower = np.append(runge_kutta.TABLEAUS[name].weights, 0.0) - error
    for n in range(1, order + 1):
        # Tsitouras' weights have 16 to 19 digits, his error's first order conditions 1e-16
        assert max(abs(condition(lower, a, tree)) for tree in trees(n)) <= 3e-14
    assert max(abs(condition(lower, a, tree)) for tree in trees(order + 1)) > 1e-4


# Against the plans of the same names.


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("clock", ["rho", "flow"])
@pytest.mark.parametrize("name", TABLEAUS)
def test_runge_kutta_is_the_plan(name, clock, schedule):
    compare(
        embedded.RungeKutta(name, clock=clock), getattr(df.solvers, name), schedule, clock=clock
    )


@each_schedule
def test_dpm_is_the_plan(schedule):
    compare(embedded.DPM(2), df.solvers.dpm_solver_2s, schedule, clock="rho")
    compare(embedded.DPM(3), df.solvers.dpm_solver_3s, schedule, clock="rho")


@each_schedule
def test_pec_is_the_plan(schedule):
    """The walk's states, corrected at once, as the plan's model inputs, corrected by its next row.

    The network is asked at the model inputs: those of the walk are what it saw.
    """
    grid, random = even(schedule, 7, 4.0, 0.4), np.random.default_rng(7)
    x, z = random.normal(size=(3, 2)), random.normal(size=(7, 3, 2))
    seen, denoise = [], mixture(schedule)

    def spy(x, t):
        seen.append(x)
        return denoise(x, t)

    solver = embedded.PEC()
    walk(solver, schedule, positions_of(solver, schedule, grid), spy, x, z.__getitem__)
    wanted = run_plan(df.solvers.pec(schedule, grid), denoise, x, z.__getitem__)
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def compare(solver, build, schedule, **options):
    grid = even(schedule, 9, 4.0, 0.4)
    plan, denoise = build(schedule, grid, **options), mixture(schedule)
    x = np.random.default_rng(9).normal(size=(5, 2)) * schedule.sigma(grid[0])
    wanted = run_plan(plan, denoise, x)
    # an inner call may stand at the step's end, too: the state is the last one there
    last = {t: i for i, t in enumerate([*plan.times, plan.end])}
    ends = [last[t] for t in grid[1:]]
    got = walk(solver, schedule, positions_of(solver, schedule, grid), denoise, x).states[1:]
    scale = np.abs(wanted).max() * max(1.0, np.abs(plan.matrix).max())
    assert np.abs(got - wanted[ends]).max() <= 1e-12 * scale
