"""The Triton ops, in Triton's interpreter on CPU tensors, equal the reference bit for bit.

What the compiler makes of the same kernels is looked at in test_compile.py, and on a GPU in
test_gpu.py. A launch takes the interpreter 0.1 s and more: the cases walk every dimension (inputs,
rows, noises, clamp, dtype of every position, shape) but not their product.
"""

import itertools
import os

import numpy as np
import pytest
import shared_arithmetic as shared
import torch
from op_cases import (
    CLAMPS,
    FLOATS,
    Case,
    assert_guards,
    assert_same_bits,
    guarded,
    into,
    outputs,
    placed,
    random_tensor,
)

from diffast.ops.combine import reference
from diffast.ops.normal import reference as reference_normal

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see test_gpu.py"
)

NARROW = FLOATS[:3]
VARIANTS = list(itertools.product(range(1, 9), range(3), CLAMPS))
LIMITS = (-(2**63), -1, 0, 1, 16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1)


@pytest.fixture(scope="module")
def ops():
    from diffast.ops.combine import triton

    return triton


@pytest.fixture(scope="module")
def normal():
    from diffast.ops.normal import triton

    return triton


def tensors(rng, dtypes, shape):
    return [placed(random_tensor(rng, shape, dtype), 0) for dtype in dtypes]


def assert_close_bits(got, wanted, label):
    """Same bits; one ulp for bfloat16, which the interpreter makes by truncation."""
    if got.dtype != torch.bfloat16:
        assert_same_bits(got, wanted, label)
        return
    assert torch.equal(got.isnan(), wanted.isnan()), label
    difference = got.view(torch.int16).int() - wanted.view(torch.int16).int()
    assert (difference.abs()[~wanted.isnan()] <= 1).all(), label


def check(ops, case, label, dtypes=FLOATS[:1], table=False, status=True):
    """What the op writes equals what the reference writes, and nothing else is written."""
    shape = case.xs[0].shape
    dtypes = [dtypes[r % len(dtypes)] for r in range(case.rows - case.hidden)]
    outs, buffers = outputs(shape, dtypes)
    wanted = [torch.full(shape, torch.nan, dtype=dtype) for dtype in dtypes]
    flags = torch.full((2, shape[0]), -1) if status else [None, None]
    before = [x.clone() for x in case.xs]
    call = case.table_call if table else case.host_call
    name = "combine_table_out" if table else "combine_out"
    with np.errstate(all="ignore"):  # numbers beyond float32 are part of the tests
        getattr(ops, name)(*into(call, outs, flags[0]))
    getattr(reference, name)(*into(call, wanted, flags[1]))
    for r, (out, buffer, row) in enumerate(zip(outs, buffers, wanted, strict=True)):
        assert_close_bits(out, row, (label, "out", r))
        assert_guards(out, buffer)
    if status:
        assert torch.equal(flags[0], flags[1]), (label, flags)
    for x, copy in zip(case.xs, before, strict=True):
        assert_same_bits(x, copy, (label, "an input was written"))


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_rows_and_noises_and_every_dtype_everywhere(ops, inputs):
    """Each position of each number of inputs meets each dtype, and all variants are walked."""
    rng = np.random.default_rng(inputs)
    for turn, i in enumerate(range(inputs - 1, len(VARIANTS), 16)):
        rows, noises, clamp = VARIANTS[i]
        dtypes = [NARROW[(k + turn) % 3] for k in range(inputs)]
        outs = [NARROW[(r + i) % 3] for r in range(rows)]
        case = Case(rng, tensors(rng, dtypes, (2, 67)), rows, noises, clamp)
        label = (dtypes, rows, noises, clamp, outs)
        check(ops, case, label, outs, table=(i + turn) % 2, status=turn % 2)


