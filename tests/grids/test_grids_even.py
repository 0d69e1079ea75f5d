"""Grids even in a time variable, the grid to start with, and the ends of runs as options."""

import numpy as np
import pytest

from diffast import grids, schedules
from diffast.schedules.clocks import CLOCKS, clock_at, time_on

BETAS = np.linspace(1e-4, 0.02, 1000)
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(schedules.zero_terminal_snr(BETAS)),
}
EDM, FLOW, TRIG = (SCHEDULES[name] for name in ("edm", "flow", "trig"))
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
FINITE = ("flow", "arctan")

# From the written definition, not from the package.
VALUES = {
    "flow": lambda s, t: s.sigma(t) / (s.alpha(t) + s.sigma(t)),
    "arctan": lambda s, t: np.angle(s.alpha(t) + 1j * s.sigma(t)),
    "rho": lambda s, t: s.sigma(t) / s.alpha(t),
    "snr": lambda s, t: s.alpha(t) / s.sigma(t),
    "lam": lambda s, t: np.log(s.alpha(t) / s.sigma(t)),
    "time": lambda s, t: t,
}


@each_schedule
@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_and_their_inverses(schedule, clock):
    times = schedule.time(np.array([-2.0, -0.3, 0.0, 0.8, 3.0]))
    values = clock_at(schedule, clock, times)
    np.testing.assert_allclose(values, VALUES[clock](schedule, times), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(time_on(schedule, clock, values), times, rtol=1e-9, atol=1e-9)
    assert np.ndim(time_on(schedule, clock, values[0])) == 0


@each_schedule
@pytest.mark.parametrize("clock", FINITE)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_even_to_the_clean_end(schedule, clock, steps):
    grid = grids.even(schedule, steps, clock)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, schedule.t_start, schedule.t_end)
    gaps = np.diff(VALUES[clock](schedule, grid))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-6)


def test_relatives():
    np.testing.assert_allclose(grids.even(FLOW, 9), grids.uniform_time(FLOW, 9), atol=1e-15)
    np.testing.assert_allclose(
        grids.even(TRIG, 9, "arctan"), grids.uniform_time(TRIG, 9), atol=1e-15
    )
    np.testing.assert_array_equal(grids.uniform_flow(EDM, 9), grids.even(EDM, 9, "flow"))
    np.testing.assert_allclose(grids.even(EDM, 9, "lam"), grids.uniform_logsnr(EDM, 9), rtol=1e-12)
    np.testing.assert_allclose(grids.even(EDM, 9, "rho"), 80.0 * (1.0 - np.arange(10) / 9.0))
    for schedule in (EDM, SCHEDULES["vp_linear"]):
        np.testing.assert_allclose(
            grids.even(schedule, 9, "arctan", end=schedule.t_min),
            grids.kl_optimal(schedule, 9),
            rtol=1e-9,
        )


@each_schedule
@pytest.mark.parametrize("steps", [1, 2, 10, 21])
def test_the_grid_to_start_with_takes_every_schedule(schedule, steps):
    grid = grids.default(schedule, steps)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, schedule.t_start, schedule.t_end)
    np.testing.assert_array_equal(grid, grids.uniform_flow(schedule, steps))


BY_LEVEL = ("karras", "uniform_logsnr", "polyexponential", "laplace", "kl_optimal", "beta_sigmas")


@each_schedule
@pytest.mark.parametrize("name", [*BY_LEVEL, "ou_early", "even", "uniform_flow"])
@pytest.mark.parametrize("to_zero", [True, False])
def test_ends_as_times_and_as_levels(schedule, name, to_zero):
    make = getattr(grids, name)
    start, end = schedule.time(-np.log([5.0, 0.05]))
    by_time = make(schedule, 6, start=start, end=end, to_zero=to_zero)
    by_level = make(schedule, 6, sigma_max=5.0, sigma_min=0.05, to_zero=to_zero)
    np.testing.assert_allclose(by_time, by_level, rtol=1e-9)
    assert (by_time[0], by_time[-2 if to_zero else -1]) == (start, end)
    assert len(by_time) == 7
    assert (by_time[-1] == schedule.t_end) == to_zero


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_uniform_time_with_a_denoising_step(steps):
    grid = grids.uniform_time(FLOW, steps, start=0.999, end=0.05, to_zero=True)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, 0.999, 0.0)
    if steps > 1:
        np.testing.assert_allclose(np.diff(grid[:-1]), (0.05 - 0.999) / (steps - 1))
    np.testing.assert_array_equal(
        grids.uniform_time(FLOW, steps, to_zero=True), grids.uniform_time(FLOW, steps)
    )


@pytest.mark.parametrize("name", ["karras", "uniform_logsnr", "polyexponential", "laplace"])
@pytest.mark.parametrize("schedule", [FLOW, TRIG, SCHEDULES["zero_snr"]])
def test_pure_noise_names_the_grid_that_fits(name, schedule):
    with pytest.raises(ValueError, match=rf"{name}: sigma/alpha is infinite.*grids.default.*, 5\)"):
        getattr(grids, name)(schedule, 5)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: grids.even(EDM, 0), "even: 0 steps"),
        (lambda: grids.even(EDM, 5, "sigma"), "even: clock = 'sigma', but it must be 'flow' or"),
        (
            lambda: grids.even(FLOW, 5, "rho"),
            "even: rho is infinite at t = 1.0; use clock",
        ),
        (lambda: grids.even(FLOW, 5, "lam"), "even: lam is infinite at t = 1.0"),
        (lambda: grids.even(EDM, 5, "lam", end=0.0), "even: lam is infinite at t = 0.0"),
        (
            lambda: grids.even(EDM, 5, start=2.0, end=3.0),
            "end = 3.0, but the run starts at t = 2",
        ),
        (lambda: grids.even(EDM, 5, end=80.0), "end = 80.0, but the run starts at t = 80.0"),
        (lambda: grids.even(EDM, 5, start=90.0), "start = 90.0, but the schedule runs from 80.0"),
        (lambda: grids.even(EDM, 5, start=9.0, sigma_max=9.0), "sigma_max = 9.0 is given as well"),
        (lambda: grids.karras(EDM, 5, end=1.0, sigma_min=1.0), "sigma_min = 1.0 is given as well"),
        (lambda: grids.karras(EDM, 5, end=0.0), "karras: end = 0.0, but sigma/alpha of the sched"),
        (lambda: grids.karras(EDM, 5, start=np.nan), "start = nan, but the schedule runs"),
        (lambda: grids.uniform_flow(EDM, 5, sigma_min=-1.0), "sigma_min = -1.0, but it must be"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()
