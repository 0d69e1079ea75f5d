"""A whole run with all numbers in tensors, and as a CUDA graph, against the run stage by stage.

On the CPU a replayable run shows what tables cost beside weights of the host. On a GPU the graph's
run is compared; figures for one are printed with the card's name, and there are none without it.
"""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors import context
from diffast.executors.replay import ReplayableRun

SHAPES = {"1x4x64x64": (1, 4, 64, 64), "64x3x64x64": (64, 3, 64, 64)}
STEPS = 20
SCHEDULE = df.schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def prepared(solver, shape, device):
    """Returns (denoiser, plan) with a network that costs nothing."""
    plan = df.solvers.get(solver)(SCHEDULE, df.grids.trailing(SCHEDULE, STEPS))
    output = torch.randn(shape, device=device)
    return df.Denoiser(lambda x, t: output, SCHEDULE, predicts="epsilon"), plan


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("name", SHAPES)
def test_replayable_run(benchmark, measure, report, threads, name, solver):
    """Loaded, run and copied out, against `df.sample`; figures are for one stage."""
    shape = SHAPES[name]
    denoiser, plan = prepared(solver, shape, "cpu")
    place = context.place_of("bench", denoiser, shape, None, None, 0, None, None)
    run = ReplayableRun(denoiser, plan, place)

    def replay():
        run.load(seed=1)
        run.run()
        return run.samples()

    def sample():
        return df.sample(denoiser, plan, shape=shape, seed=1)

    timings = measure({"replayable": replay, "sample": sample})
    benchmark.pedantic(replay, rounds=3, iterations=1, warmup_rounds=1)
    figures = {
        "threads": threads,
        "us": timings["replayable"].median / STEPS * 1e6,
        "of sample": timings["replayable"].median / timings["sample"].median,
    }
    benchmark.extra_info.update(figures)
    report(f"{solver}, {STEPS} stages, {name}", timings, **figures)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("name", SHAPES)
def test_graph(benchmark, measure, report, name, solver):
    """`GraphSampler` against `df.sample` on a GPU, the look at the status included."""
    shape = SHAPES[name]
    denoiser, plan = prepared(solver, shape, "cuda")
    sampler = df.GraphSampler(denoiser, plan, shape, device="cuda")

    def sample():
        return df.sample(denoiser, plan, shape=shape, seed=1, device="cuda")

    timings = measure({"graph": lambda: sampler(seed=1), "sample": sample})
    benchmark.pedantic(lambda: sampler(seed=1), rounds=3, iterations=1, warmup_rounds=1)
    figures = {
        "card": torch.cuda.get_device_name(),
        "us": timings["graph"].median / STEPS * 1e6,
        "of sample": timings["graph"].median / timings["sample"].median,
    }
    benchmark.extra_info.update(figures)
    report(f"{solver}, {STEPS} stages, {name}, graph", timings, **figures)
