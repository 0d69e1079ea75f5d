"""`brownian` and the paths on it against torchsde.BrownianTree, and against plain normals.

A run is that of k-diffusion's SDE samplers: 20 Karras steps from sigma 14.6 to 0.03, a new tree a
run. The floor is arithmetic: at depth 11 a step needs 12 normals an element at most, one a level
and one more. Each costs the time of a normal in `normal`.
"""

import pytest
import torch

from diffast import ops
from diffast.integrations import k_diffusion

torchsde = pytest.importorskip("torchsde")

SHAPES = {"1x4x64x64": (60, (1, 4, 64, 64)), "8x4x128x128": (15, (8, 4, 128, 128))}
STEPS = 20
DEPTH = 11


def tree_sampler(x, sigma_min, sigma_max, seed):
    """Returns k-diffusion's BrownianTreeNoiseSampler with one seed, on torchsde."""
    # A little wider: torchsde warns if rounding puts a level outside.
    ends = 0.999 * float(sigma_min), 1.001 * float(sigma_max)
    tree = torchsde.BrownianTree(ends[0], torch.zeros_like(x), ends[1], entropy=seed)
    return lambda sigma, sigma_next: -tree(sigma_next, sigma) / (sigma - sigma_next).abs().sqrt()


def run_of(sampler, x):
    sigmas = k_diffusion.get_sigmas_karras(STEPS, 0.03, 14.6)[:-1]

    def run():
        noise = sampler(x, sigmas[-1], sigmas[0], seed=1)
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            noise(sigma, sigma_next)

    return run


@pytest.mark.parametrize("name", SHAPES)
def test_path_against_torchsde(benchmark, measure, report, threads, name):
    """Targets: 60 times as fast at 1x4x64x64, 15 times at 8x4x128x128, on one thread."""
    factor, shape = SHAPES[name]
    x, out = torch.zeros(shape), torch.empty(shape)
    ids = torch.arange(shape[0])

    def normals():
        for stage in range(STEPS - 1):
            ops.normal_out(ids, 7, stage, 1.0, out)

    functions = {
        "path": run_of(k_diffusion.BrownianTreeNoiseSampler, x),
        "torchsde": run_of(tree_sampler, x),
        "normal": normals,
    }
    with torch.no_grad():
        timings = measure(functions, 15)
        benchmark.pedantic(functions["path"], rounds=3, iterations=1, warmup_rounds=1)
    step = {key: timing.median / (STEPS - 1) for key, timing in timings.items()}
    figures = {
        "threads": threads,
        "us": step["path"] * 1e6,
        "torchsde us": step["torchsde"] * 1e6,
        "times torchsde": step["torchsde"] / step["path"],
        "of 12 normals": step["path"] / step["normal"] / (DEPTH + 1),
    }
    targets = [("times torchsde", ">=", factor)] if threads == 1 else ()
    report(f"path, {name}", timings, targets, **figures)


@pytest.mark.parametrize("name", SHAPES)
def test_deepest_nodes_against_normals(benchmark, measure, report, threads, name):
    """Target: the 12 normals that a node of level 11 is made of, on one thread."""
    _, shape = SHAPES[name]
    out, value, last = torch.empty(shape), torch.empty(shape), torch.randn(shape)
    ids = torch.arange(shape[0])
    streams = torch.stack([ids * 0 + 7, ids, ids * 0], dim=1)
    nodes = torch.tensor([[1001, 1013]]).repeat(shape[0], 1)
    weights = torch.ones(shape[0], 2, dtype=torch.float64)

    def normals():
        for stage in range(DEPTH + 1):
            ops.normal_out(ids, 7, stage, 1.0, out)

    functions = {
        "brownian": lambda: ops.brownian_out(streams, nodes, weights, DEPTH, last, out, value),
        "normals": normals,
    }
    with torch.inference_mode():
        timings = measure(functions)
        benchmark.pedantic(functions["brownian"], rounds=3, iterations=1, warmup_rounds=1)
    seconds = timings["brownian"].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "ns/number": seconds / out.numel() / (DEPTH + 1) * 1e9,
        "of 12 normals": seconds / timings["normals"].median,
    }
    targets = [("of 12 normals", "<=", 1.0)] if threads == 1 else ()
    report(f"node of level {DEPTH}, {name}", timings, targets, **figures)
