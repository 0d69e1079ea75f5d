"""Grids: textbook spacings, ends, monotone for every schedule and step count, refusals."""

import numpy as np
import pytest

from diffast import grids, schedules

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
INDEXED = schedules.from_betas(BETAS)
ALL = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "from_betas": INDEXED,
    "zero_snr": schedules.from_betas(np.append(BETAS[:-1], 1.0)),
}
each = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


def check(schedule, grid, steps, end):
    assert grid.dtype == np.float64
    assert grid.shape == (steps + 1,)
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == end
    np.testing.assert_array_equal(grids.check_grid(schedule, grid), grid)


@each
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 250])
def test_every_schedule(schedule, steps):
    top = None if np.isfinite(schedule.lam(schedule.t_start)) else 200.0
    for make in (grids.karras, grids.uniform_logsnr):
        grid = make(schedule, steps, sigma_max=top)
        check(schedule, grid, steps, schedule.t_end)
        assert grid[0] == schedule.t_start or top
        open_end = make(schedule, steps, sigma_max=top, to_zero=False)
        check(schedule, open_end, steps, schedule.t_min)
        inner = make(schedule, steps, sigma_min=0.1, sigma_max=5.0, to_zero=False)
        rho = schedule.sigma(inner) / schedule.alpha(inner)
        np.testing.assert_allclose(rho[[0, -1]], [5.0, 0.1], rtol=1e-12)
    grid = grids.uniform_time(schedule, steps)
    check(schedule, grid, steps, schedule.t_end)
    assert grid[0] == schedule.t_start
    np.testing.assert_allclose(np.diff(grid), np.diff(grid)[0], rtol=1e-9)


def test_karras_numbers():
    grid = grids.karras(schedules.edm(), 10)
    i = np.arange(10)
    want = (80 ** (1 / 7) + i / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grid[:-1], want, rtol=1e-13)
    assert grid[-1] == 0.0
    assert grid[0] == 80.0
    assert grid[-2] == 0.002
    np.testing.assert_allclose(
        np.diff(grids.karras(schedules.edm(), 8, rho=1, to_zero=False)), -79.998 / 8, rtol=1e-12
    )


@each
def test_karras_spaces_sigma_over_alpha(schedule):
    grid = grids.karras(schedule, 12, rho=3.0, sigma_min=0.05, sigma_max=8.0)[:-1]
    root = (schedule.sigma(grid) / schedule.alpha(grid)) ** (1 / 3)
    np.testing.assert_allclose(np.diff(root), (0.05 ** (1 / 3) - 2.0) / 11, rtol=1e-11)


@each
def test_uniform_logsnr_is_uniform(schedule):
    grid = grids.uniform_logsnr(schedule, 9, sigma_min=0.05, sigma_max=8.0, to_zero=False)
    np.testing.assert_allclose(np.diff(schedule.lam(grid)), np.log(8 / 0.05) / 9, rtol=1e-12)


def test_training_indices():
    # Lin et al. 2024, table 2: T = 1000, 10 steps
    assert grids.leading(INDEXED, 10).tolist() == [*range(900, -1, -100), -1]
    assert grids.trailing(INDEXED, 10).tolist() == [*range(999, 0, -100), -1]
    linspace = [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1]
    assert grids.linspace(INDEXED, 10).tolist() == linspace
    assert grids.leading(INDEXED, 10, steps_offset=1).tolist() == [*range(901, 0, -100), -1]
    assert grids.uniform_time(INDEXED, 10).tolist() == grids.trailing(INDEXED, 10).tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 333, 501, 666, 999, 1000])
def test_training_indices_as_numpy_rounds_them(steps):
    trailing = np.round(np.arange(1000, 0, -1000 / steps))[:steps] - 1
    assert grids.trailing(INDEXED, steps).tolist() == [*trailing, -1]
    assert grids.trailing(INDEXED, steps)[0] == 999
    leading = (np.arange(steps) * (1000 // steps))[::-1]
    assert grids.leading(INDEXED, steps).tolist() == [*leading, -1]
    if steps > 1:
        linspace = np.linspace(0, 999, steps).round()[::-1]
        assert grids.linspace(INDEXED, steps).tolist() == [*linspace, -1]


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: grids.karras(schedules.edm(), 0), "karras: 0 steps"),
        (lambda: grids.karras(schedules.edm(), 2.5), "steps = 2.5"),
        (lambda: grids.karras(schedules.edm(), 5, rho=0), "rho = 0"),
        (lambda: grids.karras(schedules.edm(), 5, sigma_min=3, sigma_max=2), "sigma_min = 3, but"),
        (lambda: grids.karras(schedules.edm(), 5, sigma_max=81), "sigma_max = 81.* at 80"),
        (lambda: grids.karras(schedules.edm(), 5, sigma_min=0.001), "sigma_min = 0.001.* 0.002"),
        (lambda: grids.karras(schedules.edm(), 5, sigma_min=-1), "sigma_min = -1"),
        (lambda: grids.karras(schedules.flow(), 5), "infinite at t = 1.0, .* grids.default"),
        (lambda: grids.uniform_logsnr(INDEXED, 5, sigma_max=20), "sigma_max = 20.* at 14"),
        (lambda: grids.uniform_logsnr(INDEXED, 5, sigma_min=0.001), "sigma_min = 0.001.* 0.029"),
        (lambda: grids.uniform_time(INDEXED, 1001), "1001 steps.* 1000 training"),
        (lambda: grids.uniform_time(schedules.flow(), 4, start=0.2, end=0.5), "0.2 is followed"),
        (lambda: grids.uniform_time(schedules.flow(), 4, start=1.2), "1.2, but .* 1.0 to 0.0"),
        (lambda: grids.trailing(INDEXED, 1001), "1001 steps"),
        (lambda: grids.trailing(schedules.flow(), 10), "no training indices.* uniform_time"),
        (lambda: grids.leading(INDEXED, 1000, steps_offset=1), "first index 1000.* 999"),
        (lambda: grids.leading(INDEXED, 10, steps_offset=-1), "steps_offset = -1"),
        (lambda: grids.linspace(INDEXED, 1), "1 step"),
        (lambda: grids.linspace(INDEXED, -3), "-3 steps"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


@pytest.mark.parametrize(
    ("times", "facts"),
    [
        ([0.5], r"shape \[1\]"),
        ([[1.0, 0.0]], r"shape \[1, 2\]"),
        ([1.0, np.nan, 0.0], r"grid\[1\] = nan"),
        ([0.0, 0.5, 1.0], "0.0 is followed by .* 0.5, but times must go strictly"),
        ([1.0, 0.5, 0.5, 0.0], "0.5 is followed by .* 0.5"),
        ([1.1, 0.5], "1.1, but the schedule runs from 1.0 to 0.0"),
        ([1.0, -0.1], "-0.1, but"),
    ],
)
def test_check_grid_refuses(times, facts):
    with pytest.raises(ValueError, match=facts):
        grids.check_grid(schedules.flow(), times)


def test_check_grid_forgives_rounding_at_the_ends():
    grid = grids.check_grid(schedules.edm(), [80.00000000000003, 1, -1e-12])
    assert grid.tolist() == [80.0, 1.0, 0.0]
    assert grid.dtype == np.float64
