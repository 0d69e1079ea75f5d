"""A whole run with a network that costs nothing, against the same maps written in eager torch.

The time is the sampler's own. Floor of a stage: the tensors that one `combine` reads and
writes over the copy bandwidth, or the 4 us of its dispatch; for noise, torch.randn of one state.
"""

import numpy as np
import pytest
import torch

import diffast as df

SHAPES = {
    "1x4x64x64": (1, 4, 64, 64),
    "8x4x128x128": (8, 4, 128, 128),
    "64x3x64x64": (64, 3, 64, 64),
}
STEPS = 20
SCHEDULE = df.schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def tables(plan):
    """The numbers of an x0-reading plan as Python floats, as a scheduler keeps them."""
    alpha, sigma = SCHEDULE.alpha(plan.times), SCHEDULE.sigma(plan.times)
    rows = np.stack([plan.weights("x", name) for name in ("x", "z1", "d", "h1")], axis=1)
    return [
        (1 / a, s / a, *row)
        for a, s, row in zip(alpha.tolist(), sigma.tolist(), rows.tolist(), strict=True)
    ]


def eager_run(plan, output, shape):
    """Euler-ancestral or 2M as users write it: x0 from epsilon, then the step, in torch."""
    rows = tables(plan)

    def run():
        x = torch.randn(shape)
        old = None
        for inverse, ratio, keep, noise, new, before in rows:
            x0 = inverse * x - ratio * output
            x = keep * x + new * x0
            if noise:
                x = x + noise * torch.randn(shape)
            if before:
                x = x + before * old
            old = x0
        return x

    return run


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("name", SHAPES)
def test_run(benchmark, measure, report, threads, name, solver):
    """Whole runs of 20 stages, set-up included; figures are for one stage."""
    shape = SHAPES[name]
    plan = df.solvers.get(solver)(SCHEDULE, df.grids.trailing(SCHEDULE, STEPS))
    output = torch.randn(shape)
    denoiser = df.Denoiser(lambda x, t: output, SCHEDULE, predicts="epsilon")

    def ours():
        return df.sample(denoiser, plan, shape=shape)

    with torch.inference_mode():
        timings = measure({"diffast": ours, "eager": eager_run(plan, output, shape)})
        benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=1)
    figures = {
        "threads": threads,
        "us": timings["diffast"].median / STEPS * 1e6,
        "of eager": timings["diffast"].median / timings["eager"].median,
    }
    benchmark.extra_info.update(figures)
    report(f"{solver}, {STEPS} stages, {name}", timings, **figures)
