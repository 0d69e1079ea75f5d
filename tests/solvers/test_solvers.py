"""Solvers: order of convergence, exact cases, published formulas, identities between methods."""

import re
from functools import cache, partial

import numpy as np
import pytest
from numpy_executor import run
from places import ROOT
from plan_tables import rows_of_x
from scipy.integrate import solve_ivp
from solver_cases import ALL_SOLVERS, COUNTS

from diffast import grids, schedules, solvers

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2

SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(np.append(BETAS[:-1], 1.0)),
}
each_solver = pytest.mark.parametrize("solver", ALL_SOLVERS, ids=lambda s: s.name)
each_strong = pytest.mark.parametrize(
    "solver", [s for s in ALL_SOLVERS if s.sense == "strong"], ids=lambda s: s.name
)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def inner(make, schedule, steps):
    """A grid from sigma/alpha = 10 to 0.1, made by `make`."""
    if make is grids.uniform_time:
        start, end = schedule.time(-np.log([10.0, 0.1]))
        return grids.uniform_time(schedule, steps, start=start, end=end)
    return make(schedule, steps, sigma_max=10.0, sigma_min=0.1, to_zero=False)


# Smooth in lam on each schedule. uniform_time is not everywhere: an edm grid even in sigma takes
# its last step over half the range of lam.
ORDER_CASES = {
    "vp_linear-logsnr": (schedules.vp_linear(), grids.uniform_logsnr),
    "vp_linear-time": (schedules.vp_linear(), grids.uniform_time),
    "vp_cosine-time": (schedules.vp_cosine(), grids.uniform_time),
    "sub_vp-karras": (schedules.sub_vp(), grids.karras),
    "edm-karras": (schedules.edm(), grids.karras),
    "flow-time": (schedules.flow(), grids.uniform_time),
    "flow-logsnr": (schedules.flow(), grids.uniform_logsnr),
    "from_betas-logsnr": (SCHEDULES["from_betas"], grids.uniform_logsnr),
}
# Every solver on the first of these, and on every fourth of the others in turn. All eight for every
# solver would take too long for each change.
ORDERS = [
    (solver, case)
    for i, solver in enumerate(ALL_SOLVERS)
    for k, case in enumerate(ORDER_CASES)
    if k == 0 or (i + k) % 4 == 0
]


@cache
def mixture(schedule):
    """Posterior mean E[x0 | x, t] of three Gaussians in the plane, [B, 2] -> [B, 2].

    A Gaussian's share is exp(-|x - alpha mean|^2 / (2 total)) with total = alpha^2 variance +
    sigma^2; |x|^2 is common to all and left out. What depends on t alone is kept.
    """
    means = np.array([[1.0, 0.3], [-0.8, 0.9], [-0.1, -1.1]])
    weights, variance = np.array([0.5, 0.2, 0.3]), 0.16

    @cache
    def at(t):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        total = alpha**2 * variance + sigma**2
        constant = np.log(weights) - 0.5 * alpha**2 / total * (means**2).sum(1)
        pull = alpha * variance / total
        return alpha / total * means.T, constant, pull, (1.0 - pull * alpha) * means

    def denoise(x, t):
        slope, constant, pull, rest = at(t)
        share = np.exp(x @ slope + constant)
        return pull * x + (share @ rest) / share.sum(1, keepdims=True)

    return denoise


@cache
def reference(schedule, start, end):
    """Eight states at start, and where the probability-flow ODE takes them, to 1e-13.

    For y = x/alpha it is dy/dlam = x0(x) - y.
    """
    denoise = mixture(schedule)
    random = np.random.default_rng(0)
    x = schedule.alpha(start) * random.normal(size=(8, 2)) * 0.7
    x += schedule.sigma(start) * random.normal(size=(8, 2))

    def slope(lam, y):
        t = schedule.time(lam)
        y = y.reshape(-1, 2)
        return (denoise(schedule.alpha(t) * y, t) - y).ravel()

    lam = schedule.lam(np.array([start, end]))
    y = (x / schedule.alpha(start)).ravel()
    found = solve_ivp(slope, lam, y, method="DOP853", rtol=1e-13, atol=1e-14)
    return x, schedule.alpha(end) * found.y[:, -1].reshape(-1, 2)


