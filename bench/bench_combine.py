"""`combine` into given outputs, against the copy bandwidth and against the same sum in eager torch.

The floor of a large call is its bytes, (inputs + rows) tensors once, over the bandwidth that
torch.copy_ reaches moving as many bytes in the same turns; `of copy` is that floor over the time.
The floor of a small call is the cost of a dispatch with so many arguments, which
test_a_call_without_data measures, plus its bytes at the speed of the L2 cache.
"""

import pytest
import torch

from diffast import ops

KIB, MIB = 2**10, 2**20
SHAPES = (
    (1, 4, 64, 64),
    (8, 4, 128, 128),
    (64, 3, 64, 64),
    (16, 16, 256, 256),
    (1, 64 * KIB // 4),
    (1, 2 * MIB // 4),
    (1, 8 * MIB // 4),
    (1, 32 * MIB // 4),
)
NAMES = [
    "1x4x64x64", "8x4x128x128", "64x3x64x64", "16x16x256x256",
    "64 KiB", "2 MiB", "8 MiB", "32 MiB",
]  # fmt: skip
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
WEIGHTS = (0.9, -0.35, 1.7, 0.2)


def name_of(shape):
    return NAMES[SHAPES.index(shape)]


def copying(total_bytes):
    """Returns torch.copy_ of random numbers that reads and writes so many bytes together."""
    source = torch.randn(total_bytes // 2 // 4)
    target = torch.randn(source.shape)
    return lambda: target.copy_(source)


def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def figures_of(timings, total_bytes, threads):
    seconds = timings["combine"].median
    eager = timings.get("eager")
    return {
        "threads": threads,
        "us": seconds * 1e6,
        "GB/s": total_bytes / seconds * 1e-9,
        "of copy": timings["copy"].median / seconds,
        "of eager": seconds / eager.median if eager else None,
    }


def run(benchmark, measure, report, case, threads, call, total_bytes, targets=(), **others):
    """Times `call` in turns with a copy of as many bytes and with the others, and reports it."""
    with torch.inference_mode():
        functions = {"combine": call, "copy": copying(total_bytes), **others}
        timings = measure(functions)
        benchmark.pedantic(call, rounds=3, iterations=3, warmup_rounds=1)
    figures = figures_of(timings, total_bytes, threads)
    benchmark.extra_info.update(figures)
    report(case, timings, targets, **figures)


@each_shape
def test_one_row_of_four(benchmark, measure, report, threads, shape):
    """Floor: 5 tensors over the copy bandwidth; 6 us of dispatch + 3 us of L2 at 1x4x64x64.

    Targets: the copy's speed from 2 MiB a tensor, 0.8 of it at 64 KiB; at 1x4x64x64 at most 8 us
    and a quarter of eager torch's time.
    """
    xs, out = [torch.randn(shape) for _ in range(4)], torch.randn(shape)
    a, b, c, d = xs

    def eager():
        return WEIGHTS[0] * a + WEIGHTS[1] * b + WEIGHTS[2] * c + WEIGHTS[3] * d

    def combine():
        ops.combine_out(xs, WEIGHTS, [out])

    targets = [("of copy", ">=", 1.0 if bytes_of(out) >= 2 * MIB else 0.8)]
    if shape == SHAPES[0]:
        targets += [("us", "<=", 8.0), ("of eager", "<=", 0.25)]
    case = f"4 inputs, 1 row, {name_of(shape)}"
    total = bytes_of(*xs, out)
    run(benchmark, measure, report, case, threads, combine, total, targets, eager=eager)


@each_shape
def test_two_rows_of_four(benchmark, measure, report, threads, shape):
    """Floor: 6 tensors over the copy bandwidth. Target: 0.85 of it from 2 MiB a tensor."""
    xs = [torch.randn(shape) for _ in range(4)]
    outs = [torch.randn(shape) for _ in range(2)]
    weights = (*WEIGHTS, 0.1, 0.5, -0.5, 1.0)

    def combine():
        ops.combine_out(xs, weights, outs)

    targets = [("of copy", ">=", 0.85)] if bytes_of(outs[0]) >= 2 * MIB else []
    case = f"4 inputs, 2 rows, {name_of(shape)}"
    run(benchmark, measure, report, case, threads, combine, bytes_of(*xs, *outs), targets)


@each_shape
def test_over_an_input(benchmark, measure, report, threads, shape):
    """The state is overwritten. Floor: 4 tensors over the bandwidth, less what the cache saves."""
    xs = [torch.randn(shape) for _ in range(3)]

    def combine():
        # Weights whose product over many calls stays near 1.
        ops.combine_out(xs, (0.5, 0.3, 0.2), xs[:1])

    case = f"3 inputs, over the first, {name_of(shape)}"
    run(benchmark, measure, report, case, threads, combine, bytes_of(*xs, xs[0]))


@each_shape
def test_half_outputs_of_a_network(benchmark, measure, report, threads, shape):
    """Float32 state and memory, bfloat16 network output. Floor: 3.5 tensors over the bandwidth."""
    xs = [torch.randn(shape), torch.randn(shape).bfloat16(), torch.randn(shape)]
    out = torch.randn(shape)

    def combine():
        ops.combine_out(xs, WEIGHTS[:3], [out])

    case = f"float32 + bfloat16 + float32, {name_of(shape)}"
    run(benchmark, measure, report, case, threads, combine, bytes_of(*xs, out))


@each_shape
def test_weights_of_each_sample(benchmark, measure, report, threads, shape):
    """A table of weights. Floor: 5 tensors over the copy bandwidth."""
    xs, out = [torch.randn(shape) for _ in range(4)], torch.randn(shape)
    table = torch.randn(shape[0], 1, 4, dtype=torch.float64)

    def combine():
        ops.combine_table_out(xs, table, None, None, [], [out], None)

    case = f"4 inputs, table, {name_of(shape)}"
    run(benchmark, measure, report, case, threads, combine, bytes_of(*xs, out))


@pytest.mark.parametrize("rows", (1, 2))
def test_a_call_without_data(benchmark, measure, report, threads, rows):
    """The dispatch alone: 8 elements a tensor. This is the floor of every call on small tensors."""
    xs = [torch.randn(1, 8) for _ in range(4)]
    outs = [torch.randn(1, 8) for _ in range(rows)]
    weights = WEIGHTS * rows

    def combine():
        ops.combine_out(xs, weights, outs)

    case = f"4 inputs, {rows} row{'s' * (rows > 1)}, 8 elements"
    run(benchmark, measure, report, case, threads, combine, bytes_of(*xs, *outs))


@pytest.mark.parametrize("form", ("comfortable", "returning", "no_grad"))
def test_other_forms_of_a_small_call(benchmark, measure, report, threads, form):
    """What convenience costs at 1x4x64x64. Floor: the prepared call in inference mode."""
    shape = SHAPES[0]
    xs, out = [torch.randn(shape) for _ in range(4)], torch.randn(shape)

    def prepared():
        ops.combine_out(xs, WEIGHTS, [out])

    calls = {
        "comfortable": lambda: ops.combine(xs, WEIGHTS, outs=[out]),
        "returning": lambda: ops.combine_host(xs, WEIGHTS, (), 0, 0, None, ()),
        "no_grad": prepared,
    }
    with torch.no_grad() if form == "no_grad" else torch.inference_mode():
        timings = measure({"combine": calls[form], "copy": copying(bytes_of(*xs, out))})
        benchmark.pedantic(calls[form], rounds=3, iterations=3, warmup_rounds=1)
    figures = figures_of(timings, bytes_of(*xs, out), threads)
    report(f"4 inputs, 1 row, 1x4x64x64, {form}", timings, **figures)
