"""Multistep solvers: the methods they equal, their starts, orders and other options."""

from functools import partial

import numpy as np
import pytest
from multistep_runs import EDM, FLOW, NAMED, SD, assert_same, each_grid, states
from numpy_executor import run
from plan_tables import place_of_y, rows_of_x
from scipy import integrate
from test_solvers import fitted_slope, gaussian, inner, strong_errors

from diffast import grids, schedules, solvers
from diffast.plans import unroll
from diffast.solvers.aliases import res_2m, res_3m
from diffast.solvers.core import integrals
from diffast.solvers.core.phi import phi
from diffast.solvers.ode.adams import (
    deis,
    exponential_adams,
    gradient_estimation,
    ipndm,
    ipndm_v,
    lms,
    plms,
)
from diffast.solvers.ode.dpm_multistep import dpm_solver_2m, dpm_solver_3m, dpmpp_2m, dpmpp_3m
from diffast.solvers.ode.unipc import unipc

# Methods that are one.


@each_grid
def test_identities(schedule, grid):
    pairs = (
        (res_2m(schedule, grid), dpmpp_2m(schedule, grid, "heun")),
        (exponential_adams(schedule, grid, 2), dpmpp_2m(schedule, grid, "heun")),
        (unipc(schedule, grid, 2, corrector=False), dpmpp_2m(schedule, grid)),
        (unipc(schedule, grid, 3, corrector=False), dpmpp_3m(schedule, grid, kind="midpoint")),
        (exponential_adams(schedule, grid), dpmpp_3m(schedule, grid)),
        (res_3m(schedule, grid), dpmpp_3m(schedule, grid)),
        (unipc(schedule, grid, 1, corrector=False), solvers.euler(schedule, grid)),
        (unipc(schedule, grid, 2, "bh2", "noise", False), dpm_solver_2m(schedule, grid)),
        (deis(schedule, grid, 1), solvers.euler(schedule, grid)),
        (deis(schedule, grid, 2), dpm_solver_2m(schedule, grid, "heun")),
        (deis(schedule, grid, 3), dpm_solver_3m(schedule, grid)),
        (deis(schedule, grid, 4, "sigma"), lms(schedule, grid)),
        (ipndm_v(schedule, grid), lms(schedule, grid)),
        (gradient_estimation(schedule, grid, 1.5), ipndm(schedule, grid, 2)),
        (gradient_estimation(schedule, grid, 1.0), solvers.euler(schedule, grid)),
    )
    for one, two in pairs:
        assert_same(states(one, schedule), states(two, schedule), 1e-11)


def test_even_steps_in_rho_make_ipndm_lms():
    grid = grids.uniform_time(EDM, 12, start=12.0, end=1.0)
    for order in (2, 3, 4):
        assert_same(states(ipndm(EDM, grid, order), EDM), states(lms(EDM, grid, order), EDM))


def test_moments_are_phi_functions():
    for h in (0.0, 1e-9, 1e-3, 0.3, 0.999, 1.0, 1.001, 4.0, 30.0):
        s = integrals.Level(0.5, 0.5, 0.0)
        t = integrals.Level(1.0, np.exp(-h), h)
        for k in (1, 2, 3):
            got = integrals.moments("data", "lam", s, t, 3)[k]
            want = [1, 1, 2, 6][k] * h ** (k + 1) * phi(k + 1, h)
            np.testing.assert_allclose(got, want, rtol=1e-13)
            got = -integrals.moments("noise", "lam", s, t, 3)[k]
            want, _ = integrate.quad(lambda u, k=k: np.exp(-u) * u**k, 0, h, epsrel=1e-13)
            np.testing.assert_allclose(got, want, rtol=1e-12)
    clean = integrals.Level(1.0, 0.0, np.inf)
    np.testing.assert_allclose(integrals.moments("noise", "lam", s, clean, 3), [-1, -1, -2, -6])


def test_weights_integrate_polynomials_exactly():
    # x0 = lam^k along the way: x_t / sigma_t - x_s / sigma_s is its integral over d(exp(lam))
    schedule, grid = SD, grids.uniform_logsnr(SD, 7, to_zero=False)
    lam = schedule.lam(grid)
    for order in (1, 2, 3, 4):
        plan = exponential_adams(schedule, grid, order)
        for k in range(order):
            d = lam[:-1] ** k
            for n in range(order - 1, 7):
                want, _ = integrate.quad(
                    lambda v, k=k: v**k * np.exp(v), lam[n], lam[n + 1], epsrel=1e-13
                )
                got = rows_of_x(plan)[n, 2 : 2 + order] @ d[n::-1][:order]
                got = got / schedule.sigma(grid[n + 1])
                np.testing.assert_allclose(got, want, rtol=1e-11)


# Orders of what the shared order test does not see.


def gaussian_error(build, schedule, grid, variance=0.4):
    level = np.sqrt(schedule.alpha(grid) ** 2 * variance + schedule.sigma(grid) ** 2)
    got = run(build(schedule, grid), gaussian(schedule, variance), 1.0)[-1]
    return abs(got - level[-1] / level[0])


