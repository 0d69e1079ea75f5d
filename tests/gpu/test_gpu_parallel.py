"""Parallel sampling on a GPU: the sequential result."""

import pytest
import torch

import diffast as df

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SCHEDULE = df.schedules.vp_linear()


def network(x, t):
    return x * (0.4 + 0.5 * t.reshape(-1, 1)) - 0.1 * x * x * x / (1.0 + x * x)


DENOISER = df.Denoiser(network, SCHEDULE, predicts="epsilon")


def plan_of(name, steps=12):
    return df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))


@pytest.mark.parametrize("method", ["secant", "prior", "anderson"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun", "rk4"])
def test_it_is_the_sequential_result(name, method):
    plan = plan_of(name)
    wanted = df.sample(DENOISER, plan, (3, 1000), seed=4, device="cuda").x
    options = {"method": method, "seed": 4, "device": "cuda"}
    made = df.sample_parallel(DENOISER, plan, (3, 1000), tol=0.0, **options)
    assert torch.equal(made.x, wanted)
    close = df.sample_parallel(DENOISER, plan, (3, 1000), tol=1e-2, **options)
    assert (close.x - wanted).norm() <= 1e-2 * wanted.norm()


def test_speculation_runs():
    plan = plan_of("ddpm")
    made = df.sample_parallel(DENOISER, plan, (64, 10), seed=4, device="cuda", method="speculative")
    assert made.x.isfinite().all() and 0.0 < made.acceptance <= 1.0