@pytest.mark.parametrize("size", (0, 1, 7, 63, 512, 1000, 4097))
def test_every_shape(ops, size):
    rng = np.random.default_rng(size)
    for batch in range(4):
        case = Case(rng, tensors(rng, NARROW[:2], (batch, size)), 2, batch % 3)
        check(ops, case, (batch, size), NARROW[:2], table=batch % 2, status=batch != 1)


@pytest.mark.parametrize("shape", ((), (5,), (2, 3, 5, 7), (3, 0, 4)))
def test_returning_forms_and_other_shapes(ops, shape):
    rng = np.random.default_rng(1)
    xs = [random_tensor(rng, shape, dtype) for dtype in (torch.float16, torch.float32)]
    weights, limits = [0.5, -1.25, 0.0, 2.0, 1.0, 0.3], [-0.6, 0.7]
    got = ops.combine(xs, weights, [], 0, 0, None, limits)
    wanted = reference.combine(xs, weights, [], 0, 0, None, limits)
    if shape:
        case = Case(rng, xs[:1], 3, 1)
        got += ops.combine_table(*case.table_call)
        wanted += reference.combine_table(*case.table_call)
    for a, b in zip(got, wanted, strict=True):
        assert_same_bits(a, b, shape)


def test_seeds_ids_and_stages_in_all_their_bits(ops):
    rng = np.random.default_rng(2)
    xs = tensors(rng, NARROW[:1], (len(LIMITS), 9))
    case = Case(rng, xs, 1, 2)
    case.ids = torch.tensor(LIMITS)
    for i, seed in enumerate(LIMITS):
        case.seed, case.stage = seed, (i % 16) << 28 | (0, 1, 16, 2**26 - 1)[i % 4]
        if i == 3:
            case.ids = None
        check(ops, case, seed, status=False)
    case.streams[:, 0] = torch.tensor(LIMITS)
    case.streams[:, 1] = torch.tensor(LIMITS[::-1])
    check(ops, case, "streams", table=True)