def fitted_slope(errors, counts=COUNTS):
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def strong_errors(build, schedule, make, counts=COUNTS):
    """Root mean square distance to the reference, a step count each."""
    return both_errors(build, schedule, make, counts)[0]


# One Gaussian's error may pass through zero on its way; of four not all do.
VARIANCES = np.array([0.05, 0.2, 0.4, 1.5])


def both_errors(build, schedule, make, counts=COUNTS):
    """Root mean square distances, a step count each: to the reference; to the closed form.

    The closed form is that of Gaussian data of four variances, a state of 1 each:
    x(t) = x(s) sqrt((alpha_t^2 v + sigma_t^2) / (alpha_s^2 v + sigma_s^2)). In one run with the
    mixture's states, since a plan costs more to build than to run.
    """
    grid = make(schedule, 2)
    x, truth = reference(schedule, grid[0], grid[-1])
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    level = np.sqrt(alpha[:, None] ** 2 * VARIANCES + sigma[:, None] ** 2)
    truth = np.append(truth, level[-1] / level[0])
    of_mixture, of_gaussian = mixture(schedule), gaussians(schedule)

    def denoise(x, t):
        found = of_mixture(x[: -len(VARIANCES)].reshape(-1, 2), t).ravel()
        return np.concatenate([found, of_gaussian(x[-len(VARIANCES) :], t)])

    start, gaps = np.append(x, np.ones(len(VARIANCES))), []
    for n in counts:
        gap = run(build(schedule, make(schedule, n)), denoise, start)[-1] - truth
        gaps.append([np.sqrt(np.mean(part**2)) for part in np.split(gap, [-len(VARIANCES)])])
    return tuple(zip(*gaps, strict=True))


@cache
def errors_of(solver, case):
    """What `both_errors` are for a solver of the tuple and the name of an order case."""
    schedule, make = ORDER_CASES[case]
    return both_errors(solver.build, schedule, partial(inner, make), solver.counts)


def gaussian(schedule, variance, mean=0.0):
    """Posterior mean E[x0 | x, t] of one Gaussian."""

    @cache
    def at(t):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        pull = alpha * variance / (alpha**2 * variance + sigma**2)
        return pull, (1.0 - pull * alpha) * mean

    def denoise(x, t):
        pull, rest = at(t)
        return pull * x + rest

    return denoise


@cache
def gaussians(schedule):
    """`gaussian` of the four variances, made once: solvers ask at the same times."""
    return gaussian(schedule, VARIANCES)


def propagated(plan, grid, mean, variance):
    """Mean and variance of the sample for Gaussian data, exactly: the denoiser is affine.

    The state is its own weights on (1, initial noise, z_0 ... z_{S-1}): a plan moves it linearly.
    """
    schedule = plan.schedule
    unit = np.eye(plan.stages + 2)
    alpha, sigma = schedule.alpha(grid[0]), schedule.sigma(grid[0])
    x = alpha * mean * unit[0] + np.sqrt(alpha**2 * variance + sigma**2) * unit[1]
    denoise = gaussian(schedule, variance, mean * unit[0])
    x = run(plan, denoise, x, lambda i: unit[2 + i])[-1]
    return x[0], (x[1:] ** 2).sum()


def weak_errors(build, schedule, make, counts=COUNTS):
    """Distance of the sample's variance from the true one, a step count each."""
    mean, variance, errors = 0.7, 0.4, []
    for n in counts:
        grid = make(schedule, n)
        got_mean, got = propagated(build(schedule, grid), grid, mean, variance)
        alpha, sigma = schedule.alpha(grid[-1]), schedule.sigma(grid[-1])
        assert abs(got_mean - alpha * mean) < 1e-12
        errors.append(abs(got - alpha**2 * variance - sigma**2))
    return errors


@pytest.mark.parametrize("solver, case", ORDERS, ids=[f"{s.name}-{case}" for s, case in ORDERS])
def test_order(solver, case):
    schedule, make = ORDER_CASES[case]
    if solver.sense == "strong":
        errors, exact = errors_of(solver, case)
        # Against the closed form. Bounded from below alone: the midpoint rule has order 3 on
        # Gaussian data, see test_runge_kutta.py, and others come near one of theirs at some of
        # these steps.
        assert fitted_slope(exact, solver.counts) >= solver.order - 0.15, exact
    else:
        errors = weak_errors(solver.build, schedule, partial(inner, make), solver.counts)
    assert abs(fitted_slope(errors, solver.counts) - solver.order) <= 0.15, errors


