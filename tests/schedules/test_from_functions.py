"""Schedules from functions: equal to the closed forms, saved, refused, run by every executor."""

import json
import math
import sys

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors.adaptive.nodes import can_be_recorded
from diffast.executors.adaptive.time_variable import NodeTable, TimeInterval
from diffast.ops.schema import KNOTS
from diffast.schedules import from_functions, from_table
from diffast.schedules.domain import check_times

REFERENCES = {
    "vp_linear": df.schedules.vp_linear(),
    "sub_vp": df.schedules.sub_vp(),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
}
each = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
WIDTH = 0.5  # of the data of `gaussian`


def of(reference):
    return from_functions(
        reference.alpha, reference.sigma, t_start=reference.t_start, t_min=reference.t_min
    )


def curved():
    """A path of no family: alpha = 1 - t^2, sigma = t (2 - t)."""
    return from_functions(lambda t: 1 - t**2, lambda t: t * (2 - t))


def gaussian(schedule):
    """The exact denoiser of centred data of deviation WIDTH."""

    def network(x, t):
        alpha, sigma = (
            torch.as_tensor(level(t.double().numpy())).to(x.dtype).reshape(-1, 1)
            for level in (schedule.alpha, schedule.sigma)
        )
        return alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2) * x

    return df.Denoiser(network, schedule, predicts="x0")


def deviation(schedule, t):
    return np.sqrt(schedule.alpha(t) ** 2 * WIDTH**2 + schedule.sigma(t) ** 2)


@each
def test_equals_the_closed_form(reference):
    schedule = of(reference)
    lam = np.linspace(max(reference.lam(reference.t_start), -9.0), reference.lam(1e-3), 999)
    times = reference.time(lam)
    np.testing.assert_allclose(schedule.time(lam), times, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(schedule.lam(times), lam, rtol=0, atol=1e-10)
    for found, wanted in zip(
        schedule.derivatives(times), reference.derivatives(times), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9)


@each
def test_ends_and_shapes(reference):
    schedule = of(reference)
    assert isinstance(schedule, df.schedules.Schedule)
    assert schedule.time(np.inf) == 0.0 and schedule.lam(0.0) == np.inf
    first = schedule.lam(reference.t_start)
    assert first == reference.lam(reference.t_start)
    assert schedule.time(first) == reference.t_start
    assert np.ndim(schedule.alpha(0.5)) == 0
    assert schedule.sigma([[0.1, 0.2]]).shape == (1, 2)
    with pytest.raises(ValueError, match="t = 2.0 lies outside"):
        schedule.alpha(2.0)


def test_plans_are_those_of_the_closed_form():
    reference = df.schedules.vp_linear()
    schedule = of(reference)
    grid = df.grids.uniform_logsnr(reference, 6)
    np.testing.assert_allclose(df.grids.uniform_logsnr(schedule, 6), grid, rtol=1e-13)
    for name in ("dpmpp_3m", "deis", "unipc", "heun", "sa_solver", "er_sde", "flow_sde"):
        build = df.solvers.get(name)
        plan, wanted = build(schedule, grid), build(reference, grid)
        np.testing.assert_allclose(plan.matrix, wanted.matrix, rtol=1e-9, atol=1e-11)


def test_order_of_convergence():
    """2M on a path of no family, against the exact end of the ODE of Gaussian data."""
    schedule = curved()
    denoiser = gaussian(schedule)
    x = torch.full((1, 1), 1.3, dtype=torch.float64)
    start, end = 0.97, 0.05
    wanted = 1.3 * deviation(schedule, end) / deviation(schedule, start)
    errors = []
    for steps in (20, 40, 80, 160):
        lam = np.linspace(schedule.lam(start), schedule.lam(end), steps + 1)
        plan = df.solvers.dpmpp_2m(schedule, schedule.time(lam))
        errors.append(abs(float(df.sample(denoiser, plan, x=x).x) - wanted))
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert abs(slopes[-1] - 2) < 0.15, slopes


@pytest.mark.parametrize("method", ["bosh3", "pec", "ggf"])
def test_adaptive_runs(method):
    schedule = curved()
    shape = (64, 4)
    out = df.sample_adaptive(gaussian(schedule), method, shape, seed=1)
    assert abs(float(out.x.std()) - WIDTH) < 0.06


@pytest.mark.parametrize("kind", ["lam", "rho", "flow", "time"])
def test_the_table_of_adaptive_runs_on_a_device(kind):
    """What a device runs in place of functions that no kernel can hold."""
    schedule = curved()
    interval = TimeInterval(schedule, kind, schedule.t_min, slopes=True)
    assert not can_be_recorded(interval)
    table = NodeTable(interval)
    knots = table.edges[:-1, None] + np.diff(table.edges)[:, None] * np.array(KNOTS)
    nodes = interval.nodes(knots)
    assert np.isfinite(table.pieces).all()
    for row, name in enumerate(table.fields):
        np.testing.assert_allclose(table.pieces[row], getattr(nodes, name), rtol=1e-12)


def test_the_other_executors():
    schedule = curved()
    plan = df.solvers.dpmpp_2m(schedule, df.grids.uniform_time(schedule, 10))
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = df.sample(gaussian(schedule), plan, x=x).x
    denoiser = gaussian(schedule)
    parallel = df.sample_parallel(denoiser, plan, x=x, tol=1e-12).x
    torch.testing.assert_close(parallel, wanted, rtol=1e-9, atol=1e-9)
    stepper = df.Stepper(plan, df.Prediction(schedule, "x0"))
    state, given, times = stepper.start(x=x)
    for _ in range(plan.nfe):
        state, given, times = stepper.step(state, denoiser.network(given, times))
    torch.testing.assert_close(state.x, wanted, rtol=1e-12, atol=1e-12)


def test_functions_of_tensors_and_of_floats():
    array = from_functions(lambda t: np.cos(1.5 * t), lambda t: np.sin(1.5 * t))
    tensor = from_functions(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))
    number = from_functions(lambda t: math.cos(1.5 * t), lambda t: math.sin(1.5 * t))
    constant = from_functions(lambda t: 1.0, lambda t: 80.0 * t)
    assert array == tensor == number != constant
    assert len({array, tensor, number}) == 1
    assert constant.time(0.0) == pytest.approx(1 / 80)


