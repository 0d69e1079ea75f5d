"""`combine_error`: outputs are those of `combine.table` to the bit, norms those of the reference.

The reference's norms are compared with float64 numpy written elsewhere; sums may run in another
order than the reference's, but in one that depends on the number of elements alone.
"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from error_cases import (
    VARIANTS,
    ErrorCase,
    assert_close_norms,
    check_error,
    check_loaded,
    numpy_norms,
    tensors,
)
from error_hashes import hashes
from op_cases import FLOATS, assert_same_bits, guarded
from places import HELPERS, ROOT

from diffast import ops
from diffast.ops.combine_error import reference as reference_error

pytestmark = pytest.mark.usefixtures("nan_memory")

SHAPES = [(batch, size) for batch in (0, 1, 3) for size in (0, 1, 7, 63, 1000, 4097)] + [
    (2, 3, 5, 7),
    (1, 4, 64, 64),
    (2, 1024),
    (2, 1025),
    (5,),
    (3, 0, 4),
]
EVERYWHERE = (0, 4, 32)  # bytes past a 64-byte boundary; 4 is off every vector width
returning = torch.ops.diffast.combine_error.default


@pytest.fixture(params=(1, 2))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("wide", (False, True), ids=("float32", "float64"))
@pytest.mark.parametrize("form", range(3))
def test_the_reference_equals_numpy(form, wide):
    rng = np.random.default_rng(form)
    dtype = torch.float64 if wide else torch.float32
    for norm, measure, noises, clamp, shape in itertools.product(
        (0, 1), (False, True), (0, 2), (False, True), ((0, 3), (3, 0), (1, 1), (3, 700), (2, 3, 5))
    ):
        xs = tensors(rng, [dtype] * 3, shape)
        case = ErrorCase(rng, xs, 1, form, norm, measure, noises, clamp)
        for function in (reference_error.combine_error, returning):
            got = function(*case.call)[-1]
            label = (form, norm, measure, noises, clamp, shape, function)
            assert_close_norms(got, numpy_norms(case, wide), label, 1e-12 if wide else 1e-6)


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_with_every_variant(inputs):
    rng = np.random.default_rng(inputs)
    for i, variant in enumerate(VARIANTS):
        if i % 16 % inputs > 2:
            continue  # all variants for few inputs, a changing part of them for many
        wide = torch.float64 if i % 5 == 0 else torch.float32
        case = ErrorCase(rng, tensors(rng, [wide] * inputs, (2, 67)), *variant)
        check_error(ops.combine_error_out, case, (inputs, variant, wide), (wide, FLOATS[i % 4]))


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_position_carries_every_dtype(inputs):
    rng = np.random.default_rng(100 + inputs)
    for i, (position, dtype) in enumerate(itertools.product(range(inputs), FLOATS)):
        variant = VARIANTS[(i * 29 + inputs * 7) % len(VARIANTS)]
        dtypes = [torch.float32] * inputs
        dtypes[position] = dtype
        case = ErrorCase(rng, tensors(rng, dtypes, (2, 53)), *variant)
        outs = (torch.float32, dtype) if i % 2 else (dtype, torch.float32)
        check_loaded(case, (inputs, position, dtype, variant), outs)


@pytest.mark.parametrize("inputs", FLOATS)
@pytest.mark.parametrize("out", FLOATS)
def test_every_pair_of_input_and_output_dtype(inputs, out):
    rng = np.random.default_rng(7)
    for variant in ((1, 0), (2, 1, 0, True, 1), (4, 2, 1, False, 2, True), (0, 1), (6, 0, 0, True)):
        case = ErrorCase(rng, tensors(rng, [inputs] * 3, (2, 1301)), *variant)
        check_loaded(case, (inputs, out, variant), (out,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape):
    rng = np.random.default_rng(shape)
    for mixed, variant in itertools.product(
        (False, True), ((2, 0), (1, 1, 0, True, 1), (2, 2, 1, True, 2, True), (5, 0, 1))
    ):
        dtypes = [torch.float32, torch.bfloat16 if mixed else torch.float32, torch.float32]
        check_loaded(ErrorCase(rng, tensors(rng, dtypes, shape), *variant), (shape, variant, mixed))


@pytest.mark.parametrize("out_offset", EVERYWHERE)
@pytest.mark.parametrize("in_offset", EVERYWHERE)
def test_storage_that_is_not_aligned(in_offset, out_offset):
    rng = np.random.default_rng(11)
    for size, dtypes, variant in (
        (1003, FLOATS[:1] * 4, (2, 0)),
        (2077, FLOATS[1:3] * 2, (2, 1, 0, True)),
        (513, FLOATS[:3], (1, 2, 1, True, 1)),
    ):
        case = ErrorCase(rng, tensors(rng, dtypes, (2, size), in_offset), *variant)
        check_error(ops.combine_error_out, case, (size, variant), dtypes, out_offset)


@pytest.mark.parametrize("inputs", (1, 3, 6, 11))
def test_outputs_are_those_of_combine_table_to_the_bit(inputs):
    rng = np.random.default_rng(inputs)
    for i, variant in enumerate(VARIANTS[inputs::7]):
        stored, *_, clamp = variant
        shape = (3, (7, 63, 1000, 4097)[i % 4])
        case = ErrorCase(rng, tensors(rng, [FLOATS[i % 4]] * inputs, shape), *variant)
        got = returning(*case.call)
        wanted = ops.combine_table(*case.rows_call)[clamp : clamp + stored]
        for r, (a, b) in enumerate(zip(got[:-1], wanted, strict=True)):
            assert_same_bits(a, b, (inputs, variant, r))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", (1, 2, 5))
def test_outputs_that_are_inputs(stored, dtype):
    """Each output in turn is written over each input in turn; the norms do not notice."""
    rng = np.random.default_rng(stored)
    for position, row, form, clamp in itertools.product(
        range(4), range(stored), (0, 1), (False, True)
    ):
        if stored == 5 and form and clamp:
            continue  # more rows than there may be
        variant = (stored, form, 0, stored < 5, position % 3, clamp)
        case = ErrorCase(rng, tensors(rng, [dtype] * 4, (2, 1531)), *variant)
        wanted = returning(*case.call)
        mine = [x.clone() for x in case.xs]
        outs = [torch.full_like(case.xs[0], torch.nan) for _ in range(stored)]
        outs[row] = mine[position]
        if stored > 1:
            outs[row - 1] = mine[position - 1]
        norms = torch.full((2, 2), torch.nan, dtype=torch.float64)
        ops.combine_error_out(mine, *case.call[1:], outs, norms, None)
        for r in range(stored):
            assert_same_bits(outs[r], wanted[r], (variant, position, row, r))
        assert_same_bits(norms, wanted[-1], (variant, position, row, "norms"))


@pytest.mark.parametrize("dtypes", (FLOATS[:1] * 3, FLOATS[:3], FLOATS[3:] * 3), ids=str)
def test_a_sample_has_the_same_norms_alone_in_any_batch_and_for_any_threads(dtypes):
    rng = np.random.default_rng(3)
    before = torch.get_num_threads()
    for i, size in enumerate((1, 17, 1000, 4097, 70_001)):
        for variant in ((2, 0, 0, True), (1, 1, 0, True, 1), (1, 2, 1, False, 0, True)):
            case = ErrorCase(rng, tensors(rng, dtypes, (7, size)), *variant)
            found = {}
            for count in (1, 2):
                torch.set_num_threads(count)
                found[f"{count} threads"] = returning(*case.call)
                alone = [returning(*case.samples(slice(b, b + 1))) for b in range(7)]
                found[f"alone, {count}"] = [torch.cat(parts) for parts in zip(*alone, strict=True)]
            order = torch.from_numpy(rng.permutation(7))
            back = order.argsort()
            found["permuted"] = [t[back] for t in returning(*case.samples(order))]
            torch.set_num_threads(before)
            wanted = found.pop("1 threads")
            for name, got in found.items():
                for a, b in zip(got, wanted, strict=True):
                    assert_same_bits(a, b, (size, variant, i, name))


@pytest.mark.parametrize(
    ("shape", "dtypes", "variant"),
    [
        # each moves more than the 64 MiB from which outputs bypass the caches
        ((3, 1_500_000), FLOATS[:1] * 3, (2, 0)),
        ((2, 900_001), FLOATS[:1] * 6, (5, 1)),
        ((2, 1_200_000), FLOATS[3:] * 3, (1, 2, 0, True)),
        ((3, 1_900_008), FLOATS[:3], (2, 0, 1)),
    ],
)
def test_large_tensors_whose_outputs_bypass_the_caches(threads, shape, dtypes, variant):
    rng = np.random.default_rng(threads)
    case = ErrorCase(rng, tensors(rng, dtypes, shape), *variant)
    wanted = ops.combine_table(*case.rows_call)
    for offset in (0, 16, 32):
        pairs = [guarded(shape, wanted[0].dtype, offset) for _ in range(case.stored)]
        norms = torch.full((shape[0], 2), torch.nan, dtype=torch.float64)
        ops.combine_error_out(*case.call, [tensor for tensor, _ in pairs], norms, None)
        for r, (tensor, _) in enumerate(pairs):
            assert_same_bits(tensor, wanted[r], (shape, threads, offset, r))
        alone = returning(*case.samples(slice(1, 2)))[-1]
        assert_same_bits(norms[1:2], alone, (shape, threads, offset))
    assert_close_norms(norms, numpy_norms(case, dtypes[0] == torch.float64), shape, 1e-6)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1e38))
def test_a_bad_element_spoils_its_own_sample_only(value):
    rng = np.random.default_rng(4)
    cases = itertools.product((0, 8, 15, 16, 1023, 1024, 2049), range(3), range(2))
    for i, (element, form, norm) in enumerate(cases):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 2, (4, 2050)), i % 3, form, norm, True)
        case.table[2] = torch.where(case.table[2].abs() < 0.1, 1.0, case.table[2]) * 100
        good = check_loaded(case, "before")
        case.xs[i % 2][2, element] = value
        norms = check_loaded(case, (value, element, form, norm))
        others = [0, 1, 3]
        assert_same_bits(norms[others], good[others], (value, element, form, norm))
        status = torch.full((4,), -1)
        outs = [torch.empty_like(case.xs[0]) for _ in range(case.stored)]
        ops.combine_error_out(*case.call, outs, norms, status)
        stage = case.streams[2, 2] & (ops.STAGE_LIMIT - 1)
        assert status.tolist() == [-1, -1, stage, -1]
        assert not norms[2].isfinite().any()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_no_error_is_no_error_whatever_the_tolerance(dtype):
    """Zeros over a tolerance of zero are 0, other numbers infinite, and NaN spreads."""
    errors, atols = (0.0, -0.0, 1.0, 1e-45, np.inf, np.nan), (0.0, 1e-3, np.inf, np.nan)
    others = ((0.0, 0.1, np.nan), (0.0, 2.0, np.nan), range(3), range(2))
    for error, atol, rtol, before, form, norm in itertools.product(errors, atols, *others):
        xs = [torch.zeros(1, 19, dtype=dtype) for _ in range(3)]
        xs[0][0, 4] = error
        xs[1 + form % 2][0, 4] = before
        rows = torch.eye(3, dtype=torch.float64)[None]
        table = rows if form else rows[:, :1].contiguous()
        table[table == 0] = -0.0
        tolerance = torch.tensor([[atol, rtol]], dtype=torch.float64)
        call = (xs, table, None, None, [], tolerance, form, norm, False)
        (got,), (wanted,) = returning(*call), reference_error.combine_error(*call)
        assert_close_norms(got, wanted, (error, atol, rtol, before, form, norm))
        if error == 0 and before == 0 and not form:
            assert got[0, 0] == 0


def test_the_first_bad_stage_stays_for_each_sample():
    rng = np.random.default_rng(5)
    case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 2, (4, 70)), 1)
    case.xs[0][1:, 69] = torch.nan
    status = torch.tensor([-1, -1, 9, 0])
    norms = torch.empty(4, 2, dtype=torch.float64)
    ops.combine_error_out(*case.call, [torch.empty(4, 70)], norms, status)
    assert status.tolist() == [-1, case.streams[1, 2] & (ops.STAGE_LIMIT - 1), 9, 0]


@pytest.mark.parametrize("row", range(5))
def test_the_status_sees_the_rows_that_are_not_stored(row):
    """The clamped row, the error, before, after and the measured row: each overflows in turn."""
    x = torch.full((2, 1500), 1e38)
    table = torch.zeros(2, 5, 2, dtype=torch.float64)
    table[1, row, 0] = 1e3
    streams = torch.tensor([[0, 0, 6], [0, 1, 7]])
    tolerance = torch.ones(2, 2, dtype=torch.float64)
    for function in (ops.combine_error_out, reference_error.combine_error_out):
        status, norms = torch.full((2,), -1), torch.empty(2, 2, dtype=torch.float64)
        function([x], table, None, streams, [-1.0, 1.0], tolerance, 1, 0, True, [], norms, status)
        assert status.tolist() == [-1, 7], row


@pytest.mark.parametrize(
    ("variable", "value", "backend"), [("DIFFAST_CPU_ISA", "base", "c++ (base)")]
)
def test_the_same_bits_on_every_instruction_set(variable, value, backend):
    """A process with baseline vectors and this one (AVX2 where it runs): norms included."""
    if ops.backends()["cpu"]["backend"] == backend:
        pytest.skip(f"this process runs {backend} itself: nothing to compare")
    run = subprocess.run(
        [sys.executable, (HELPERS / "error_hashes.py")],
        env={**os.environ, variable: value, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    there, here = json.loads(run.stdout), hashes()
    assert there["backend"] == backend
    assert there["hashes"].keys() == here.keys()
    differ = [call for call, digest in here.items() if there["hashes"][call] != digest]
    assert not differ
    assert len(set(here.values())) == len(here) > 200
