"""All one-step solvers: calls, clocks, exact cases, refusals."""

from functools import partial

import numpy as np
import pytest
from numpy_executor import run
from one_step import EDM, FLOW, INDEXED, VP, ZERO_SNR, same
from plan_tables import rows_of_x

from diffast import grids, solvers
from diffast.solvers.ode import exponential, runge_kutta
from diffast.solvers.ode.singlestep import fast_orders

BUILDERS = {
    runge_kutta.midpoint: 2,
    solvers.ralston: 2,
    runge_kutta.bosh3: 3,
    runge_kutta.rk4: 4,
    runge_kutta.dopri5: 6,
    runge_kutta.tsit5: 6,
    solvers.dpm_2: 2,
    solvers.dpm_solver_2s: 2,
    solvers.dpm_solver_3s: 3,
    solvers.dpmpp_2s: 2,
    solvers.dpmpp_3s: 3,
    exponential.res_2s: 2,
    exponential.res_3s: 3,
    solvers.etdrk2: 2,
    exponential.etdrk3: 3,
    exponential.etdrk4: 4,
    exponential.krogstad4: 4,
}
each_builder = pytest.mark.parametrize(
    ("build", "calls"), BUILDERS.items(), ids=[build.__name__ for build in BUILDERS]
)


@each_builder
def test_calls(build, calls):
    for steps in (1, 2, 5):
        assert build(EDM, grids.karras(EDM, steps, to_zero=False)).stages == calls * steps
        assert build(EDM, grids.karras(EDM, steps)).stages == calls * (steps - 1) + 1
        plan = build(ZERO_SNR, grids.trailing(ZERO_SNR, steps))
        assert plan.stages == calls * (steps - 1) + 1
        assert plan.name.startswith(build.__name__)
        assert plan.steps == steps


@each_builder
def test_clock_by_default(build, calls):
    flow, vp = grids.uniform_time(FLOW, 4), grids.uniform_time(VP, 4)
    same(build(FLOW, flow), build(FLOW, flow, clock="flow"), 0)
    same(build(VP, vp), build(VP, vp, clock="rho"), 0)
    # out of alpha = 0 by "flow" whatever the clock, the other steps by it
    one, other = build(FLOW, flow, clock="rho"), build(FLOW, flow, clock="flow")
    np.testing.assert_array_equal(one.matrix[:calls], other.matrix[:calls])
    assert np.abs(one.matrix - other.matrix).max() > 1e-3


@each_builder
def test_clock_refused(build, calls):
    facts = f"{build.__name__}: clock = 'lam', but it must be 'rho', 'flow' or None"
    with pytest.raises(ValueError, match=facts):
        build(EDM, [80, 1, 0], clock="lam")
    with pytest.raises(ValueError, match="strictly from noisy to clean"):
        build(EDM, [0, 1, 80])


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
@pytest.mark.parametrize("schedule", [EDM, VP, FLOW, INDEXED, ZERO_SNR])
def test_fifth_order_methods_are_exact_for_a_point_mass(name, schedule):
    x0, eps = np.array([0.3, -1.2, 2.0]), np.array([0.5, 1.0, -2.0])
    for grid in (
        grids.uniform_time(schedule, 1),
        grids.uniform_time(schedule, 7),
        grids.karras(schedule, 40, sigma_max=10.0),
        grids.karras(schedule, 7, sigma_max=10.0, to_zero=False),
    ):
        plan = getattr(solvers, name)(schedule, grid)
        alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
        got = run(plan, lambda x, t: x0, alpha[0] * x0 + sigma[0] * eps)[-1]
        atol = 1e-12 * max(1.0, np.abs(plan.matrix).max() / 1e3)
        np.testing.assert_allclose(got, alpha[-1] * x0 + sigma[-1] * eps, rtol=0, atol=atol)
        if sigma[-1] == 0:
            np.testing.assert_array_equal(rows_of_x(plan)[-1, :3], [0, 0, 1])


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (partial(runge_kutta.midpoint, r=0.0), r"midpoint: r = 0.0, but it must lie in \(0, 1\]"),
        (partial(solvers.dpm_2, r=1.5), "dpm_2: r = 1.5"),
        (partial(solvers.dpmpp_2s, r=np.nan), "dpmpp_2s: r = nan"),
        (partial(solvers.dpm_solver_2s, r=-1), "dpm_solver_2s: r = -1"),
        (partial(solvers.dpmpp_3s, r1=0.7), "r2 = 0.66.*, but it must be above r1 = 0.7"),
        (partial(solvers.dpm_solver_3s, r2=1.1), "dpm_solver_3s: r2 = 1.1"),
        (partial(solvers.dpm_solver_3s, kind="best"), "dpm_solver_3s: kind = 'best'"),
        (partial(solvers.dpm_fast, orders=(3,)), "dpm_fast: 1 orders, but the grid has 2 steps"),
        (partial(solvers.dpm_fast, orders=(3, 4)), "order = 4, but it must be 1, 2 or 3"),
        (partial(solvers.singlestep, orders=(1, 2)), "add up to 3, but the grid has 2"),
        (partial(solvers.singlestep, orders=0), "singlestep: order = 0"),
        (partial(solvers.singlestep, orders=(1.5, 0.5)), "singlestep: order = 1.5"),
        (partial(solvers.singlestep, form="eps"), "form = 'eps', but it must be 'data' or"),
        (partial(solvers.singlestep, kind="taylor"), "kind = 'taylor'"),
        (partial(solvers.singlestep, clock="lam"), "singlestep: clock = 'lam'"),
        (partial(exponential.res_2s, c2=0), "res_2s: c2 = 0"),
        (partial(exponential.res_3s, c3=2), "res_3s: c3 = 2"),
        (partial(exponential.res_3s, c2=0.5, c3=0.5), "c2 = 0.5, but it must differ from c3 = 0.5"),
        (partial(exponential.res_3s, c2=2 / 3, c3=1), "must differ from c3 = 1.0 and 2/3"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make(EDM, [80, 1, 0])


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="fast_orders: calls = 0, but it must be at least 1"):
        fast_orders(0)
