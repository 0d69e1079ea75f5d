"""Parallel in time: the sequential result, whatever the solver, method and window."""

import pytest
import torch

import diffast as df

SCHEDULE = df.schedules.vp_linear()


def network(x, t):
    # Elementwise, so that a row's place in a batch cannot matter.
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, 1))


DENOISER = df.Denoiser(network, SCHEDULE, predicts="epsilon")


def plan_of(name, steps=12):
    grid = df.grids.uniform_time(SCHEDULE, steps)
    return df.solvers.get(name)(SCHEDULE, grid)


@pytest.mark.parametrize("window", [None, 5, 1])
@pytest.mark.parametrize("method", ["secant", "prior"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun", "rk4"])
def test_without_tolerance_it_is_the_sequential_result_to_the_bit(name, method, window):
    plan = plan_of(name)
    wanted = df.sample(DENOISER, plan, (3, 7), seed=4).x
    made = df.sample_parallel(DENOISER, plan, (3, 7), seed=4, method=method, tol=0.0, window=window)
    assert torch.equal(made.x, wanted)
    assert made.rounds <= plan.stages
    if window == 1:
        assert made.rounds == plan.stages


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_the_error_stays_within_the_tolerance(name):
    plan = plan_of(name, 30)
    wanted = df.sample(DENOISER, plan, (16, 7), seed=4).x
    made = df.sample_parallel(DENOISER, plan, (16, 7), seed=4, tol=1e-2)
    error = (made.x - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() <= 1e-2
    assert made.rounds < plan.stages / 2
