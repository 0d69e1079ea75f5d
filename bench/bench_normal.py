"""`normal` and `combine` with noise, against torch.randn of as many numbers.

The floor of noise is arithmetic, not memory: ten rounds of Philox and a Box-Muller pair, about
1.5 ns a number on one core with AVX2. Other samplers call torch.randn (a 24-bit Box-Muller over
Mersenne Twister words) and then add the numbers in a further pass.
"""

import pytest
import torch
from bench_combine import SHAPES, WEIGHTS, name_of

from diffast import ops

each_shape = pytest.mark.parametrize("shape", SHAPES[:3] + SHAPES[5:7], ids=name_of)


def run(benchmark, measure, report, case, threads, functions, count, targets):
    """Times the first function in turns with the others; all of them make `count` normals."""
    name = next(iter(functions))
    with torch.inference_mode():
        timings = measure(functions)
        benchmark.pedantic(functions[name], rounds=3, iterations=1, warmup_rounds=1)
    seconds = timings[name].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "ns/number": seconds / count * 1e9,
        "of randn": seconds / timings["randn"].median,
        "plain us": timings["plain"].median * 1e6 if "plain" in timings else None,
    }
    benchmark.extra_info.update(figures)
    report(case, timings, targets if threads == 1 else (), **figures)


@each_shape
def test_normal(benchmark, measure, report, threads, shape):
    """Target: at most torch.randn's time a number, on one thread."""
    ids, out, other = torch.arange(shape[0]), torch.randn(shape), torch.randn(shape)
    functions = {
        "normal": lambda: ops.normal_out(ids, 7, 3, 1.0, out),
        "randn": lambda: torch.randn(shape, out=other),
    }
    case = f"normal, {name_of(shape)}"
    targets = [("of randn", "<=", 1.0)]
    run(benchmark, measure, report, case, threads, functions, out.numel(), targets)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
def test_normal_of_other_dtypes(benchmark, measure, report, threads, dtype):
    """Floor: the float32 normals themselves; a conversion more or less is no memory traffic."""
    shape = SHAPES[1]
    ids, out, other = torch.arange(shape[0]), torch.randn(shape).to(dtype), torch.randn(shape)
    functions = {
        "normal": lambda: ops.normal_out(ids, 7, 3, 2.5, out),
        "randn": lambda: torch.randn(shape, out=other),
    }
    case = f"normal, {dtype}, {name_of(shape)}"
    run(benchmark, measure, report, case, threads, functions, out.numel(), [])


@each_shape
@pytest.mark.parametrize("inputs", (2, 4))
def test_combine_with_noise(benchmark, measure, report, threads, inputs, shape):
    """Target: torch.randn's time + 20 %, though the sum is included. `plain us`: without noise."""
    xs, out, other = (
        [torch.randn(shape) for _ in range(inputs)],
        torch.randn(shape),
        torch.randn(shape),
    )
    weights = WEIGHTS[:inputs]
    functions = {
        "combine": lambda: ops.combine_out(xs, weights, [out], None, 3, (0.3,), 7),
        "randn": lambda: torch.randn(shape, out=other),
        "plain": lambda: ops.combine_out(xs, weights, [out]),
    }
    case = f"{inputs} inputs + noise, {name_of(shape)}"
    targets = [("of randn", "<=", 1.2)]
    run(benchmark, measure, report, case, threads, functions, out.numel(), targets)