def test_status_keeps_the_first_stage(ops):
    rng = np.random.default_rng(3)
    for i, value in enumerate((np.nan, np.inf, -np.inf, 3e38)):
        case = Case(rng, tensors(rng, NARROW[:1] * 2, (3, 600)), 2, 1, CLAMPS[i % 2])
        case.weights = [1.0, 1.0, 1.0, 0.0] if i % 2 == 0 else [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
        case.xs[0][i % 3, 599], case.xs[1][i % 3, 599] = value, value
        check(ops, case, value)
        check(ops, case, (value, "table"), table=True)
    for before in (-7, 0, 5):
        outs, status = outputs((3, 600), NARROW[:1] * 2)[0], torch.full((3,), before)
        with np.errstate(all="ignore"):
            ops.combine_out(*into(case.host_call, outs, status))
        assert (status != before).tolist() == [before < 0, False, False]


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("size", (67, 600))
def test_an_output_may_be_an_input(ops, size, clamp):
    rng = np.random.default_rng(4)
    case = Case(rng, tensors(rng, (torch.float32, torch.float16) * 2, (2, size)), 3, 1, clamp)
    stored = 3 - case.hidden
    wanted = [torch.full_like(x, torch.nan) for x in case.xs[-stored:]]
    reference.combine_out(*into(case.host_call, wanted, None))
    ops.combine_out(*into(case.host_call, case.xs[-stored:], None))
    for out, row in zip(case.xs[-stored:], wanted, strict=True):
        assert_same_bits(out, row, (size, clamp))


def test_weights_that_float32_rounds_underflows_or_overflows(ops):
    rng = np.random.default_rng(5)
    for number in (0.1, 1e-40, 1e-320, 1e39, -1e300, 3.4028235677973366e38):
        case = Case(rng, tensors(rng, NARROW[:1] * 2, (2, 9)), 1, 1, CLAMPS[1])
        case.weights, case.noise = [number, 1.0, 0.0], [number]
        case.limits = sorted((0.0, number))
        case.table[:] = number
        check(ops, case, number, status=False)
        check(ops, case, (number, "table"), table=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_equals_the_reference(normal, dtype):
    # The interpreter's bfloat16 is wrong below 2**-126 by more than an ulp.
    tiny = 1e-30 if dtype == torch.bfloat16 else 1e-40
    sizes = itertools.product((0, 1, 3), (0, 1, 7, 63, 1000, 4097))
    for i, (batch, size) in enumerate(sizes):
        ids = torch.arange(batch) * -(2**40) + i
        out, buffer = guarded((batch, size), dtype)
        wanted = torch.full((batch, size), torch.nan, dtype=dtype)
        call = (ids, LIMITS[i % 10], i % 16 << 28 | 77, (1.0, -2.5, tiny)[i % 3])
        normal.normal_out(*call, out)
        reference_normal.normal_out(*call, wanted)
        assert_close_bits(out, wanted, call)
        assert_guards(out, buffer)


def test_a_million_normals_are_the_same_bits_on_triton_reference_and_host(normal):
    from diffast.ops.launch import int32

    count, seed, sample, word = 2**20, -(2**62) - 12345, -(2**33) - 7, 1 << 28 | 5
    got = torch.full((1, count), torch.nan)
    ids = torch.tensor([sample])
    words = (int32(seed), int32(seed >> 32), word)
    normal.normal_kernel[(16,)](got, ids, 1.0, *words, count, BLOCK=count // 16)
    assert_same_bits(got, reference_normal.draw(seed, ids, word, count))
    host = shared.normals(seed % 2**64, sample, word, count)
    assert_same_bits(got[0], torch.from_numpy(host))


def test_float64_is_served_by_the_reference(ops):
    rng = np.random.default_rng(6)
    for position in range(3):
        dtypes = [torch.float64 if k == position else torch.float32 for k in range(2)]
        case = Case(rng, tensors(rng, dtypes, (2, 9)), 2, 1, CLAMPS[1])
        for table in (False, True):
            check(ops, case, dtypes, (torch.float32, FLOATS[3 * (position == 2)]), table)
        for name, call in (("combine", case.host_call), ("combine_table", case.table_call)):
            got, wanted = getattr(ops, name)(*call), getattr(reference, name)(*call)
            for a, b in zip(got, wanted, strict=True):
                assert_same_bits(a, b, (name, position))


def test_a_call_is_refused_in_the_words_of_the_other_backends(ops, normal):
    x = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match="1 inputs but 0 weights"):
        ops.combine([x], [], [], 0, 0, None, [])
    with pytest.raises(RuntimeError, match="2 rows but 1 outs"):
        ops.combine_out([x], [1.0, 1.0], [x])
    with pytest.raises(RuntimeError, match="status is given but no streams"):
        table = torch.ones(2, 1, 1, dtype=torch.float64)
        status = torch.zeros(2, dtype=torch.int64)
        ops.combine_table_out([x], table, None, None, [], [x], status)
    with pytest.raises(RuntimeError, match="the scale is nan"):
        normal.normal_out(torch.zeros(2, dtype=torch.int64), 0, 0, float("nan"), x)


def test_implementations_are_those_that_the_loader_registers(ops, normal):
    from diffast.ops.accept import triton as triton_accept
    from diffast.ops.brownian import triton as triton_brownian
    from diffast.ops.combine_error import triton as triton_error
    from diffast.ops.evaluate import triton as triton_evaluate
    from diffast.ops.gram import triton as triton_gram
    from diffast.ops.quantile import triton as triton_quantile
    from diffast.ops.schema import SCHEMAS
    from diffast.ops.sweep import triton as triton_sweep

    modules = (ops, normal, triton_error, triton_accept, triton_brownian, triton_evaluate)
    modules += (triton_gram, triton_quantile, triton_sweep)
    names = [name for module in modules for name in module.IMPLEMENTATIONS]
    assert sorted(names) == sorted(set(SCHEMAS) - {"normal", "brownian"})
