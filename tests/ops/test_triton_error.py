"""`combine_error` in the interpreter of Triton equals the reference; see test_triton.py."""

import itertools
import os

import numpy as np
import pytest
import torch
from error_cases import VARIANTS, ErrorCase, assert_close_norms, check_error, tensors
from op_cases import FLOATS, assert_same_bits
from test_triton import assert_close_bits

from diffast.ops.combine_error import reference as reference_error

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see test_gpu_error.py"
)

NARROW = FLOATS[:3]


@pytest.fixture(scope="module")
def ops():
    from diffast.ops.combine_error import triton as triton_error

    return triton_error


def check(ops, case, label, dtypes=FLOATS[:1], **options):
    return check_error(
        ops.combine_error_out, case, label, dtypes, equal=assert_close_bits, **options
    )


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_with_several_variants(ops, inputs):
    rng = np.random.default_rng(inputs)
    for i in range(3):
        variant = VARIANTS[(inputs * 37 + i * 101) % len(VARIANTS)]
        dtypes = [NARROW[(k + i) % 3] for k in range(inputs)]
        case = ErrorCase(rng, tensors(rng, dtypes, (2, 67)), *variant)
        check(ops, case, (inputs, variant), NARROW[i:] + NARROW[:i])


@pytest.mark.parametrize("form", range(3))
def test_every_option(ops, form):
    rng = np.random.default_rng(form)
    for norm, measure, clamp in itertools.product((0, 1), (False, True), (False, True)):
        variant = (1, form, norm, measure, norm + measure, clamp)
        case = ErrorCase(rng, tensors(rng, NARROW[:2], (2, 700)), *variant)
        check(ops, case, variant)


@pytest.mark.parametrize("size", (0, 1, 7, 63, 128, 129, 1000, 4097))
def test_sizes(ops, size):
    rng = np.random.default_rng(size)
    for batch, variant in zip(
        (0, 1, 3), ((2, 0, 0, True), (1, 1), (0, 2, 1, True, 1)), strict=True
    ):
        case = ErrorCase(rng, tensors(rng, NARROW[:1] * 2, (batch, size)), *variant)
        check(ops, case, (batch, size))
        got = ops.combine_error(*case.call)
        wanted = reference_error.combine_error(*case.call)
        for a, b in zip(got[:-1], wanted[:-1], strict=True):
            assert_same_bits(a, b, (batch, size))
        assert_close_norms(got[-1], wanted[-1], (batch, size))


def test_more_partial_sums_than_the_second_kernel_takes_at_a_time(ops):
    rng = np.random.default_rng(1)
    for norm in (0, 1):
        case = ErrorCase(rng, tensors(rng, NARROW[:1], (1, 129 * 512 + 3)), 0, 0, norm, True)
        check(ops, case, norm)


def test_a_sample_has_the_same_norms_in_any_batch(ops):
    rng = np.random.default_rng(2)
    for size in (100, 1500):
        case = ErrorCase(rng, tensors(rng, NARROW[:2], (3, size)), 1, 1, 0, True)
        wanted = ops.combine_error(*case.call)[-1]
        alone = [ops.combine_error(*case.samples(slice(b, b + 1)))[-1] for b in range(3)]
        assert_same_bits(torch.cat(alone), wanted, size)


def test_outputs_that_are_inputs(ops):
    rng = np.random.default_rng(3)
    for size, variant in itertools.product((67, 600), ((2, 0, 0, True), (2, 1, 1, False, 1, True))):
        case = ErrorCase(rng, tensors(rng, NARROW[:2] * 2, (2, size)), *variant)
        wanted = [torch.full_like(x, torch.nan) for x in case.xs[2:]]
        norms = torch.full((2, 2, 2), torch.nan, dtype=torch.float64)
        reference_error.combine_error_out(*case.call, wanted, norms[0], None)
        ops.combine_error_out(*case.call, case.xs[2:], norms[1], None)
        for out, row in zip(case.xs[2:], wanted, strict=True):
            assert_same_bits(out, row, (size, variant))
        assert_close_norms(norms[1], norms[0], (size, variant))


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_bad_element_spoils_its_own_sample_only(ops, value):
    rng = np.random.default_rng(4)
    for form, norm in itertools.product(range(3), range(2)):
        case = ErrorCase(rng, tensors(rng, NARROW[:1] * 2, (3, 600)), 1, form, norm, True)
        case.xs[0][1, 599] = value
        norms = check(ops, case, (form, norm))
        assert norms.isfinite().all(dim=1).tolist() == [True, False, True]


def test_no_error_is_no_error_whatever_the_tolerance(ops):
    for error, atol, rtol, before in itertools.product(
        (0.0, 1.0, np.nan), (0.0, 1e-3, np.nan), (0.0, np.nan), (0.0, 2.0)
    ):
        xs = [torch.zeros(1, 5) for _ in range(3)]
        xs[0][0, 3], xs[2][0, 3] = error, before
        table, tolerance = torch.eye(3).double()[None], torch.tensor([[atol, rtol]]).double()
        for form, norm in ((1, 0), (2, 1)):
            call = (xs, table, None, None, [], tolerance, form, norm, False)
            with np.errstate(all="ignore"):
                (got,) = ops.combine_error(*call)
            (wanted,) = reference_error.combine_error(*call)
            assert_close_norms(got, wanted, (error, atol, rtol, before, form, norm))


def test_float64_is_served_by_the_reference(ops):
    rng = np.random.default_rng(6)
    case = ErrorCase(rng, tensors(rng, FLOATS[3:] + FLOATS[:1], (2, 9)), 1, 1, 0, True, 1)
    check(ops, case, "float64 inputs", FLOATS[:1])
    case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 2, (2, 9)), 1, 1, 0, True, 1)
    check(ops, case, "float64 outputs", FLOATS[3:])


def test_a_call_is_refused_in_the_words_of_the_other_backends(ops):
    case = ErrorCase(np.random.default_rng(0), [torch.zeros(2, 3)], 1)
    norms = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="combine_error: 1 rows to store but 0 outs"):
        ops.combine_error_out(*case.call, [], norms, None)
    with pytest.raises(RuntimeError, match="combine_error: form 7 but"):
        ops.combine_error(*case.rows_call, case.tolerance, 7, 0, False)