def test_given_derivatives_are_used():
    asked = []

    def derivatives(t):
        asked.append(np.shape(t))
        return -np.ones_like(t), 1.0

    schedule = from_functions(lambda t: 1 - t, lambda t: t, derivatives=derivatives)
    assert [float(d) for d in schedule.derivatives(0.3)] == [-1.0, 1.0]
    assert asked


def test_a_clean_end_that_keeps_noise():
    """azula's schedules end at sigma_min; the samples have that much noise."""
    schedule = from_functions(lambda t: 1 - 0.999 * t, lambda t: t + 1e-3 * (1 - t))
    assert np.isfinite(schedule.lam(0.0))
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, 5))
    x0 = torch.zeros(2, 3, dtype=torch.float64)
    denoiser = df.Denoiser(lambda x, t: x0, schedule, predicts="x0")
    x = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(df.sample(denoiser, plan, x=x).x, 1e-3 * x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_a_saved_plan_has_the_same_numbers(tmp_path, ending):
    schedule = curved()
    for grid in (df.grids.uniform_time(schedule, 7), np.array([0.81, 0.5, 0.23])):
        plan = df.solvers.ddim(schedule, grid, eta=0.5)
        plan.save(tmp_path / f"plan.{ending}")
        loaded = df.Plan.load(tmp_path / f"plan.{ending}")
        assert loaded.schedule == schedule
        assert np.array_equal(loaded.matrix, plan.matrix, equal_nan=True)
        for level in ("alpha", "sigma", "derivatives"):
            found, wanted = getattr(loaded.schedule, level), getattr(schedule, level)
            assert np.array_equal(found(plan.call_times), wanted(plan.call_times))
        x = torch.ones(2, 2)
        assert df.sample(gaussian(schedule), loaded, x=x).x.equal(
            df.sample(gaussian(schedule), plan, x=x).x
        )


@each
def test_the_table_between_its_values(reference):
    table = df.schedules.from_dict(json.loads(json.dumps(of(reference).to_dict())))
    times = reference.time(np.linspace(max(reference.lam(reference.t_start), -5.0), 5.0, 999))
    for level in ("alpha", "sigma"):
        wanted = getattr(reference, level)(times)
        np.testing.assert_allclose(getattr(table, level)(times), wanted, rtol=3e-8, atol=1e-12)
    assert (np.diff(table.lam(np.sort(times))) < 0).all()


def test_the_slopes_of_a_table_are_monotone():
    """Values with a jump: no overshoot."""
    alpha = np.where(np.arange(33) < 16, 1.0, 0.2) - np.arange(33) * 1e-3
    alpha[0] = 1.0
    table = from_table(alpha, np.linspace(0, 1, 33), 1.0, 0.0, 1e-3)
    assert (np.diff(table.alpha(np.linspace(0, 1, 5000))) <= 1e-15).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": lambda t: t, "sigma": lambda t: 1 - t}, "t_start must be the noisy end"),
        ({"sigma": lambda t: t * np.nan}, r"sigma\(0\) = nan, but it must be finite"),
        ({"alpha": lambda t: 1 - 2 * t}, "alpha.* = -.*, but it must be finite and not negative"),
        ({"alpha": lambda t: 0.5 - 0.5 * t}, "alpha.*= 0.5, but it must be 1 at the clean end"),
        ({"sigma": lambda t: t + 0.1 * np.sin(20 * t)}, "alpha/sigma must fall with the time"),
        ({"sigma": lambda t: np.maximum(t - 0.5, 0)}, "sigma.* = 0 at t_min"),
        ({"alpha": lambda t: "a"}, "alpha takes neither an array of times"),
        ({"alpha": lambda t: np.ones((3, 2))}, "alpha takes neither an array of times"),
        ({"t_min": "soon"}, "t_min = 'soon', but they must be numbers"),
        ({"t_min": 2.0}, "t_min = 2, but it must lie between"),
        ({"t_start": 0.0, "t_end": 1.0}, "the time falls from noise to data"),
    ],
)
def test_what_is_no_schedule_is_refused(given, message):
    functions = {"alpha": lambda t: 1 - t, "sigma": lambda t: t}
    with pytest.raises(ValueError, match=message):
        from_functions(**(functions | given))


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="sigma is a float, but it must be a function"):
        from_functions(lambda t: 1 - t, 0.5)
    with pytest.raises(ValueError, match="both must be"):
        from_table([1.0] * 9, [0.0] * 8, 1.0, 0.0, 0.1)
    with pytest.raises(ValueError, match="points has shape"):
        from_table([1.0] * 9, np.linspace(0, 1, 9), 1.0, 0.0, 0.1, [[1.0, 2.0]])


