"""`adams`: every form and clock, orders up to 6, methods it equals; the last steps of a run."""

from functools import partial

import numpy as np
import pytest
from multistep_runs import NAMED, SD, assert_same, each_grid, open_grids, states
from numpy_executor import run
from scipy import integrate
from test_solvers import ORDER_CASES, fitted_slope, inner, mixture, strong_errors

from diffast import grids, schedules, solvers
from diffast.solvers import adams
from diffast.solvers.core import integrals

FLOW, EDM = schedules.flow(), schedules.edm()
PAIRS = [(form, clock) for form in integrals.FORMS for clock in integrals.CLOCKS]
each_pair = pytest.mark.parametrize(("form", "clock"), PAIRS, ids=["-".join(p) for p in PAIRS])

# Steps from s to t: short, long, far out, from pure noise, to the clean end.
STEPS = [(SD, 400.0, 380.0), (SD, 999.0, 10.0), (EDM, 80.0, 0.3), (FLOW, 1.0, 0.7), (FLOW, 0.3, 0)]


@pytest.mark.parametrize(("schedule", "start", "end"), STEPS)
@each_pair
def test_moments_are_integrals(form, clock, schedule, start, end):
    s, t = integrals.levels_at(schedule, [start, end])
    if not np.isfinite(s.on(clock)) or (form == "noise" and s.alpha == 0.0):
        pytest.skip("no slope or no clock at the start: the step is of first order")
    if t.sigma == 0.0 and (form == "data" or clock == "snr"):
        pytest.skip("the integral has no value: see the test of the clean end")
    # dq/dlam of q = exp(lam), exp(-lam), 1 / (1 + exp(lam)), and the clock from lam alone
    rate = {
        "data": lambda lam: t.sigma * np.exp(lam),
        "noise": lambda lam: -t.alpha * np.exp(-lam),
        "velocity": lambda lam: -0.25 * (t.alpha + t.sigma) / np.cosh(lam / 2) ** 2,
    }[form]
    on = {
        "lam": lambda lam: lam,
        "snr": np.exp,
        "rho": lambda lam: np.exp(-lam),
        "flow": lambda lam: 1.0 / (1.0 + np.exp(lam)),
        "arctan": lambda lam: np.arctan(np.exp(-lam)),
    }[clock]
    ends = max(s.lam, -60.0), min(t.lam, 60.0)
    got, zero = integrals.moments(form, clock, s, t, 5), s.on(clock)
    for k in range(6):
        want, _ = integrate.quad(
            lambda lam, k=k: rate(lam) * (on(lam) - zero) ** k, *ends, epsabs=0, limit=300
        )
        np.testing.assert_allclose(got[k], want, rtol=1e-8)


