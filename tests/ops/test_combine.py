"""`combine`: the C++ kernels equal the reference bit for bit, whatever the call looks like."""

import itertools

import numpy as np
import pytest
import torch
from op_cases import (
    CLAMPS,
    FLOATS,
    FORMS,
    Case,
    around_every_half,
    assert_guards,
    assert_same_bits,
    every_half,
    guarded,
    into,
    placed,
    random_tensor,
)

from diffast import ops
from diffast.ops.combine import reference

pytestmark = pytest.mark.usefixtures("nan_memory")

SHAPES = [(batch, size) for batch in (0, 1, 3) for size in (0, 1, 7, 63, 1000, 4097)] + [
    (2, 3, 5, 7),
    (1, 4, 64, 64),
    (2, 1024),
    (2, 1025),
    (5,),
    (3, 0, 4),
]
# Every combination of rows, noises and clamp, in an order that no other loop repeats.
VARIANTS = list(itertools.product(range(1, 9), range(3), CLAMPS))
EVERYWHERE = (0, 4, 32)  # bytes past a 64-byte boundary; 4 is off every vector width


def tensors(rng, dtypes, shape, offset=0):
    return [placed(random_tensor(rng, shape, dtype), offset) for dtype in dtypes]


def test_the_compiled_kernels_are_what_is_tested():
    assert ops.backends()["cpu"]["backend"].startswith("c++")


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_with_every_variant(inputs):
    rng = np.random.default_rng(inputs)
    for i, (rows, noises, clamp) in enumerate(VARIANTS):
        wide = torch.float64 if i % 5 == 0 else torch.float32
        case = Case(rng, tensors(rng, [wide] * inputs, (2, 67)), rows, noises, clamp)
        label = (inputs, rows, noises, clamp, wide)
        case.check(label, (wide, FLOATS[i % 4]), forms=(i % 2, 3 - i % 2))


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_position_carries_every_dtype(inputs):
    rng = np.random.default_rng(100 + inputs)
    for i, (position, dtype) in enumerate(itertools.product(range(inputs), FLOATS)):
        rows, noises, clamp = VARIANTS[(i * 29 + inputs * 7) % len(VARIANTS)]
        dtypes = [torch.float32] * inputs
        dtypes[position] = dtype
        case = Case(rng, tensors(rng, dtypes, (2, 53)), rows, noises, clamp)
        label = (inputs, position, dtype, rows, noises, clamp)
        outs = (torch.float32, dtype) if rows % 2 else (dtype, torch.float32)
        case.check(label, outs, forms=(i % 2, 3 - i % 2))


