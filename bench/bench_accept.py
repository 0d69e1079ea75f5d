"""`accept`, against torch.where on the planes that it moves.

In torch, moving the planes of accepted samples is one `where` a plane, over all samples. The
decision takes a dozen small operations more, which are not counted here. Before it copies, a call
costs the dispatch of 14 tensors and lists.
"""

import math

import pytest
import torch

from diffast import ops

# Steps stay at a thousandth; the controller is evaluated each time.
RULE = [2, 0.9, 0.467, 0.267, 0, 0.2, 2, 0.9, 0.667, 0.2, 0.9, 0.01, 0.5, 1e-3, 1e-3, 0]
FLAGS = [1, 1, 0, 0, 0, 1, 0, 2**62]
PLANE = (3, 64, 64)


def call_of(samples, planes=0, finished=False):
    """Returns a call in which every sample accepts each trial step and never ends."""
    sources = [torch.randn(samples, *PLANE) for _ in range(planes)]
    targets = [torch.randn(samples, *PLANE) for _ in range(planes)]
    row = [0.0, 1e-3, 1e300, math.nan, math.nan, math.nan]
    counts = torch.zeros(samples, 7, dtype=torch.int64)
    counts[:, 0], counts[:, 1] = int(finished), 1
    pairs = [number for k in range(planes) for number in (1, k, k)]
    return (
        torch.full((samples, 2), 0.7, dtype=torch.float64),
        torch.full((samples,), -1),
        RULE,
        FLAGS,
        pairs,
        [],
        sources,
        torch.tensor([row] * samples, dtype=torch.float64),
        counts,
        torch.zeros(samples, 3, dtype=torch.int64),
        targets,
    )


@pytest.mark.parametrize("samples", (1, 64, 512))
@pytest.mark.parametrize("finished", (True, False), ids=("at rest", "judged"))
def test_nothing_to_copy(benchmark, measure, report, threads, samples, finished):
    """Target: 10 us with 64 samples."""
    call = call_of(samples, finished=finished)
    with torch.inference_mode():
        timings = measure({"accept": lambda: ops.accept(*call)})
        benchmark.pedantic(lambda: ops.accept(*call), rounds=3, iterations=1, warmup_rounds=1)
    assert (call[8][:, 0] == int(finished)).all()
    figures = {"threads": threads, "us": timings["accept"].median * 1e6}
    case = f"accept, {samples} samples {'at rest' if finished else 'judged'}"
    targets = [("us", "<=", 10.0)] if samples == 64 else []
    report(case, timings, targets, **figures)


@pytest.mark.parametrize("samples", (1, 64, 512))
def test_two_planes_of_accepted_samples(benchmark, measure, report, threads, samples):
    """Target: at most torch.where's time on the same planes."""
    call = call_of(samples, 2)
    sources, targets = call[6], call[10]
    mask = torch.ones(samples, 1, 1, 1, dtype=torch.bool)

    def where():
        for source, target in zip(sources, targets, strict=True):
            torch.where(mask, source, target, out=target)

    def copy():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    functions = {"accept": lambda: ops.accept(*call), "where": where, "copy": copy}
    with torch.inference_mode():
        timings = measure(functions)
        benchmark.pedantic(functions["accept"], rounds=3, iterations=1, warmup_rounds=1)
    assert (call[8][:, 0] == 0).all() and torch.equal(sources[1], targets[1])
    seconds = timings["accept"].median
    size = 2 * 2 * sources[0].numel() * sources[0].element_size()
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "GB/s": size / seconds / 1e9,
        "of copy": timings["copy"].median / seconds,
        "of eager": seconds / timings["where"].median,
    }
    case = f"accept, {samples} samples, 2 planes of (3,64,64)"
    report(case, timings, [("of eager", "<=", 1.0)] if threads == 1 else (), **figures)
