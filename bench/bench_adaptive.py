"""One trial step of the adaptive executor with a network that costs nothing.

Floor of a trial step: the tensors that it has to read and write, over the copy bandwidth. For
"pec": the network input is made of state, estimate and the path's value, and the path's next value
is written (3 read, 2 written); the new state, estimate and error are made of state,
input, estimate and output (4 read, 2 written). With counter noise: 2 read, 1 written, then 4 and 2.
The normals are not included: their own time is in "normals".
"""

import itertools

import pytest
import torch

import diffast as df
from diffast import ops
from diffast.executors.adaptive import sample as adaptive

SHAPES = {
    "1x4x64x64": (1, 4, 64, 64),
    "64x3x64x64": (64, 3, 64, 64),
    "8x4x128x128": (8, 4, 128, 128),
}
CASES = {
    "pec": ("pec", {"noise": "bridge"}, 11),
    "pec without rejections": ("pec", {"reject": False}, 9),
    "dpm_12": ("dpm_12", {}, None),
    "ggf": ("ggf", {"noise": "bridge"}, None),
}


def prepared(method, shape, output, schedule=None, **options):
    """Returns a started run of very small steps, which does not end while it is timed."""
    schedule = df.schedules.vp_linear() if schedule is None else schedule
    denoiser = df.Denoiser(lambda x, t: output[: len(x)], schedule, predicts="x0")
    pair = {} if method == "dpm_12" else {"rtol": 10.0}
    run = adaptive.prepare(
        denoiser, method, shape, h_init=1e-5, h_max=1e-5, max_calls=10**9, **pair, **options
    )
    with torch.inference_mode():
        run.start(None)
    return run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SHAPES)
def test_attempt(benchmark, measure, report, threads, name, case):
    """Time of one network call's round, against copies of the bytes that it has to move."""
    shape = SHAPES[name]
    method, options, planes = CASES[case]
    with torch.inference_mode():
        run = prepared(method, shape, torch.randn(shape) * 0.1, **options)
        source = torch.randn((11, *shape))
        target = torch.empty_like(source)
        half = (planes or 11) / 2  # a copy moves every byte twice
        size = int(half * source[0].numel())
        ids = torch.arange(shape[0])
        stage = itertools.count()
        functions = {
            "attempt": run.round,
            "copy": lambda: target.view(-1)[:size].copy_(source.view(-1)[:size]),
            "normals": lambda: ops.normal_out(ids, 0, next(stage), 1.0, target[0]),
        }
        timings = measure(functions)
        benchmark.pedantic(run.round, rounds=3, iterations=1, warmup_rounds=1)
    assert run.batch.size == shape[0]
    floor = timings["copy"].median
    figures = {
        "threads": threads,
        "us": timings["attempt"].median * 1e6,
        "copy us": floor * 1e6,
        "normals us": timings["normals"].median * 1e6,
        "(attempt - 100 us) / copy": (timings["attempt"].median - 1e-4) / floor,
    }
    benchmark.extra_info.update(figures)
    report(f"{case}, {name}", timings, **figures)