@pytest.mark.parametrize("inputs", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_every_pair_of_input_and_output_dtype(inputs, out):
    rng = np.random.default_rng(7)
    for rows, noises, clamp in [(1, 0, CLAMPS[0]), (3, 1, CLAMPS[1]), (6, 2, CLAMPS[2])]:
        case = Case(rng, tensors(rng, [inputs] * 3, (2, 301)), rows, noises, clamp)
        case.check((inputs, out, rows), (out,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape):
    rng = np.random.default_rng(shape)
    for mixed, (rows, noises, clamp) in itertools.product(
        (False, True), [(1, 0, CLAMPS[0]), (2, 1, CLAMPS[0]), (3, 2, CLAMPS[1]), (5, 0, CLAMPS[2])]
    ):
        dtypes = [torch.float32, torch.bfloat16 if mixed else torch.float32, torch.float32]
        Case(rng, tensors(rng, dtypes, shape), rows, noises, clamp).check((shape, rows, mixed))


@pytest.mark.parametrize("out_offset", EVERYWHERE)
@pytest.mark.parametrize("in_offset", EVERYWHERE)
def test_storage_that_is_not_aligned(in_offset, out_offset):
    rng = np.random.default_rng(11)
    half = (torch.float16, torch.bfloat16)
    for size, dtypes, rows in [(1003, FLOATS[:1] * 4, 2), (77, half * 2, 5), (513, FLOATS[:3], 1)]:
        xs = tensors(rng, dtypes, (2, size), in_offset)
        Case(rng, xs, rows, noises=1).check((size, rows), dtypes, offset=out_offset)
    xs = tensors(rng, [torch.float64] * 2, (2, 1003), 2 * in_offset)
    Case(rng, xs, 3, noises=1).check("float64", (torch.float64,), offset=2 * out_offset)
    xs = tensors(rng, half, (2, 1003), in_offset // 2)
    Case(rng, xs, 2).check("half", half, offset=out_offset // 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", (1, 2, 4, 5, 8))
@pytest.mark.parametrize("clamp", CLAMPS)
def test_outputs_that_are_inputs(rows, dtype, clamp):
    """Each row in turn is written over each input in turn; the last row over another one."""
    rng = np.random.default_rng(rows)
    stored = rows - (clamp == CLAMPS[2])
    for (position, row), noises in itertools.product(
        itertools.product(range(4), range(stored)), (0, 1)
    ):
        xs = tensors(rng, [dtype] * 4, (2, 531))
        case = Case(rng, xs, rows, noises, clamp)
        for form, call in ((2, case.host_call), (3, case.table_call)):
            overload, specification = FORMS[form]
            wanted = [torch.full_like(xs[0], torch.nan) for _ in range(stored)]
            specification(*into(call, wanted, None))
            mine = [x.clone() for x in xs]
            outs = [torch.full_like(xs[0], torch.nan) for _ in range(stored)]
            outs[row] = mine[position]
            if stored > 1:
                outs[row - 1] = mine[position - 1]
            overload(*into((mine, *call[1:]), outs, None))
            label = (rows, dtype, clamp, position, row, noises, form)
            for r in range(stored):
                assert_same_bits(outs[r], wanted[r], (label, r))
            for k in set(range(4)) - {position, position - 1 if stored > 1 else position, 3}:
                assert_same_bits(mine[k], xs[k], (label, "input", k, "was written"))


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


STREAMED = (
    # shape, input dtypes, output dtype, rows: each moves more than the 64 MiB (kStreamBytes in
    # csrc/cpu/row_chunks.h) from which outputs bypass the caches
    ((1, 9_000_007), FLOATS[:1], torch.float32, 1),
    ((3, 1_500_000), FLOATS[:1] * 2, torch.float32, 2),
    ((1, 2_250_001), FLOATS[:1] * 4, torch.float32, 4),
    ((2, 900_008), FLOATS[:1] * 5, torch.float32, 6),
    ((3, 600_000), (torch.float64,) * 3, torch.float64, 2),
    ((2, 2_100_000), FLOATS[:3], torch.float32, 2),
    ((1, 1_500_001), FLOATS[:1] * 10, torch.float32, 2),
    ((64, 90_000), (torch.float32, torch.float16, torch.float32), torch.float32, 1),
)


@pytest.mark.parametrize(("shape", "dtypes", "out", "rows"), STREAMED)
def test_large_tensors_whose_outputs_bypass_the_caches(threads, shape, dtypes, out, rows):
    """Aligned outputs, and some that start a vector or half of one past a cache line."""
    rng = np.random.default_rng(rows)
    case = Case(rng, tensors(rng, dtypes, shape), rows)
    wanted = reference.combine(*case.host_call)
    for offset in (0, 16, 32):
        pairs = [guarded(shape, out, offset) for _ in range(rows)]
        ops.combine_out(*into(case.host_call, [tensor for tensor, _ in pairs], None))
        for r, (row, (tensor, buffer)) in enumerate(zip(wanted, pairs, strict=True)):
            assert_same_bits(tensor, row, (shape, threads, offset, r))
            assert_guards(tensor, buffer)


LARGE = (
    # shape, input dtypes, output dtype, rows: large enough to be shared among threads
    ((1, 600_000), FLOATS[:1] * 3, torch.float32, 1),
    ((7, 99_991), FLOATS[:1] * 2, torch.float32, 2),
    ((2, 200_000), FLOATS[:1] * 2, torch.float32, 6),
    ((2, 400_001), FLOATS[:3], torch.bfloat16, 2),
    ((1, 100_000), FLOATS[:1] * 10, torch.float32, 2),
    ((64, 16_384), (torch.float32, torch.float16), torch.float32, 1),
)


@pytest.mark.parametrize(("shape", "dtypes", "out", "rows"), LARGE)
def test_large_tensors(threads, shape, dtypes, out, rows):
    rng = np.random.default_rng(rows)
    xs = tensors(rng, dtypes, shape)
    label = (shape, rows, threads)
    Case(rng, xs, rows).check(label, (out,), offset=16)
    Case(rng, xs, rows, 1, CLAMPS[1]).check(label, (out,), forms=(2,))


@pytest.mark.parametrize("rows", (1, 2, 5))
@pytest.mark.parametrize("size", (300_003, 3_000_000))
def test_large_outputs_that_are_inputs(threads, rows, size):
    rng = np.random.default_rng(5)
    xs = tensors(rng, FLOATS[:1] * 3, (2, size))
    call = Case(rng, xs, rows).host_call
    wanted = reference.combine(*call)
    mine = [x.clone() for x in xs]
    outs = [mine[2], mine[0], *[torch.full_like(xs[0], torch.nan) for _ in range(rows)]][:rows]
    ops.combine_out(*into((mine, *call[1:]), outs, None))
    for out, row in zip(outs, wanted, strict=True):
        assert_same_bits(out, row)


SPECIAL = {
    torch.float32: (1e-45, 1.1754942e-38, 1.1754944e-38, 3.4028235e38, 16777217.0),
    torch.float16: (6e-8, 6.1e-5, 65504.0),
    torch.bfloat16: (1e-40, 1.2e-38, 3.39e38),
    torch.float64: (5e-324, 2.2e-308, 1.8e308 * 0.99, 1e-46, 3.5e38),
}


def special_values(dtype):
    magnitudes = (0.0, 1.0, 0.1, float("inf"), *SPECIAL[dtype])
    return [sign * value for value in magnitudes for sign in (1, -1)] + [float("nan")]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_special_values(dtype, out):
    """Every pair of special values in two columns, under weights that keep or spoil them."""
    values = torch.tensor(special_values(dtype), dtype=torch.float64).to(dtype)
    pairs = torch.cartesian_prod(values, values)
    xs = [pairs[:, 0].reshape(1, -1).contiguous(), pairs[:, 1].reshape(1, -1).contiguous()]
    weights = [1.0, 1.0, 1.0, -1.0, 0.0, 0.5, -0.0, 0.0, 1e-30, 1e30, 1e300, 1e-320]
    for clamp in ([], [0.0, 1.0], [-0.0, 0.0], [-1e300, 1e-300], [-float("inf"), 65504.0]):
        table = weights
        if clamp:
            table = [w for i, w in enumerate(weights) for w in [w] + [i / 2 - 0.5] * (i % 2)]
        rows = 6
        wanted = [torch.empty_like(xs[0], dtype=out) for _ in range(rows)]
        outs, buffers = zip(*[guarded(xs[0].shape, out) for _ in range(rows)], strict=True)
        call = (xs, table, [], 0, 0, None, clamp)
        reference.combine_out(*into(call, wanted, None))
        ops.combine_out(*into(call, list(outs), None))
        for r, (a, b, buffer) in enumerate(zip(outs, wanted, buffers, strict=True)):
            assert_same_bits(a, b, (dtype, out, clamp, r))
            assert_guards(a, buffer)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_half_goes_in_and_every_rounding_comes_out(dtype):
    """All 65,536 values widened; the numbers next to each value and to each tie narrowed."""
    halves = every_half(dtype)
    (wide,) = ops.combine([halves, torch.zeros(halves.shape)], [1.0, 0.0])
    assert_same_bits(wide, halves.to(torch.float32) + 0.0)
    near = around_every_half(dtype)
    out, buffer = guarded(near.shape, dtype)
    ops.combine([near], [1.0], outs=[out])
    assert_same_bits(out, near.to(dtype))
    assert_guards(out, buffer)


def test_the_first_bad_stage_stays_for_each_sample():
    good, x, later = tensors(np.random.default_rng(0), FLOATS[:1] * 3, (4, 2500))
    x[1, 0], x[3, 2499] = torch.inf, torch.nan
    later[0, 1100] = -torch.inf
    out, status = torch.empty_like(x), torch.full((4,), -1)
    for specification in (ops.combine_out, reference.combine_out):
        status.fill_(-1)
        for stage, state in ((4, good), (5, x), (6, later), (7, x)):
            word = stage + ops.INITIAL_NOISE
            specification([state], [1.0], [out], status, word)
        assert status.tolist() == [6, 5, -1, 5]


@pytest.mark.parametrize("stored", (0, 1))
@pytest.mark.parametrize("bad", (float("inf"), -float("inf"), float("nan")))
def test_a_clamp_does_not_hide_a_bad_sum_from_the_status(stored, bad):
    (x,) = tensors(np.random.default_rng(0), FLOATS[:1], (3, 70))
    x[1, 69] = bad
    for specification in (ops.combine_out, reference.combine_out):
        status = torch.tensor([-1, -1, 9])
        outs = [torch.empty_like(x) for _ in range(stored)]
        specification([x], [1.0, 0.0], outs, status, 3, clamp=[-1.0, 1.0])
        assert status.tolist() == [-1, 3, 9]
        if stored and bad == bad:
            assert outs[0].isfinite().all()


@pytest.mark.parametrize("bad", (float("inf"), float("nan"), 1e300))
def test_a_bad_weight_in_a_table_shows_in_the_status(bad):
    rng = np.random.default_rng(1)
    case = Case(rng, tensors(rng, FLOATS[:1] * 2, (3, 70)), 2, noises=1)
    case.table[1, 1, 0] = bad
    case.noise_table[2, 0, 0] = bad
    case.check(bad)
    status = torch.full((3,), -1)
    outs = [torch.empty(3, 70), torch.empty(3, 70)]
    ops.combine_table_out(*into(case.table_call, outs, status))
    assert status.tolist() == [-1, *(case.streams[1:, 2] & (ops.STAGE_LIMIT - 1)).tolist()]


@pytest.mark.parametrize("rows", (1, 3, 6))
@pytest.mark.parametrize("inputs", (2, 12))
def test_the_status_sees_every_row_and_every_element(rows, inputs):
    """One overflow at one element of one row, in vector bodies, tails and later pieces."""
    for row, element in itertools.product(range(rows), (0, 7, 8, 62, 1023, 1024, 2047, 2050)):
        x = torch.zeros(2, 2051)
        x[1, element] = 1e38
        weights = [[0.0] * inputs for _ in range(rows)]
        weights[row][inputs - 1] = 1e3
        status = torch.full((2,), -1)
        ops.combine(
            [x] * inputs,
            weights,
            stage=8,
            outs=[torch.empty_like(x) for _ in range(rows)],
            status=status,
        )
        assert status.tolist() == [-1, 8], (row, element)