@pytest.mark.parametrize(
    "build",
    [
        dpmpp_3m,
        dpm_solver_3m,
        partial(dpmpp_3m, form="compat"),
        partial(dpm_solver_3m, form="compat"),
        exponential_adams,
        deis,
        lms,
        partial(unipc, order=3, corrector=False),
    ],
)
def test_rising_start_is_second_order_in_the_limit(build):
    # the first step's error is h^2 and nothing after it takes that away
    counts, vp = (1280, 2560), schedules.vp_linear()
    errors = [gaussian_error(build, vp, inner(grids.uniform_logsnr, vp, n)) for n in counts]
    assert abs(fitted_slope(errors, counts) - 2) <= 0.15, errors


def test_rising_start_of_unipc():
    # PEC: the corrector gives even the first step order 2
    for order, want in ((1, 2), (2, 3)):
        build = partial(unipc, order=order)
        errors = strong_errors(build, schedules.vp_linear(), partial(inner, grids.uniform_logsnr))
        assert abs(fitted_slope(errors) - want) <= 0.15, errors


@pytest.mark.parametrize("build", [ipndm, plms, partial(plms, start="repeat")])
def test_fixed_coefficients_are_second_order(build):
    for schedule, make in ((SD, grids.uniform_logsnr), (EDM, grids.karras)):
        errors = strong_errors(build, schedule, partial(inner, make))
        assert abs(fitted_slope(errors) - 2) <= 0.15, errors


def test_prk_keeps_the_order_of_even_steps():
    # steps even in rho: 4 for the method, and the warm-up's error stays below it
    counts = (40, 80, 160, 320)

    def make(schedule, steps):
        return grids.uniform_time(schedule, steps, start=4.0, end=1.0)

    errors = strong_errors(partial(plms, start="prk"), EDM, make, counts)
    assert abs(fitted_slope(errors, counts) - 4) <= 0.3, errors
    counts = (640, 1280, 2560)
    errors = strong_errors(plms, EDM, make, counts)
    assert abs(fitted_slope(errors, counts) - 2) <= 0.15, errors


# Options.


def test_calls():
    grid = grids.karras(EDM, 10)
    extra = {
        exponential_adams: (0, 0, 1, 4),
        deis: (0, 0, 1, 4),
        lms: (0, 0, 1, 4),
        ipndm_v: (0, 0, 1, 4),
        partial(unipc, corrector=False): (0, 0, 1),
        unipc: (0, 0, 2),
    }
    for build, more in extra.items():
        for order, want in enumerate(more, 1):
            assert build(EDM, grid, order=order).stages == 10
            assert build(EDM, grid, order=order, start="single").stages == 10 + want
    assert plms(EDM, grid, start="repeat").stages == 11
    assert plms(EDM, grid, start="prk").stages == 19
    flow = grids.uniform_time(FLOW, 12)
    assert dpm_solver_3m(FLOW, flow, start="single").stages == 14
    assert dpmpp_3m(FLOW, flow, start="single").stages == 13


@each_grid
def test_orders(schedule, grid):
    steps = len(grid) - 1
    clean = schedule.sigma(grid[-1]) == 0
    for build, most in (
        (dpmpp_2m, 2),
        (dpmpp_3m, 3),
        (dpm_solver_2m, 2),
        (dpm_solver_3m, 3),
        (res_2m, 2),
        (res_3m, 3),
        (exponential_adams, 3),
        (deis, 3),
        (lms, 4),
        (ipndm, 4),
        (ipndm_v, 4),
        (plms, 4),
        (unipc, 2),
        (gradient_estimation, 2),
    ):
        default = build(schedule, grid)
        rising = [min(most, n + 1) for n in range(steps)]
        if clean:
            rising[-1] = 1
        again = build(schedule, grid, orders=rising)
        np.testing.assert_array_equal(default.matrix, again.matrix)
        assert (default.rows, default.columns) == (again.rows, again.columns)
        one = build(schedule, grid, orders=[1] * steps)
        if build is not unipc:
            euler = states(solvers.euler(schedule, grid), schedule)
            assert_same(states(one, schedule), euler, 1e-12)
        lowered = build(schedule, grid, orders=[*rising[:5], 1, *rising[6:]])
        assert lowered.columns == default.columns
        assert (lowered.matrix[5] != default.matrix[5]).any()
        np.testing.assert_array_equal(lowered.matrix[:5], default.matrix[:5])


@pytest.mark.parametrize("build", [lms, deis, ipndm, partial(deis, clock="sigma"), plms])
def test_full_order_into_the_clean_end_on_request(build):
    orders = [min(3, n + 1) for n in range(12)]
    for schedule, grid in (NAMED["edm_clean"], (FLOW, grids.uniform_time(FLOW, 12, start=0.9))):
        plan = build(schedule, grid, order=3, orders=orders)
        # the limit of ends that are less and less noisy
        near = build(schedule, np.append(grid[:-1], schedule.time(30.0)), order=3, orders=orders)
        got, limit = states(plan, schedule), states(near, schedule)
        assert_same(got[:-1], limit[:-1])
        assert_same(got[-1], limit[-1], 1e-8)
        assert np.abs(got[-1] - states(build(schedule, grid, order=3), schedule)[-1]).max() > 1e-6


