"""Embedded solvers: GGF by the book, DPM's ancestral noise, rows from torch, refusals."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from embedded_walk import interval_of, walk
from test_embedded import BUILDS, EDM, SCHEDULES, VP, even, levels
from test_solvers import mixture

import diffast as df
from diffast.ops.schema import FLAGS, RULE
from diffast.solvers import embedded
from diffast.solvers.core.phi import h_phi_2
from diffast.solvers.embedded import Step
from diffast.solvers.embedded.controllers import NAMED, PLAIN
from diffast.solvers.embedded.pec import share


def test_ggf_by_the_book():
    """Algorithm 1 of the paper with its own f, g and score, one step with noise."""
    t, h = 0.6, 0.07
    x, z = np.random.default_rng(10).normal(size=(2, 6, 2))
    denoise, random_z = mixture(VP), z

    def drift(x, t):
        beta, alpha, sigma = 0.1 + 19.9 * t, float(VP.alpha(t)), float(VP.sigma(t))
        score = (alpha * denoise(x, t) - x) / sigma**2
        return -0.5 * beta * x - beta * score

    def g(t):
        return np.sqrt(0.1 + 19.9 * t)

    low = x - h * drift(x, t) + np.sqrt(h) * g(t) * z
    second = x - h * drift(low, t - h) + np.sqrt(h) * g(t - h) * z
    found = walk(embedded.GGF(), VP, [-t, -(t - h)], denoise, x, lambda n: random_z)
    np.testing.assert_allclose(found.states[1], 0.5 * (low + second), rtol=1e-11)
    np.testing.assert_allclose(found.errors[0], 0.5 * (second - low), rtol=1e-9, atol=1e-12)
    # Lamba: noise after the decision, the error of the drift alone
    plain = x - h * drift(x, t)
    slope = 0.5 * h * (drift(plain, t - h) - drift(x, t))
    wanted = plain - slope + np.sqrt(h) * g(t) * z
    for solver in (embedded.GGF(lamba=True), embedded.EulerHeun()):
        found = walk(solver, VP, [-t, -(t - h)], denoise, x, lambda n: random_z)
        np.testing.assert_allclose(found.states[1], wanted, rtol=1e-11)
        np.testing.assert_allclose(found.errors[0], -slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("lamba", [False, True])
def test_the_diffusion_is_that_of_the_schedule(schedule, lamba):
    """Over a short step the variance of a point mass falls as the forward SDE lets it rise."""
    solver = embedded.GGF(lamba=lamba)
    interval = interval_of(solver, schedule)
    at = 0.4 * interval.start + 0.6 * interval.end
    to = at + 1e-4 * (interval.end - interval.start)
    times = interval.nodes(np.array([at, to])).time
    alpha, sigma = levels(schedule, times)
    keep = walk(solver, schedule, [at, to], lambda x, t: 0.0 * x, np.ones((1, 1)))
    drawn = walk(
        solver,
        schedule,
        [at, to],
        lambda x, t: 0.0 * x,
        np.zeros((1, 1)),
        lambda n: np.ones((1, 1)),
    )
    variance = (keep.states[1] * sigma[0]) ** 2 + drawn.states[1] ** 2
    change = variance - sigma[0] ** 2
    wanted = sigma[1] ** 2 - sigma[0] ** 2
    np.testing.assert_allclose(change, wanted, rtol=2e-2)


def test_tolerances_of_ggf():
    nodes = interval_of(embedded.GGF(), VP).nodes(np.array([[-0.6], [-0.5]]))
    start, end = (type(nodes)(*(field[k] for field in nodes)) for k in (0, 1))
    step = Step(np, start, end, end)
    for previous, name in ((True, "prev"), (False, "y")):
        solver = embedded.GGF(previous=previous, rtol=0.3, atol=0.2)
        rows = solver.rows_after(step, 1)
        assert rows["size"] == {name: 1.0}
        assert rows["new_size"] == {"x": 1.0}
        assert solver.tolerance(step) == (0.2, 0.3)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_ancestral_dpm_keeps_the_noise_level(schedule, order):
    grid, x0 = even(schedule, 5, 4.0, 0.4), np.array([0.3])
    lam, (alpha, sigma) = schedule.lam(grid), levels(schedule, grid)
    fresh = np.eye(6)[1:, :, None]
    for eta, s_noise in ((0.3, 1.0), (1.0, 1.0), (1.0, 0.9)):
        solver = embedded.DPM(order, eta=eta, s_noise=s_noise)
        # the first column carries the noise of the start, the others that of one step each
        x = np.zeros((6, 1)) + alpha[0] * x0
        x[0] += sigma[0]
        found = walk(solver, schedule, lam, lambda x, t: x0 + 0.0 * x, x, fresh.__getitem__)
        eps = (found.states - alpha[:, None, None] * x0)[..., 0]
        if s_noise == 1.0:
            np.testing.assert_allclose((eps**2).sum(1), sigma**2, rtol=1e-12)
        assert np.abs(found.errors).max() < 1e-12
        ratio = (sigma[1:] / alpha[1:]) / (sigma[:-1] / alpha[:-1])
        up = s_noise * eta * sigma[1:] * np.sqrt(1.0 - ratio**2)  # k-diffusion's, for alpha = 1
        np.testing.assert_allclose([eps[n + 1, n + 1] for n in range(5)], up, rtol=1e-10)


def test_ancestral_dpm_stays_below_a_bound():
    # k-diffusion: sigma_down is not below sigma_min, the noise is what is left
    end = 1.0
    solver = embedded.DPM(2, eta=1.0, lam_end=end)
    for to in (0.7, 0.95, 1.0):
        reach = solver.reach(np, np.array([0.2]), np.array([to]))[0]
        free = embedded.DPM(2, eta=1.0).reach(np, np.array([0.2]), np.array([to]))[0]
        assert reach == min(end, free)
        found = walk(
            solver,
            EDM,
            [0.2, to],
            lambda x, t: 0.0 * x,
            np.zeros((1, 1)),
            lambda n: np.ones((1, 1)),
        )
        wanted = np.exp(-2.0 * to) - np.exp(-2.0 * reach)
        np.testing.assert_allclose(found.states[1, 0, 0] ** 2, wanted, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("function", [share, h_phi_2])
def test_small_steps_do_not_cancel(function):
    def exact(h):
        h = Fraction(h)
        if function is share:  # 1 - 2h / (e^2h - 1)
            total, term = Fraction(0), Fraction(1)
            for k in range(1, 30):
                term *= 2 * h / k
                total += term
            return float(1 - 2 * h / total)
        total, term = Fraction(0), Fraction(1)
        for k in range(2, 30):
            term *= h / k
            total += term
        return float(total)  # (e^h - 1) / h - 1

    for h in (1e-12, 1e-6, 1e-4, 9.99e-4, 1.001e-3, 3e-3, 9.9e-3, 1.01e-2, 0.03, 0.3, 1.0):
        found = float(function(np, np.array([h]))[0])
        assert found == pytest.approx(exact(h), rel=3e-12), h


# The same tables from another array module, and refusals.


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", [*BUILDS, "ancestral"])
def test_torch_makes_the_same_rows(name, schedule):
    last = float(schedule.lam(schedule.t_min))
    solver = embedded.DPM(3, eta=0.7, lam_end=last) if name == "ancestral" else BUILDS[name][0]()
    interval, random = interval_of(solver, schedule), np.random.default_rng(11)
    first = max(interval.start, -5.0) if solver.time_variable == "lam" else interval.start
    at, to = np.sort(random.uniform(first, interval.end, size=(2, 64)), axis=0)
    to[:8] = at[:8] + 1e-6 * np.abs(at[:8])  # short steps, too
    to = np.minimum(to, interval.end)
    to, at = to[to > at], at[to > at]
    numpy, tensor = [], []
    for xp, found in ((np, numpy), (torch, tensor)):
        a, b = (at, to) if xp is np else (torch.from_numpy(at), torch.from_numpy(to))
        reach = solver.reach(xp, a, b)
        found.append({"reach": reach})
        for call, part in enumerate((0.0, *solver.fractions)):
            positions = (a, b, reach if part == 1.0 else a + part * (reach - a))
            with np.errstate(divide="ignore"):
                nodes = [interval.nodes(np.asarray(p)) for p in positions]
            if xp is torch:
                nodes = [
                    type(n)(*(None if f is None else torch.from_numpy(f) for f in n)) for n in nodes
                ]
            step = Step(xp, *nodes)
            found += solver.rows_before(step, call).values()
            found += solver.rows_after(step, call).values()
        found.append({"atol": solver.tolerance(step)[0]})
        found.append(solver.estimate(step.end))
    assert len(numpy) == len(tensor)
    for one, other in zip(numpy, tensor, strict=True):
        assert list(one) == list(other)
        for key, weight in one.items():
            if not isinstance(weight, float):
                assert other[key].dtype == torch.float64
            # weights of nearly nothing come from differences of what is rounded to 1e-16; the new
            # noise of a short step is the root of one
            atol = 1e-12 if key == "z1" and name == "ancestral" else 1e-14
            np.testing.assert_allclose(np.asarray(other[key]), weight, rtol=1e-12, atol=atol)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: embedded.get("heun"),
            "solver 'heun' is not known, but these are: pec, ggf",
        ),
        (lambda: embedded.PEC(detail=0.0), "pec: detail = 0.0, but it must be above 0"),
        (lambda: embedded.GGF(theta=-1.0), "ggf: theta = -1.0, but it must be above 0"),
        (
            lambda: embedded.GGF(rtol=-0.1),
            "ggf: rtol = -0.1, but it must be finite and not",
        ),
        (lambda: embedded.EulerHeun(atol=np.inf), "euler_heun: atol = inf, but it must be finite"),
        (lambda: embedded.DPM(4), "dpm: order = 4, but it must be 2 or 3"),
        (lambda: embedded.DPM(eta=1.5), r"dpm: eta = 1.5, but it must lie in \[0, 1\]"),
        (lambda: embedded.DPM(eta=np.nan), r"dpm: eta = nan, but it must lie in \[0, 1\]"),
        (lambda: embedded.RungeKutta("rk4"), "runge_kutta: name = 'rk4', but these are known"),
        (lambda: embedded.RungeKutta("bosh3", clock="lam"), "bosh3: clock = 'lam', but it must be"),
        (lambda: embedded.RungeKutta("tsit5", rtol=0, atol=0), "tsit5: rtol = 0 and atol = 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_names():
    for name, build in embedded.EMBEDDED.items():
        assert embedded.get(name) is build
        assert build().name == name
    assert df.embedded is df.pairs is embedded


def test_controllers_have_the_numbers_of_the_op():
    chosen_by_the_run = {"always", "last", "restart", "final", "most_calls"}
    assert set(PLAIN) == {*RULE, *FLAGS} - chosen_by_the_run
    for build in embedded.EMBEDDED.values():
        assert set(build().controller) == set(PLAIN)
    for rule in (embedded.pid(2), embedded.plain(0.5), *NAMED.values()):
        assert set(rule) <= set(PLAIN)
