"""Grids moved and cut: shifts, the stretch to a terminal time, parts for images already begun."""

from functools import partial

import numpy as np
import pytest
from test_grids import ALL, INDEXED, check, each

from diffast import grids, schedules

EDM, FLOW = schedules.edm(), schedules.flow()
U = np.linspace(1, 0, 9)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 8.0])
def test_shift_of_a_flow(shift):
    grid = grids.shifted(FLOW, U, shift)
    np.testing.assert_allclose(grid, shift * U / (1 + (shift - 1) * U), rtol=1e-14)
    assert grid[[0, -1]].tolist() == [1.0, 0.0]
    back = grids.shifted(FLOW, grid, 1 / shift)
    np.testing.assert_allclose(back, U, rtol=1e-14)


@each
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_shift_multiplies_the_noise_level_on_every_schedule(schedule, steps):
    grid = grids.from_sigmas(schedule, np.geomspace(5.0, 0.05, steps), to_zero=True)
    moved = grids.shifted(schedule, grid, 1.7)
    check(schedule, moved, steps, schedule.t_end)
    gap = schedule.lam(grid[:-1]) - schedule.lam(moved[:-1])
    np.testing.assert_allclose(gap, np.log(1.7), rtol=1e-10)
    stretched = grids.shifted_exponential(schedule, grid, 0.2, sigma=1.1)
    want = 1.1 * schedule.lam(grid[:-1]) - 0.2
    np.testing.assert_allclose(schedule.lam(stretched[:-1]), want, rtol=1e-10, atol=1e-12)
    assert stretched[-1] == schedule.t_end
    whole = grids.uniform_time(schedule, steps)
    down = grids.shifted(schedule, whole, 0.5)
    check(schedule, down, steps, schedule.t_end)
    if np.isinf(schedule.lam(schedule.t_start)):
        assert down[0] == schedule.t_start
    else:
        with pytest.raises(ValueError, match="shifted: moves the first sigma/alpha to .* starts"):
            grids.shifted(schedule, whole, 1.01)


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 9216])
def test_dynamic_shift_of_flux(tokens):
    mu = grids.dynamic_shift(tokens)
    slope = (1.15 - 0.5) / (4096 - 256)
    assert mu == pytest.approx(slope * tokens + 0.5 - slope * 256, rel=1e-13)
    grid = grids.shifted_exponential(FLOW, U, mu)
    with np.errstate(divide="ignore"):
        want = np.exp(mu) / (np.exp(mu) + (1 / U - 1))
    np.testing.assert_allclose(grid, want, rtol=1e-13)
    np.testing.assert_allclose(grid, grids.shifted(FLOW, U, np.exp(mu)), rtol=1e-14)
    with np.errstate(divide="ignore"):
        want = np.exp(mu) / (np.exp(mu) + (1 / U - 1) ** 1.3)
    np.testing.assert_allclose(grids.shifted_exponential(FLOW, U, mu, sigma=1.3), want, rtol=1e-13)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_as_diffusers_shifts_dynamically(kind, terminal):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=terminal
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12), mu=0.8)
    move = grids.shifted_exponential if kind == "exponential" else grids.shifted
    grid = move(FLOW, grids.uniform_time(FLOW, 12), 0.8)
    if terminal:
        grid = grids.stretched_to_terminal(FLOW, grid, terminal)
    np.testing.assert_allclose(grid, scheduler.sigmas.numpy(), atol=2e-7)


def test_stretch():
    grid = grids.stretched_to_terminal(FLOW, U, 0.1)
    assert grid[[0, -2, -1]].tolist() == [1.0, 0.1, 0.0]
    np.testing.assert_allclose((1 - grid[1:-1]) / (1 - U[1:-1]), 0.9 / 0.875, rtol=1e-14)
    kept = grids.stretched_to_terminal(FLOW, [1.0, 0.5, 0.2], 0.4)
    np.testing.assert_allclose(kept, [1.0, 0.625, 0.4], rtol=1e-15)