def test_corrector_costs_no_call_and_no_noise():
    for schedule, grid in NAMED.values():
        for form in ("data", "noise"):
            plan = unipc(schedule, grid, 3, form=form)
            assert plan.stages == 12
            assert plan.history <= 3
            assert not plan.stochastic
            assert plan.check == "full" or form == "noise"
            # a corrected state stands where its estimate was made
            assert (place_of_y(plan)[:-1] <= np.arange(1, 12)).all()


def test_noise_form_is_not_corrected_over_a_wide_step():
    # rho falls by 40 in the second step
    wide = np.array([80.0, 40.0, 1.0, 0.5, 0.25])
    plan = unipc(EDM, wide, 1, form="noise")
    np.testing.assert_array_equal(place_of_y(plan), [0, 2, 2, 4])
    np.testing.assert_array_equal(place_of_y(unipc(EDM, wide, 1)), [0, 1, 2, 4])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_few_steps(steps):
    for schedule in (SD, EDM, FLOW):
        for build in (dpmpp_3m, deis, lms, unipc, partial(unipc, order=3, form="noise")):
            for start in ("rise", "single"):
                plan = build(schedule, grids.uniform_time(schedule, steps), start=start)
                assert np.isfinite(unroll(plan)["x"]).all()
                assert plan.steps == steps
        for start in ("repeat", "prk"):
            assert plms(schedule, grids.uniform_time(schedule, steps), start=start).steps == steps


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda g: dpmpp_2m(EDM, g, orders=[1, 2]), r"dpmpp_2m: orders has shape \[2\].*\[3\]"),
        (lambda g: dpmpp_2m(EDM, g, orders=[2, 2, 1]), r"orders\[0\] = 2, but it must be 1 to 1"),
        (lambda g: dpmpp_3m(EDM, g, orders=[1, 2, 4]), r"orders\[2\] = 4, but it must be 1 to 3"),
        (lambda g: deis(EDM, g, orders=[1, 1.5, 1]), r"orders\[1\] = 1.5"),
        (lambda g: deis(EDM, g, orders=[1, 0, 1]), r"orders\[1\] = 0"),
        (lambda g: dpmpp_3m(EDM, g, form="best"), "form = 'best', but it must be 'exact' or"),
        (lambda g: dpmpp_3m(EDM, g, kind="best"), "dpmpp_3m: kind = 'best'"),
        (lambda g: dpm_solver_2m(EDM, g, kind="best"), "dpm_solver_2m: kind = 'best'"),
        (lambda g: dpm_solver_3m(EDM, g, form="best"), "dpm_solver_3m: form = 'best'"),
        (lambda g: deis(EDM, g, order=5), "deis: order = 5, but it must be 1 to 4"),
        (lambda g: deis(EDM, g, clock="t"), "deis: clock = 't', but it must be 'logrho' or"),
        (lambda g: lms(EDM, g, order=0), "lms: order = 0"),
        (lambda g: lms(EDM, g, order=2.0), "lms: order = 2.0"),
        (lambda g: lms(EDM, g, order=True), "lms: order = True"),
        (lambda g: lms(EDM, g, start="slow"), "lms: start = 'slow', but it must be 'rise' or"),
        (lambda g: lms(EDM, g, orders=[1, 1, 1], start="single"), "start = 'single', but"),
        (lambda g: ipndm(EDM, g, order=5), "ipndm: order = 5"),
        (lambda g: ipndm_v(EDM, g, form="x"), "ipndm_v: form = 'x'"),
        (lambda g: plms(EDM, g, start="rise"), "plms: start = 'rise', but it must be 'euler' or"),
        (lambda g: gradient_estimation(EDM, g, np.inf), "gradient_estimation: gamma = inf"),
        (lambda g: exponential_adams(EDM, g, order=5), "exponential_adams: order = 5"),
        (lambda g: unipc(EDM, g, order=4), "unipc: order = 4, but it must be 1 to 3"),
        (lambda g: unipc(EDM, g, variant="bh3"), "unipc: variant = 'bh3'"),
        (lambda g: unipc(EDM, g, form="x0"), "unipc: form = 'x0'"),
        (lambda g: unipc(EDM, g, corrector=[True]), r"unipc: corrector = \[True\].*\[3\] bools"),
        (lambda g: unipc(EDM, g, corrector=[1, 0, 1]), r"unipc: corrector = \[1, 0, 1\]"),
        (lambda g: unipc(EDM, g[::-1]), "strictly from noisy to clean"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make(np.array([80.0, 10.0, 1.0, 0.0]))
