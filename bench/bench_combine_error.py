"""`combine_error` into given outputs, against a copy of as many bytes and against eager torch.

The floor is the bytes of inputs and outputs, without the error, over the bandwidth of torch.copy_
in the same turns. `of one more` is the time over that of `combine.table` with the error stored as
one more row: the time of a step without this op, before the norm.
"""

import pytest
import torch
from bench_combine import bytes_of, copying

from diffast import ops

SHAPES = {"64x3x64x64": (64, 3, 64, 64), "8x4x128x128": (8, 4, 128, 128)}
# Inputs, outputs, form, measure, whether the last input is bfloat16.
CASES = {
    "3 inputs, 2 rows, scalar": (3, 2, 0, False, False),
    "4 inputs, 2 rows, scalar": (4, 2, 0, False, False),
    "4 inputs (1 bfloat16), 2 rows, scalar": (4, 2, 0, False, True),
    "6 inputs, 2 rows, scalar": (6, 2, 0, False, False),
    "4 inputs, 2 rows, scalar, measured": (4, 2, 0, True, False),
    "4 inputs, 1 row, max": (4, 1, 1, False, False),
    "6 inputs, 2 rows, max": (6, 2, 1, False, False),
    "8 inputs, 2 rows, max": (8, 2, 1, False, False),
}


def eager_norm(error, before, after, tolerance, form):
    """Returns the scaled error's norm [B]."""
    spread = [t.float().reshape(-1, *[1] * (error.dim() - 1)) for t in tolerance.T]
    delta = spread[0]
    if form:
        delta = torch.maximum(delta, torch.maximum(before.abs(), after.abs()) * spread[1])
    return (error / delta).square().flatten(1).mean(dim=1).sqrt()


def eager_call(xs, weights, tolerance, outs, form, measure):
    """Returns the same computation as hand-written torch would do it."""
    numbers = weights[0].tolist()  # the same for the batch, which spares it the table

    def row(r):
        total = numbers[r][0] * xs[0]
        for weight, x in zip(numbers[r][1:], xs[1:], strict=True):
            total += weight * x
        return total

    def call():
        rows = [row(r) for r in range(len(numbers))]
        before, after = rows[outs + 1 : outs + 3] if form else (None, None)
        norm = eager_norm(rows[outs], before, after, tolerance, form)
        return rows, norm, rows[-1].square().flatten(1).mean(dim=1).sqrt() if measure else None

    return call


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_combine_error(benchmark, measure, report, threads, shape, case):
    """Target: at most 1.3 times `combine.table` with one more row, for form scalar."""
    inputs, stored, form, measured, half = CASES[case]
    size = SHAPES[shape]
    xs = [torch.randn(size) for _ in range(inputs)]
    if half:
        xs[-1] = xs[-1].bfloat16()
    outs = [torch.randn(size) for _ in range(stored + 1)]
    rows = stored + 1 + 2 * (form > 0) + measured
    table = torch.randn(size[0], rows, inputs, dtype=torch.float64)
    more = table[:, : stored + 1].contiguous()
    tolerance = torch.rand(size[0], 2, dtype=torch.float64) + 0.01
    norms = torch.empty(size[0], 2, dtype=torch.float64)
    call = (xs, table, None, None, [], tolerance, form, 0, measured)
    total = bytes_of(*xs, *outs[:stored])

    def combine_error():
        ops.combine_error_out(*call, outs[:stored], norms, None)

    def one_more_row():
        ops.combine_table_out(xs, more, None, None, [], outs, None)

    with torch.inference_mode():
        timings = measure(
            {
                "combine_error": combine_error,
                "copy": copying(total),
                "one more row": one_more_row,
                "eager": eager_call(xs, table, tolerance, stored, form, measured),
            }
        )
        benchmark.pedantic(combine_error, rounds=3, iterations=3, warmup_rounds=1)
    seconds = timings["combine_error"].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "GB/s": total / seconds * 1e-9,
        "of copy": timings["copy"].median / seconds,
        "of one more": seconds / timings["one more row"].median,
        "of eager": seconds / timings["eager"].median,
    }
    benchmark.extra_info.update(figures)
    targets = [("of one more", "<=", 1.3)] if form == 0 and not measured else []
    report(f"{case}, {shape}", timings, targets, **figures)
