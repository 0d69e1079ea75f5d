"""Splitting solvers: published and released formulas, identities, runs, ends, refusals."""

from functools import cache, partial

import numpy as np
import pytest
from guided_mixture import GuidedMixture
from numpy_executor import walk
from test_solvers import SCHEDULES as ALL_SCHEDULES
from test_solvers import many_grids

import diffast as df
from diffast import grids, schedules
from diffast.solvers import additive_multistep, ghvb, heavy_ball, lms, ltsp, stsp

TABLE = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
VP = schedules.vp_linear()
SCHEDULES = {"vp": VP, "edm": schedules.edm(), "flow": schedules.flow(), "table": TABLE}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
BATCH = 48


def sampled(plan, problem, x):
    """The sample for a network and guidance that are given in closed form."""
    return walk(plan, problem.x0, x, gradients={"g1": problem.gradient})[-1]["x"]


@cache
def problem(schedule, scale=4.0, rough=0.0, batch=BATCH):
    random = np.random.default_rng(0)
    return GuidedMixture(schedule, random.integers(0, 4, batch), scale, rough), random.normal(
        size=(batch, 2)
    )


# The released program: tables of alpha_bar, steps by index, AB weights for even steps.

EVEN = ((1,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def released(which, order, steps, model, x):
    """LTSP or STSP as the released program computes them, in alpha_bar and index."""
    ab = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    index = np.round(np.linspace(0, 999, steps)).astype(int)[::-1]
    sigma_of = {int(i): np.sqrt((1 - ab[i]) / ab[i]) for i in index}
    past = []
    for n, i in enumerate(index):
        following = ab[index[n + 1]] if n + 1 < steps else 1.0
        now, then = sigma_of[int(i)], np.sqrt((1 - following) / following)
        share = 0.5 if which == "stsp" else 1.0
        # xbar -> xbar - share (sigma' - sigma) sqrt(1 - ab) grad
        x = x - np.sqrt(ab[i]) * share * (then - now) * np.sqrt(1 - ab[i]) * model.gradient(x, i)
        eps = (x - np.sqrt(ab[i]) * model.x0(x, i)) / np.sqrt(1 - ab[i])
        past = [eps, *past][:order]
        mean = sum(w * e for w, e in zip(EVEN[len(past) - 1], past, strict=True))
        x = np.sqrt(following) * (x / np.sqrt(ab[i]) + (then - now) * mean)
        if which == "stsp":
            half = 0.5 * (now + then)
            weight = np.sqrt(1 - 1 / (1 + half**2))
            told = index[min(n + 1, steps - 1)]
            x = x - np.sqrt(following) * share * (then - now) * weight * model.gradient(x, told)
    return x


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize(("which", "make"), [("ltsp", ltsp), ("stsp", stsp)])
def test_the_released_program_s_numbers(which, make, order):
    model, x = problem(TABLE)
    for steps in (6, 13):
        plan = make(TABLE, grids.linspace(TABLE, steps), "plms", order, compat="released")
        want = released(which, order, steps, model, x)
        gap = np.abs(sampled(plan, model, x) - want).max()
        assert gap <= 1e-11 * np.abs(want).max()


# The published forms, in y = x/alpha and rho.


class Published:
    """Euler's steps for both parts, whatever the schedule."""

    def __init__(self, schedule, model):
        self.schedule, self.model = schedule, model

    def rho(self, t):
        return float(self.schedule.sigma(t) / self.schedule.alpha(t))

    def eps(self, y, t):
        return (y - self.model.mean(y, self.rho(t))) / self.rho(t)

    def f(self, y, t):
        return self.rho(t) * self.model.pull(y, self.rho(t)) if self.rho(t) else 0.0

    def run(self, step, grid, x):
        y = x / self.schedule.alpha(grid[0])
        for s, t in zip(grid[:-1], grid[1:], strict=True):
            y = step(self, y, s, t, self.rho(s) - self.rho(t))
        return self.schedule.alpha(grid[-1]) * y


def lie(one, y, s, t, h):
    z = y - h * one.eps(y, s)
    return z + h * one.f(z, t)


def lie_guidance_first(one, y, s, t, h):
    z = y + h * one.f(y, s)
    return z - h * one.eps(z, s)


def strang(one, y, s, t, h):
    z = y + h / 2 * one.f(y, s)
    z = z - h * one.eps(z, s)
    return z + h / 2 * one.f(z, t)


def strang_rk2(one, y, s, t, h):
    def heun_half(y, t):
        first = one.f(y, t)
        return y + h / 4 * (first + one.f(y + h / 2 * first, t))

    z = heun_half(y, s)
    first = one.eps(z, s)
    last = one.eps(z - h * first, t) if one.rho(t) else first
    return heun_half(z - h / 2 * (first + last), t)


PUBLISHED = {
    "ltsp": (lie, partial(ltsp, inner="euler")),
    "ltsp guidance first": (
        lie_guidance_first,
        partial(ltsp, inner="euler", first="guidance"),
    ),
    "stsp": (strang, partial(stsp, inner="euler")),
    "stsp rk2": (strang_rk2, partial(stsp, inner="heun", guidance="rk2")),
}


def cases(schedule, steps=5):
    """A grid down to sigma = 0 and one that ends above it, from a finite sigma/alpha."""
    yield grids.karras(schedule, steps, sigma_max=9.0)
    yield grids.karras(schedule, steps, sigma_max=9.0, to_zero=False)


@pytest.mark.parametrize("name", PUBLISHED)
@each_schedule
def test_published_forms(schedule, name):
    step, make = PUBLISHED[name]
    model, z = problem(schedule)
    for grid in cases(schedule):
        x = schedule.sigma(grid[0]) * z
        got = sampled(make(schedule, grid), model, x)
        want = Published(schedule, model).run(step, grid, x)
        assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()


def test_a_heavy_ball_on_the_guidance():
    model, z = problem(VP)
    for grid in cases(VP):
        velocity = []

        def step(one, y, s, t, h, velocity=velocity):
            y = y - h * one.eps(y, s)
            if one.rho(t):
                new = one.f(y, t)
                velocity.append(0.3 * velocity[-1] + 0.7 * new if velocity else new)
                y = y + h * velocity[-1]
            return y

        x = VP.sigma(grid[0]) * z
        plan = ltsp(VP, grid, "euler", guidance="heavy_ball", damping=0.7)
        want = Published(VP, model).run(step, grid, x)
        np.testing.assert_allclose(sampled(plan, model, x), want, rtol=0, atol=1e-12)


def test_ghvb_on_the_guidance_and_merged_halves():
    """Lengths of merged sub-steps are means of their neighbours'."""
    model, z = problem(VP)
    grid, b = grids.karras(VP, 6, sigma_max=9.0, to_zero=False), 0.6
    one, v = Published(VP, model), []
    rho = [one.rho(t) for t in grid]
    x = VP.sigma(grid[0]) * z
    y = x / VP.alpha(grid[0])
    for n, t in enumerate(grid):
        h = (rho[max(n - 1, 0)] - rho[min(n + 1, len(grid) - 1)]) / 2
        new = one.f(y, t)
        v.insert(0, (1 - b) * v[0] + b * new if v else new)
        slope = v[0]
        if len(v) > 1:
            slope = ((2 + b) * v[0] - (2 - b) * v[1]) / (2 * b)
        y = y + h * slope
        if n + 1 < len(grid):
            y = y - (rho[n] - rho[n + 1]) * one.eps(y, t)
    plan = stsp(VP, grid, "euler", guidance="ghvb", damping=b, merged=True)
    want = VP.alpha(grid[-1]) * y
    np.testing.assert_allclose(sampled(plan, model, x), want, rtol=0, atol=1e-12)
    assert (plan.nfe, plan.gradient_evaluations) == (6, 7)


# What equals what.

INNERS = (
    "adams",
    "lms",
    "plms",
    "deis",
    "exponential_adams",
    "ghvb",
    "euler",
    "dpmpp_2m",
    "heun",
    "rk4",
)


@pytest.mark.parametrize("name", INNERS)
@each_schedule
def test_without_guidance_each_is_its_inner_solver(schedule, name):
    """Also from alpha = 0 and into sigma = 0, so that the order is that of the inner solver."""
    own = {"plms": df.solvers.ipndm}.get(name, df.solvers.get(name))
    own = partial(own, order=2 if name == "adams" else 4) if name in INNERS[:6] else own
    model, z = problem(schedule)
    makes = [ltsp, partial(ltsp, first="guidance"), stsp, partial(stsp, merged=True)]
    makes += [partial(ltsp, guidance="ghvb"), partial(stsp, guidance="rk2")]
    if name not in ("heun", "rk4"):
        makes += [partial(additive_multistep, guidance=how) for how in ("pec", "adams", "euler")]
    for grid in (*cases(schedule), grids.default(schedule, 6)):
        x = schedule.sigma(grid[0]) * z
        want = walk(own(schedule, grid), model.x0, x)[-1]["x"]
        for make in makes:
            got = walk(make(schedule, grid, inner=name), model.x0, x)[-1]["x"]
            assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()


@each_schedule
def test_additive_euler_and_adams_are_the_unsplit_methods(schedule):
    """Both slopes by one rule are one slope: what guidance in the x0 estimate gives."""
    model, z = problem(schedule)

    def guided(x, t):
        alpha, sigma = model.levels(t)
        return model.x0(x, t) + sigma**2 / alpha * model.gradient(x, t)

    for grid in cases(schedule):
        x = schedule.sigma(grid[0]) * z
        pairs = (
            (df.solvers.euler, partial(additive_multistep, inner="euler", guidance="euler")),
            (
                partial(lms, order=2, final="full"),
                partial(
                    additive_multistep, inner=partial(lms, order=2, final="full"), guidance="adams"
                ),
            ),
        )
        for one, other in pairs:
            want = walk(one(schedule, grid), guided, x)[-1]["x"]
            got = sampled(other(schedule, grid), model, x)
            assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()


def test_pec_on_the_guidance():
    """Adams-Bashforth of order 2 to the point where the gradient is taken, then the trapezoid."""
    model, z = problem(VP)
    for grid in cases(VP):
        past = {}

        def step(one, y, s, t, h, past=past):
            f = past.get("new", one.f(y, s))
            share = h / (2 * past["h"]) if "h" in past else 0.0
            moved = y - h * one.eps(y, s)
            if one.rho(t):
                predicted = moved + h * (f + share * (f - past.get("f", f)))
                past.update(h=h, f=f, new=one.f(predicted, t))
            else:
                past["new"] = 0.0
            return moved + h / 2 * (f + past["new"])

        x = VP.sigma(grid[0]) * z
        plan = additive_multistep(VP, grid, "euler")
        want = Published(VP, model).run(step, grid, x)
        np.testing.assert_allclose(sampled(plan, model, x), want, rtol=0, atol=1e-12)


# Ends and refusals.


@each_schedule
def test_a_guide_has_no_say_at_the_clean_end(schedule):
    """sigma = 0 there, so no gradient is taken; each step else takes as many as it should."""
    for grid, ends in zip(cases(schedule, 5), (0, 1), strict=True):
        for build, count in (
            (ltsp, 4 + ends),
            (partial(ltsp, first="guidance"), 5),
            (stsp, 9 + ends),
            (partial(stsp, merged=True), 5 + ends),
            (additive_multistep, 5 + ends),
            (partial(additive_multistep, guidance="adams"), 5),
        ):
            plan = build(schedule, grid)
            assert (plan.steps, plan.nfe, plan.gradient_evaluations) == (5, 5, count)
            assert plan.levels[-1, plan.rows.index("x")].tolist() == pytest.approx(
                [float(schedule.alpha(grid[-1])), float(schedule.sigma(grid[-1]))]
            )


EVERY = {
    "ltsp": ltsp,
    "ltsp ghvb": partial(ltsp, first="guidance", guidance="ghvb"),
    "ltsp heavy ball": partial(ltsp, inner=heavy_ball),
    "stsp": stsp,
    "stsp rk": partial(stsp, inner="rk4", guidance="rk2"),
    "stsp released": partial(stsp, compat="released"),
    "additive": additive_multistep,
    "additive cfg": partial(additive_multistep, guided="cfg", guidance="heavy_ball"),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES.values(), ids=ALL_SCHEDULES)
def test_every_grid_has_a_plan_that_passes_its_checks(schedule, name):
    for grid in many_grids(schedule):
        plan = EVERY[name](schedule, grid)
        assert (plan.steps, plan.start, plan.end) == (len(grid) - 1, grid[0], grid[-1])


GRID = grids.karras(VP, 4)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: ltsp(VP, GRID, "plsm"), "ltsp: inner = 'plsm', but it must be a solver or one of"),
        (lambda: ltsp(VP, GRID, "euler", 2), "order = 2, but inner = 'euler' has no order"),
        (lambda: ltsp(VP, GRID, lms, 2), "order = 2, but it must be None with a function"),
        (lambda: stsp(VP, GRID, order=5), "stsp: order = 5, but it must be 1 to 4"),
        (lambda: ltsp(VP, GRID, first="network"), "first = 'network', but it must be 'diffusion'"),
        (lambda: ltsp(VP, GRID, guidance="plms"), "guidance = 'plms', but it must be 'euler' or"),
        (lambda: ltsp(VP, GRID, guidance="heavy_ball", damping=0.0), r"damping = 0.0, .* \(0, 1\]"),
        (lambda: ltsp(VP, GRID, damping=1.5), r"ltsp: damping = 1.5, but it must be in \(0, 1\]"),
        (lambda: ltsp(VP, GRID, damping=np.nan), "ltsp: damping = nan"),
        (lambda: ghvb(VP, GRID, damping=-1), "ghvb: damping = -1"),
        (lambda: ghvb(VP, GRID, 6), "ghvb: order = 6, but it must be 1 to 5"),
        (lambda: heavy_ball(VP, GRID, "heun"), "heavy_ball: .* has 7 calls for 4 steps"),
        (lambda: additive_multistep(VP, GRID, "rk4"), "13 calls for 4 steps"),
        (
            lambda: additive_multistep(VP, GRID, guidance="pec", guided="cfg"),
            "'cfg' has its guidance from the network call, but guidance = 'pec'",
        ),
        (lambda: additive_multistep(VP, GRID, guided="loss"), "guided = 'loss'"),
        (lambda: ltsp(VP, GRID, df.solvers.unipc), "one state at 1 times, but the grid has 4"),
        (lambda: ltsp(VP, GRID, ltsp), "takes gradients itself"),
        (lambda: ltsp(VP, GRID, compat="official"), "compat = 'official', but it must be"),
        (lambda: ltsp(VP, GRID, "heun", compat="released"), "the released program has 'plms'"),
        (lambda: stsp(VP, GRID, merged=True, compat="released"), "merged = True, but"),
        (lambda: stsp(VP, GRID, guidance="ghvb"), "'ghvb' joins sub-steps at different times"),
        (lambda: ltsp(VP, GRID[::-1]), "strictly from noisy to clean"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


def test_a_changed_weight_of_a_guidance_stage_is_refused():
    """Also where the state stands far below the noise of the step before it."""
    edm = SCHEDULES["edm"]
    for grid in (grids.karras(edm, 4), np.array([80.0, 0.002, 0.001])):
        plan = ltsp(edm, grid)
        for i in np.flatnonzero(~np.isnan(plan.gradients)):
            for share in (1 - 1e-6, 1 + 1e-6):
                weights = np.array(plan.weights("x", "x"))
                weights[i] = share
                with pytest.raises(ValueError, match=f"stage {i}: x holds"):
                    plan.with_weights({("x", "x"): weights})
