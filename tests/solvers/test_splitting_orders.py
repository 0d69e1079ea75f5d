"""Splitting solvers: orders of convergence, and few steps with strong or rough guidance."""

import warnings
from functools import cache, partial

import numpy as np
import pytest
from numpy_executor import walk
from test_solvers import fitted_slope, inner
from test_splitting import SCHEDULES, TABLE, VP, problem, sampled

import diffast as df
from diffast import grids
from diffast.solvers import additive_multistep, ipndm, ltsp, stsp


def rms(gap):
    return float(np.sqrt((gap**2).sum(-1).mean()))


# Orders.

COUNTS, LATER = (40, 80, 160), (80, 160, 320)
ORDERS = {
    "stsp heun rk2": (partial(stsp, inner="heun", guidance="rk2"), 2),
    "stsp rk4 rk2": (partial(stsp, inner="rk4", guidance="rk2"), 2),
    "stsp heun rk2 merged": (partial(stsp, inner="heun", guidance="rk2", merged=True), 2),
    "ltsp": (ltsp, 1),
    "ltsp heun rk2": (partial(ltsp, inner="heun", guidance="rk2"), 1),
    "stsp": (stsp, 1),
    "additive 2": (partial(additive_multistep, order=2), 2),
    "additive adams": (partial(additive_multistep, order=2, guidance="adams"), 2),
    "additive heavy ball": (partial(additive_multistep, guidance="heavy_ball"), 1),
}
ORDER_GRIDS = {
    "vp": (VP, grids.uniform_logsnr),
    "edm": (SCHEDULES["edm"], grids.karras),
    "flow": (SCHEDULES["flow"], grids.uniform_logsnr),
}


@cache
def reference(name):
    schedule, make = ORDER_GRIDS[name]
    model, z = problem(schedule, 2.0, batch=32)
    ends = inner(make, schedule, 2)[[0, -1]]
    x = schedule.sigma(ends[0]) * z
    return model, x, model.reference(x, *ends, 1e-12)


def errors_of(build, case, counts=COUNTS):
    schedule, make = ORDER_GRIDS[case]
    model, x, truth = reference(case)
    plans = [build(schedule, inner(make, schedule, n)) for n in counts]
    return [rms(sampled(plan, model, x) - truth) for plan in plans]


@pytest.mark.parametrize("case", ORDER_GRIDS)
@pytest.mark.parametrize("name", ORDERS)
def test_order(name, case):
    build, order = ORDERS[name]
    counts = LATER if "additive" in name else COUNTS
    errors = errors_of(build, case, counts)
    assert abs(fitted_slope(errors, counts) - order) <= 0.15, errors


@pytest.mark.parametrize("case", ORDER_GRIDS)
def test_a_higher_order_of_the_network_s_part(case):
    """The guidance's order 2 stays, with a fraction of the error of order 2 for both."""
    counts = LATER
    errors = errors_of(additive_multistep, case, counts)
    two = errors_of(partial(additive_multistep, order=2), case, counts)
    assert max(a / b for a, b in zip(errors, two, strict=True)) < 0.6


class Still:
    """A network without slope: eps = 0, so the guidance alone moves the samples."""

    def __init__(self, model):
        self.model = model

    def x0(self, x, t):
        return x / self.model.levels(t)[0]

    def gradient(self, x, t):
        return self.model.gradient(x, t)


@pytest.mark.parametrize(
    ("build", "order"),
    [
        (partial(stsp, inner="lms", guidance="rk2"), 2),
        (partial(stsp, inner="lms", guidance="rk2", merged=True), 2),
        (ltsp, 1),
        (partial(ltsp, guidance="heavy_ball"), 1),
        (additive_multistep, 2),
        (partial(additive_multistep, guidance="adams"), 2),
    ],
)
def test_order_of_the_guidance_alone(build, order):
    schedule, make = ORDER_GRIDS["vp"]
    model, z = problem(schedule, 2.0, batch=32)
    x = schedule.sigma(inner(make, schedule, 2)[0]) * z

    ends = inner(make, schedule, 2)[[0, -1]]
    truth = model.reference(x, *ends, 1e-12, still=True)
    plans = [build(schedule, inner(make, schedule, n)) for n in COUNTS]
    errors = [rms(sampled(plan, Still(model), x) - truth) for plan in plans]
    assert abs(fitted_slope(errors, COUNTS) - order) <= 0.15, errors


# Few steps.


def test_few_steps_with_strong_guidance():
    """Weights for even steps and the released second half throw samples out; the others do not."""
    model, x = problem(TABLE, 4.0, batch=128)
    grid = grids.linspace(TABLE, 6)
    truth = model.reference(x, grid[0], grid[-1], 1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", df.PlanWarning)
        for steps in (6, 8, 10, 15):
            grid = grids.linspace(TABLE, steps)

            def error(build, grid=grid):
                return rms(sampled(build(TABLE, grid), model, x) - truth)

            old = error(partial(stsp, compat="released"))
            for build in (stsp, partial(stsp, merged=True), ltsp, additive_multistep):
                assert error(build) < 0.75
            assert error(partial(stsp, inner="plms")) < 1.0
            if steps <= 8:
                assert old > 2.0
            if steps == 6:
                assert old > 10.0


def test_few_steps_with_a_rough_classifier():
    model, x = problem(TABLE, 1.0, 0.5, batch=128)
    grid = grids.linspace(TABLE, 6)
    truth = model.reference(x, grid[0], grid[-1], 1e-8)

    def guided(x, t):
        alpha, sigma = model.levels(t)
        return model.x0(x, t) + sigma**2 / alpha * model.gradient(x, t)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", df.PlanWarning)
        for steps in (6, 8, 10):
            grid = grids.linspace(TABLE, steps)
            unsplit = walk(ipndm(TABLE, grid, 4, final="full"), guided, x)[-1]["x"]
            old, new, additive = (
                rms(sampled(build(TABLE, grid), model, x) - truth)
                for build in (partial(stsp, compat="released"), stsp, additive_multistep)
            )
            assert rms(unsplit - truth) > 10.0
            assert old > 5.0
            assert new < 1.0
            assert additive < 1.2


# Ends.


@pytest.mark.parametrize("end", [0.0, 0.05])
def test_from_pure_noise_the_order_stays(end):
    flow = SCHEDULES["flow"]
    model, z = problem(flow, 2.0, batch=32)
    errors = {}
    builds = {"ltsp": ltsp, "additive": additive_multistep}
    # from t = 1, where the reference cannot begin: the finest run of the best method
    fine = grids.uniform_time(flow, 240, end=end)
    truth = sampled(stsp(flow, fine, "rk4", guidance="rk2"), model, z)
    counts = (20, 40, 80)
    for name, build in builds.items():
        plans = [build(flow, grids.uniform_time(flow, n, end=end)) for n in counts]
        errors[name] = [rms(sampled(plan, model, z) - truth) for plan in plans]
    assert fitted_slope(errors["ltsp"], counts) >= 0.85, errors
    assert fitted_slope(errors["additive"], counts) >= 1.5, errors
    assert errors["additive"][-1] < 0.25 * errors["ltsp"][-1]