@each
def test_parts_of_every_schedule(schedule):
    grid = grids.from_sigmas(schedule, np.geomspace(6.0, 0.05, 12), to_zero=True)
    assert grids.part(schedule, grid).tolist() == grid.tolist()
    whole = grids.part(schedule, grid, start=grid[3], end=grid[9])
    assert whole.tolist() == grid[3:10].tolist()
    between = grids.part(schedule, grid, start=0.5 * (grid[3] + grid[4]))
    assert between.tolist() == [0.5 * (grid[3] + grid[4]), *grid[4:]]
    level = grids.part(schedule, grid, sigma_start=2.0, sigma_end=0.0)
    assert schedule.lam(level[0]) == pytest.approx(-np.log(2.0), rel=1e-12)
    assert level[-1] == schedule.t_end
    assert level[1:].tolist() == grid[schedule.lam(grid) > -np.log(2.0) + 1e-9].tolist()
    single = grids.part(schedule, grid, sigma_start=0.9, sigma_end=0.89)
    assert len(single) == 2


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("strength", [0.3, 0.58, 0.75, 1.0])
def test_strength_as_diffusers_counts(steps, strength):
    grid = grids.karras(INDEXED, steps)
    keep = min(int(steps * strength), steps)
    if keep == 0:
        with pytest.raises(ValueError, match=f"strength = {strength}, but of {steps} steps"):
            grids.part_by_strength(INDEXED, grid, strength)
        return
    left = grids.part_by_strength(INDEXED, grid, strength)
    assert left.tolist() == grid[max(steps - keep, 0) :].tolist()
    assert len(left) == keep + 1


@pytest.mark.parametrize("denoise", [0.05, 0.3, 0.5, 1.0])
def test_denoise_as_comfyui_counts(denoise):
    make = partial(grids.karras, INDEXED)
    left = grids.part_by_denoise(make, 12, denoise)
    assert left.tolist() == make(int(12 / denoise))[-13:].tolist()
    check(INDEXED, left, 12, -1.0)
    # as small as those of the longer grid, and the same share of it
    assert abs(12 / denoise - len(make(int(12 / denoise))) + 1) < 1


def test_parts_do_not_share_memory_with_their_grid():
    grid = grids.karras(EDM, 6)
    left = grids.part_by_strength(EDM, grid, 0.5)
    left[0] += 1.0
    assert grid.tolist() == grids.karras(EDM, 6).tolist()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: grids.shifted(FLOW, U, 0), "shifted: shift = 0, but it must be positive"),
        (lambda: grids.shifted(FLOW, U[::-1], 3), "strictly from noisy to clean"),
        (lambda: grids.shifted(EDM, [80, 1.0], 3), "sigma/alpha to 240, .* starts at 80"),
        (lambda: grids.shifted_exponential(FLOW, U, np.inf), "mu = inf, but"),
        (lambda: grids.shifted_exponential(FLOW, U, 1.0, sigma=0), "exponential: sigma = 0"),
        (lambda: grids.dynamic_shift(0), "dynamic_shift: image_tokens = 0"),
        (lambda: grids.dynamic_shift(10, 256, 256), "max_tokens = 256, but it must differ"),
        (lambda: grids.dynamic_shift(10, max_shift=np.nan), "max_shift = nan, but both"),
        (lambda: grids.stretched_to_terminal(EDM, [80, 0], 0.1), "SigmaSpace.* must be flow"),
        (lambda: grids.stretched_to_terminal(FLOW, U, 1.0), "shift_terminal = 1.0, but"),
        (lambda: grids.stretched_to_terminal(FLOW, [1.0, 0.0], 0.1), "only noisy time is 1.0"),
        (lambda: grids.part(FLOW, U, start=1.1), "part: start = 1.1, but the grid runs from"),
        (lambda: grids.part(FLOW, U, end=np.nan), "part: end = nan, but"),
        (lambda: grids.part(FLOW, U, start=0.2, end=0.4), "start = 0.2, but .* end = 0.4"),
        (lambda: grids.part(FLOW, U, start=0.2, end=0.2), "start = 0.2, but .* end = 0.2"),
        (lambda: grids.part(FLOW, U, start=0.2, sigma_start=1), "sigma_start = 1 is given as we"),
        (
            lambda: grids.part(EDM, [9.0, 0], sigma_start=10),
            "part: start = (9.99|10).*, but the grid",
        ),
        (lambda: grids.part(INDEXED, [9.0, 0], sigma_start=20), "sigma_start = 20, .* at 14.6"),
        (lambda: grids.part(FLOW, U, sigma_end=-1), "part: sigma_end = -1, but"),
        (lambda: grids.part_by_strength(FLOW, U, 0), "strength = 0, but it must lie in"),
        (lambda: grids.part_by_strength(FLOW, U, 1.5), "strength = 1.5, but"),
        (
            lambda: grids.part_by_strength(FLOW, U, 0.1),
            "strength = 0.1, but of 8 steps that leaves",
        ),
        (lambda: grids.part_by_denoise(partial(grids.simple, FLOW), 5, 0), "denoise = 0, but"),
        (lambda: grids.part_by_denoise(partial(grids.simple, FLOW), 0, 1), "by_denoise: 0 steps"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


def test_every_schedule_is_walked():
    assert {type(schedule).__name__ for schedule in ALL.values()} == {
        "VPLinear",
        "VPCosine",
        "SubVP",
        "SigmaSpace",
        "Flow",
        "Trig",
        "FromBetas",
    }
