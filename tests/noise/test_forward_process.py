"""Noise put on clean data: levels, the noise of a whole run, and what is refused."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast import ops

SCHEDULES = {
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "vp_linear": df.schedules.vp_linear(),
    "from_betas": df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@each_schedule
def test_levels(schedule):
    x0, z = torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    time = 0.5 * (schedule.t_start + schedule.t_end)
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    got = df.add_noise(schedule, x0, time, noise=z)
    torch.testing.assert_close(got, alpha * x0 + sigma * z, rtol=1e-14, atol=1e-14)
    z = ops.normal(x0.shape, seed=4, ids=torch.tensor([5, 0, 9]))
    got = df.add_noise(schedule, x0, time, seed=4, ids=[5, 0, 9])
    torch.testing.assert_close(got, alpha * x0 + sigma * z.double(), rtol=1e-14, atol=1e-14)


def test_a_time_for_each_sample():
    schedule = SCHEDULES["vp_linear"]
    x0, times = torch.randn(3, 4), torch.tensor([0.2, 0.9, 0.5])
    got = df.add_noise(schedule, x0, times, seed=1)
    for b in range(3):
        one = df.add_noise(schedule, x0[b : b + 1], float(times[b]), seed=1, ids=[b])
        assert torch.equal(got[b : b + 1], one)


def test_from_pure_noise_it_is_the_start_of_a_run():
    schedule = SCHEDULES["edm"]
    grid = df.grids.karras(schedule, 6)
    plan = df.solvers.heun(schedule, grid)
    denoiser = df.Denoiser(lambda x, t: torch.tanh(x), schedule, predicts="x0")
    start = df.add_noise(schedule, torch.zeros(4, 3), grid[0], seed=8)
    whole = df.sample(denoiser, plan, (4, 3), seed=8)
    assert torch.equal(df.sample(denoiser, plan, x=start, seed=8).x, whole.x)


def test_image_to_image():
    # little strength leaves the picture, more strength less of it
    schedule = SCHEDULES["flow"]
    image = torch.linspace(-1, 1, 32).view(2, 16)
    denoiser = df.Denoiser(lambda x, t: 0.5 * x, schedule, predicts="x0")
    gaps = []
    for strength in (0.1, 0.5, 1.0):
        grid = df.grids.part_by_strength(schedule, df.grids.uniform_time(schedule, 20), strength)
        start = df.add_noise(schedule, image, grid[0], seed=3)
        out = df.sample(denoiser, df.solvers.dpmpp_2m(schedule, grid), x=start, seed=3)
        assert out.nfe.tolist() == [round(20 * strength)] * 2
        gaps.append(float((out.x - image).square().mean()))
    assert gaps[0] < gaps[1] < gaps[2]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"time": torch.tensor([0.1, 0.2])}, r"time is \[2\] but there are 3 samples"),
        ({"time": 0.5, "noise": torch.zeros(3, 5)}, r"noise is \[3, 5\] but x0 is \[3, 4\]"),
        ({"time": 1.5}, "lies outside"),
    ],
)
def test_refusals(arguments, facts):
    with pytest.raises(ValueError, match=facts):
        df.add_noise(SCHEDULES["flow"], torch.zeros(3, 4), **arguments)