def test_torch_is_not_loaded_for_functions_of_arrays(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ValueError, match="torch is not loaded|one float"):
        from_functions(lambda t: torch.cos(t), lambda t: torch.sin(t))
    assert curved().t_start == 1.0


class Wavy:
    """A schedule of one's own, as docs/solvers.md shows it."""

    t_start, t_end, t_min, domain = 1.0, 0.0, 1e-3, (0.0, 1.0)

    def alpha(self, t):
        return 1.0 - check_times(self, t)

    def sigma(self, t):
        return np.sqrt(check_times(self, t))

    def derivatives(self, t):
        return -np.ones_like(t, dtype=float)[()], 0.5 / np.sqrt(t)

    def lam(self, t):
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def time(self, lam):
        ratio2 = np.exp(-2 * np.asarray(lam, dtype=float))  # t = ratio2 (1 - t)^2
        return 1 + 0.5 / ratio2 - np.sqrt((1 + 0.5 / ratio2) ** 2 - 1)


def test_a_class_of_ones_own_samples():
    schedule = Wavy()
    assert isinstance(schedule, df.schedules.Schedule)
    plan = df.solvers.dpmpp_2m(schedule, df.grids.uniform_time(schedule, 40))
    out = df.sample(gaussian(schedule), plan, shape=(256, 4), seed=3)
    assert abs(float(out.x.std()) - WIDTH) < 0.05
    with pytest.raises(ValueError, match="has no to_dict"):
        plan.save("plan.json")