@pytest.mark.parametrize("clock", ["rho", "flow", "arctan"])
def test_data_at_the_clean_end_is_the_polynomial_there(clock):
    s, one, two, t = integrals.levels_at(FLOW, [0.2, 0.4, 0.6, 0.0])
    weights = integrals.adams("data", clock, s, [one, two], t)
    nodes = [level.on(clock) for level in (s, one, two)]
    for k in range(3):  # of u^k at u = 0
        value = np.dot(weights, np.power(nodes, k))
        assert value == pytest.approx(0.0 if k else 1.0, abs=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@open_grids
def test_named_methods_are_members(schedule, grid, order):
    pairs = (
        (solvers.lms(schedule, grid, order), adams(schedule, grid, order, "rho", "noise")),
        (solvers.deis(schedule, grid, order), adams(schedule, grid, order, "lam", "noise")),
        (
            solvers.exponential_adams(schedule, grid, order),
            adams(schedule, grid, order, "lam", "data"),
        ),
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one.matrix, other.matrix)
        assert one.columns == other.columns


@each_pair
def test_order_one_is_euler(form, clock):
    for schedule, grid in (*NAMED.values(), (FLOW, grids.uniform_time(FLOW, 7))):
        euler = states(solvers.euler(schedule, grid), schedule)
        assert_same(states(adams(schedule, grid, 1, clock, form), schedule), euler)


def test_on_a_flow_it_is_adams_bashforth_of_the_velocity():
    # even steps: b = (23, -16, 5)/12 on v, in the flow's own time, to t = 0 and from t = 1
    grid, denoise = grids.uniform_time(FLOW, 8), mixture(FLOW)
    x = np.random.default_rng(0).normal(size=(5, 2))
    got = run(adams(FLOW, grid), denoise, x)[-1]
    slopes, b = [], {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        slopes = [(x - denoise(x, s)) / s, *slopes][:3]
        x = x + (t - s) * sum(w * v for w, v in zip(b[len(slopes)], slopes, strict=True))
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", [schedules.vp_linear(), EDM, schedules.trig()])
def test_any_schedule_is_the_flow_that_it_scales_to(schedule):
    # the plan on levels of equal tau, and x / (alpha + sigma) the same run
    grid = grids.uniform_flow(schedule, 6)
    tau = schedule.sigma(grid) / (schedule.alpha(grid) + schedule.sigma(grid))
    truth, x = mixture(FLOW), np.random.default_rng(1).normal(size=(4, 2))

    def denoise(x, t):
        scale = schedule.alpha(t) + schedule.sigma(t)
        return truth(x / scale, float(schedule.sigma(t) / scale))

    scale = schedule.alpha(grid[0]) + schedule.sigma(grid[0])
    got = run(adams(schedule, grid, 4), denoise, scale * x)[-1]
    want = run(adams(FLOW, tau, 4), truth, x)[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", [5, 6])
@pytest.mark.parametrize("case", ["vp_linear-logsnr", "vp_cosine-time", "flow-time"])
def test_high_orders(order, case):
    # the start's error has settled from here on, and rounding is still below
    counts = (320, 453, 640)
    schedule, make = ORDER_CASES[case]
    build = partial(adams, order=order, start="single")
    errors = strong_errors(build, schedule, partial(inner, make), counts)
    assert abs(fitted_slope(errors, counts) - order) <= 0.15, errors


@pytest.mark.parametrize("form", integrals.FORMS)
def test_high_orders_begin_with_runge_kutta(form):
    grid = grids.uniform_time(FLOW, 9, start=0.9, end=0.1)
    plan = adams(FLOW, grid, 6, "arctan", form, start="single")
    assert (plan.nfe, plan.steps) == (9 + 4 * 5, 9)
    x0, eps = np.array([0.3, -1.2, 2.0]), np.array([1.0, -0.4, 0.2])
    end = run(plan, lambda x, t: x0, 0.1 * x0 + 0.9 * eps)[-1]
    np.testing.assert_allclose(end, 0.9 * x0 + 0.1 * eps, rtol=0, atol=1e-12)
    first = run(adams(FLOW, grid[:2], 6, form=form, start="single"), mixture(FLOW), np.ones((1, 2)))
    want = run(solvers.dopri5(FLOW, grid[:2], clock="flow"), mixture(FLOW), np.ones((1, 2)))
    np.testing.assert_allclose(first, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("tool", "form", "clock"),
    [
        ("vABSampler", "velocity", "flow"),
        ("zABSampler", "noise", "rho"),
        ("zEABSampler", "noise", "lam"),
        ("xEABSampler", "data", "lam"),
    ],
)
@each_grid
def test_samplers_of_azula(schedule, grid, tool, form, clock):
    sample = pytest.importorskip("azula.sample")
    torch = pytest.importorskip("torch")
    if clock == "lam" and schedule.sigma(grid[-1]) == 0.0 or schedule.alpha(grid[0]) == 0.0:
        grid = grid[1:-1]  # theirs has no value at either end

    class Denoiser:
        def schedule(self, t):
            levels = schedule.alpha(t.numpy()), schedule.sigma(t.numpy())
            return tuple(torch.as_tensor(level) for level in levels)

        def __call__(self, x, t):
            self.mean = torch.as_tensor(denoise(x.numpy(), float(t)))
            return self

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return np.tanh(2.0 * alpha * x / (alpha**2 + sigma**2)) + 0.1 * np.sin(x / (alpha + sigma))

    class Sampler(getattr(sample, tool)):
        timesteps = torch.as_tensor(grid)

    x = np.random.default_rng(0).normal(size=6) * schedule.sigma(grid[0])
    for order in (1, 2, 3, 5):
        theirs = Sampler(Denoiser(), order=order, steps=len(grid) - 1, silent=True)
        orders = [min(order, n + 1) for n in range(len(grid) - 1)]  # theirs are never lowered
        ours = run(adams(schedule, grid, order, clock, form, orders), denoise, x)[-1]
        assert_same(ours, theirs(torch.as_tensor(x)).numpy(), 1e-11)


def test_steps_that_suddenly_grow_lower_the_order():
    grid = np.array([80.0, *np.linspace(1.0, 0.96, 5), 0.2, 0.0])
    plan, euler = adams(EDM, grid, 5), solvers.euler(EDM, grid)
    largest = max(np.abs(plan.matrix[6]).max(), 1.0)
    assert largest < 2e3
    forced = adams(EDM, grid, 5, orders=[1, 2, 3, 4, 5, 5, 1])
    assert np.abs(forced.matrix).max() > 1e6
    x = np.random.default_rng(2).normal(size=(6, 2)) * 80.0
    ends = [run(each, mixture(EDM), x)[-1] for each in (plan, euler)]
    assert np.abs(ends[0] - ends[1]).max() < 1.0
    # so uneven that nothing but rounding would be left
    grid[1:6] = np.linspace(1.0, 1.0 - 1e-6, 5)
    adams(EDM, grid, 5)
    with pytest.raises(ValueError, match="adams: step 5: the weights of 5 estimates in the clock"):
        adams(EDM, grid, 5, orders=[1, 2, 3, 4, 5, 5, 1])


# The end of a run.

MULTISTEP = {
    "adams": adams,
    "deis": partial(solvers.deis, order=4),
    "dpm_solver_2m": solvers.dpm_solver_2m,
    "dpm_solver_3m": solvers.dpm_solver_3m,
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_3m": solvers.dpmpp_3m,
    "exponential_adams": partial(solvers.exponential_adams, order=4),
    "gradient_estimation": solvers.gradient_estimation,
    "ipndm": solvers.ipndm,
    "ipndm_v": solvers.ipndm_v,
    "lms": solvers.lms,
    "plms": solvers.plms,
    "res_2m": solvers.res_2m,
    "res_3m": solvers.res_3m,
    "unipc": partial(solvers.unipc, order=3),
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "dpm_solver_2m_sde": solvers.dpm_solver_2m_sde,
}
ORDERS = dict.fromkeys(
    ("adams", "dpm_solver_3m", "dpmpp_3m", "dpmpp_3m_sde", "res_3m", "unipc"), 3
) | dict.fromkeys(
    (
        *("dpm_solver_2m", "dpmpp_2m", "gradient_estimation", "res_2m"),
        *("dpmpp_2m_sde", "dpm_solver_2m_sde"),
    ),
    2,
)


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_falling_orders_are_given_orders(name, steps):
    most, build = ORDERS.get(name, 4), MULTISTEP[name]
    orders = [min(most, n + 1, steps - n) for n in range(steps)]
    for schedule, grid in (
        (EDM, grids.karras(EDM, steps)),
        (SD, grids.uniform_logsnr(SD, steps, to_zero=False)),
        (FLOW, grids.uniform_time(FLOW, steps)),
    ):
        falling, given = (
            build(schedule, grid, final="falling"),
            build(schedule, grid, orders=orders),
        )
        np.testing.assert_array_equal(falling.matrix, given.matrix)


@pytest.mark.parametrize("name", ["adams", "deis", "lms", "dpm_solver_3m", "exponential_adams"])
def test_full_keeps_the_order_into_the_clean_end(name):
    build, grid = MULTISTEP[name], grids.uniform_time(FLOW, 6, start=0.9)
    full, clean = build(FLOW, grid, final="full"), build(FLOW, grid, final="clean")
    np.testing.assert_array_equal(full.matrix[:-1], clean.matrix[:-1])
    as_given = build(FLOW, grid, orders=[min(ORDERS.get(name, 4), n + 1) for n in range(6)])
    np.testing.assert_array_equal(full.matrix, as_given.matrix)
    # x0 as a polynomial in lam has no value there
    assert np.array_equal(full.matrix, clean.matrix) == (name == "exponential_adams")


def test_a_single_start_falls_too():
    grid = grids.uniform_time(FLOW, 3, end=0.1)
    assert adams(FLOW, grid, 4, start="single").nfe == 3 + 2 * 2  # two steps of 3 calls
    plan = adams(FLOW, grid, 4, start="single", final="falling")
    assert plan.nfe == 3 + 1  # a step of 2 calls for order 3, then orders 2 and 1
    assert adams(FLOW, grid[:2], 4, start="single", final="falling").nfe == 1


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"order": 7}, "adams: order = 7, but it must be 1 to 6"),
        ({"clock": "time"}, "adams: clock = 'time', but it must be 'lam' or"),
        ({"form": "score"}, "adams: form = 'score', but it must be 'data' or"),
        ({"final": "none"}, "adams: final = 'none', but it must be 'clean' or"),
        (
            {"final": "falling", "orders": [1, 2]},
            "'falling', but it must be 'clean' where orders",
        ),
        ({"orders": [1, 3]}, r"adams: orders\[1\] = 3, but it must be 1 to 2"),
    ],
)
def test_refusals(options, facts):
    with pytest.raises(ValueError, match=facts):
        adams(EDM, [80.0, 1.0, 0.0], **options)