@each_strong
def test_order_from_pure_noise_on_flow(solver):
    # alpha = 0 at the start, where lam = -inf: the first steps in lam never get small, which costs
    # second-order methods a log N (error N^2 is linear in log N up to N = 40,960), not the order
    schedule = schedules.flow()
    denoise = mixture(schedule)
    random = np.random.default_rng(3)
    x = random.normal(size=(8, 2))

    def slope(t, y):
        y = y.reshape(-1, 2)
        return ((y - denoise(y, t)) / t).ravel()

    found = solve_ivp(slope, (1.0, 0.1), x.ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    truth = found.y[:, -1].reshape(-1, 2)
    errors = []
    for n in solver.counts:
        plan = solver.build(schedule, grids.uniform_time(schedule, n, end=0.1))
        errors.append(np.sqrt(np.mean((run(plan, denoise, x)[-1] - truth) ** 2)))
    assert abs(fitted_slope(errors, solver.counts) - solver.order) <= 0.15, errors


def many_grids(schedule):
    """Grids of every make, with one to 40 steps, to the clean end and not."""
    yield grids.uniform_time(schedule, 1)
    for steps in (1, 2, 3, 7, 40):
        yield grids.uniform_time(schedule, steps)
        for make in (grids.karras, grids.uniform_logsnr):
            yield make(schedule, steps, sigma_max=10.0)
            yield make(schedule, steps, sigma_max=10.0, to_zero=False)
    random = np.random.default_rng(4)
    for power in (0.3, 1.0, 3.0):
        u = np.concatenate([[1.0], np.sort(random.random(9) ** power)[::-1], [0.0]])
        yield schedule.t_end + u * (schedule.t_start - schedule.t_end)


@each_schedule
@each_solver
def test_point_mass_is_exact_and_all_is_finite(solver, schedule):
    build, sense = solver.build, solver.sense
    x0, random = np.array([0.3, -1.2, 2.0]), np.random.default_rng(5)
    for grid in many_grids(schedule):
        plan = build(schedule, grid)
        assert_fits(plan, grid, sense, solver.name.endswith("_full"))
        eps, z = random.normal(size=3), random.normal(size=(plan.stages, 3))
        alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
        x = run(plan, lambda x, t: x0, alpha[0] * x0 + sigma[0] * eps, lambda i, z=z: z[i])[-1]
        if sense == "strong" or sigma[-1] == 0:
            # heun's weights grow with the ratio of a step and cancel: 1e-16 of them remains
            atol = 1e-12 * max(1.0, np.abs(rows_of_x(plan)).max() / 1e3)
            np.testing.assert_allclose(x, alpha[-1] * x0 + sigma[-1] * eps, rtol=0, atol=atol)
        else:
            _, variance = propagated(plan, grid, 0.3, 0.0)
            assert abs(np.sqrt(variance) - sigma[-1]) <= 1e-12


def assert_fits(plan, grid, sense, is_full):
    assert plan.steps == len(grid) - 1
    assert plan.times[0] == grid[0]
    assert plan.end == grid[-1]
    assert np.isfinite(plan.matrix).all()
    assert not (sense == "strong" and plan.stochastic)
    assert plan.stochastic or sense == "strong" or plan.steps == 1
    if plan.schedule.sigma(plan.end) == 0 and not is_full:  # the last x0 estimate, nothing else
        last = rows_of_x(plan)[-1]
        np.testing.assert_array_equal(last, np.eye(len(last))[2])
        assert plan.weights("x", "h0")[-1] in (0, plan.weights("h", "d")[-1])


def test_calls():
    edm = schedules.edm()
    for steps in (1, 2, 9):
        assert solvers.heun(edm, grids.karras(edm, steps)).stages == 2 * steps - 1
        assert solvers.heun(edm, grids.karras(edm, steps, to_zero=False)).stages == 2 * steps
        for build in (solvers.euler, solvers.ddim, solvers.euler_ancestral, solvers.dpmpp_2m):
            assert build(edm, grids.karras(edm, steps)).stages == steps
    flow = schedules.flow()
    assert solvers.heun(flow, grids.uniform_time(flow, 9)).stages == 16


def test_kinds_of_2m_part_at_second_order():
    # midpoint and heun differ in w by alpha_t h^3 / (12 h'), so h^2 d' / 12 a step, one order more
    schedule, gaps = schedules.vp_linear(), []
    for n in COUNTS:
        grid = inner(grids.uniform_logsnr, schedule, n)
        one, two = (
            run(solvers.dpmpp_2m(schedule, grid, kind), gaussian(schedule, 0.4), 1.0)[-1]
            for kind in ("midpoint", "heun")
        )
        gaps.append(abs(one - two))
    assert abs(fitted_slope(gaps) - 2) <= 0.05
    two_m, euler = solvers.dpmpp_2m(schedule, grid, "heun"), solvers.euler(schedule, grid)
    assert two_m.weights("x", "d")[0] == euler.weights("x", "d")[0]


# What a builder cannot do without.
NEEDED = {"restart": {"intervals": [(0.1, 10.0, 2, 2)]}}

# Not in the tuple, and where they are tested instead.
ELSEWHERE = {
    "restart": "test_stochastic.py: its error does not go to 0 with the outer grid alone",
    "tcd": "test_stochastic.py: it has no order, the network's answers are taken as samples",
    "dopri5": "test_runge_kutta.py: on these data order 5 shows only below rounding",
    "tsit5": "test_runge_kutta.py: the same",
    "dpm_solver_2m_sde": "test_stochastic_orders.py",
    "piadm_sde": "test_piadm.py: for alpha^2 + sigma^2 = 1 alone, and not exact in the noise level",
    "piadm_ode": "test_piadm.py: the same",
    "dpom": "test_dpum.py: not exact in the noise level, and alpha > 0 at the start",
    "dpum": "test_dpum.py: the same",
    "ltsp": "test_splitting_orders.py: with guidance; without it is its inner solver",
    "stsp": "test_splitting_orders.py: the same",
    "additive_multistep": "test_splitting_orders.py: the same",
}


def test_names():
    for name, build in solvers.SOLVERS.items():
        assert solvers.get(name) is build
        schedule = schedules.vp_linear() if name.startswith("piadm") else schedules.edm()
        plan = build(schedule, grids.karras(schedule, 3), **NEEDED.get(name, {}))
        assert plan.name.startswith(name)
    near = r"\(did you mean dpmpp_3s or dpmpp_3m or dpmpp_2s\?\)"
    with pytest.raises(ValueError, match=f"'dpmpp_3x' is not known {near}, but these are: euler"):
        solvers.get("dpmpp_3x")


def test_every_builder_is_in_the_tuple_or_tested_elsewhere():
    def builder(build):
        return builder(build.func) if isinstance(build, partial) else build

    walked = {builder(case.build) for case in ALL_SOLVERS}
    missing = {name for name, build in solvers.SOLVERS.items() if build not in walked}
    assert missing == set(ELSEWHERE)
    for name, where in ELSEWHERE.items():
        source = (ROOT / "tests" / "solvers" / where.partition(":")[0]).read_text()
        assert re.search(rf"\b{name}\b", source), name


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda s: solvers.ddim(s, [80, 1, 0], eta=1.5), r"ddim: eta = 1.5, .* \[0, 1\]"),
        (lambda s: solvers.ddim(s, [80, 1, 0], eta=-0.1), "ddim: eta = -0.1"),
        (lambda s: solvers.ddim(s, [80, 1, 0], eta=np.nan), "ddim: eta = nan"),
        (lambda s: solvers.euler_ancestral(s, [80, 1, 0], eta=2), "euler_ancestral: eta = 2"),
        (lambda s: solvers.dpmpp_2m(s, [80, 1, 0], kind="best"), "kind = 'best'"),
        (lambda s: solvers.euler(s, [0, 1, 80]), "strictly from noisy to clean"),
        (lambda s: solvers.heun(s, [80, 1, 1, 0]), "1.0 is followed by"),
        (lambda s: solvers.dpmpp_2m(s, [90, 1]), "90.0, but the schedule runs from 80.0"),
        (lambda s: solvers.dpmpp_2m(s, [80]), "shape"),
        (lambda s: solvers.heun(s, [80, np.nan, 0]), "nan"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make(schedules.edm())
