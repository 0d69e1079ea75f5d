"""The CUDA source of `combine_error`, run on the host thread by thread, equals the reference."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from error_cases import (
    VARIANTS,
    ErrorCase,
    assert_close_norms,
    check_error,
    check_returning,
    tensors,
)
from op_cases import FLOATS, assert_same_bits, placed
from test_cuda_emulated import load

from diffast.ops.combine_error import reference as reference_error
from diffast.ops.normal import reference as reference_normal


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Both forms of the op, and `reset(seed)` for another order of threads."""
    ops, reset, definitions = load(
        tmp_path_factory, "emulate_error", ("combine_error", "combine_error.out")
    )
    op = ops.combine_error
    yield SimpleNamespace(returning=op.default, out=op.out, reset=reset, library=definitions)


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_with_every_variant(emulated, inputs, size):
    rng = np.random.default_rng(inputs)
    for i, variant in enumerate(VARIANTS[inputs % 4 :: 4]):
        wide = torch.float64 if i % 3 == 0 else torch.float32
        case = ErrorCase(rng, tensors(rng, [wide] * inputs, (2, size)), *variant)
        check_error(emulated.out, case, (inputs, variant, wide), (wide, FLOATS[i % 4]))


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("inputs", (1, 3, 4, 6, 9, 16))
def test_every_position_carries_every_dtype(emulated, inputs, size):
    rng = np.random.default_rng(100 + inputs)
    for i, (position, dtype) in enumerate(itertools.product(range(inputs), FLOATS)):
        variant = VARIANTS[(i * 29 + inputs * 7) % len(VARIANTS)]
        dtypes = [FLOATS[(k + i) % 3] for k in range(inputs)]
        dtypes[position] = dtype
        case = ErrorCase(rng, tensors(rng, dtypes, (3, size)), *variant)
        outs = [FLOATS[(r + i) % (4 if i % 2 else 3)] for r in range(8)]
        check_error(emulated.out, case, (dtypes, variant), outs)
        check_returning(emulated.returning, case, (dtypes, variant))


@pytest.mark.parametrize("inputs", (1, 2, 3, 4, 6, 8))
def test_halves_alone_are_taken_eight_at_a_time(emulated, inputs):
    """The sums have the same bits as four at a time, which tensors at odd addresses are taken."""
    rng = np.random.default_rng(300 + inputs)
    for i, variant in enumerate(VARIANTS[inputs % 8 :: 8]):
        dtype = (torch.float16, torch.bfloat16)[i % 2]
        for samples, size in ((3, 72), (2, 1000), (3, 1024), (1, 3080), (70, 8)):
            case = ErrorCase(rng, tensors(rng, [dtype] * inputs, (samples, size)), *variant)
            label = (inputs, variant, dtype, size)
            wide = check_error(emulated.out, case, label, [dtype])
            case.xs = [placed(x, 8) for x in case.xs]
            assert_same_bits(check_error(emulated.out, case, label, [dtype], 8), wide, label)


def test_few_chunks_need_one_kernel_and_have_the_same_norms(emulated):
    """Where samples fill the device, a block makes all chunks of one, up to eight."""
    rng = np.random.default_rng(15)
    for size, alone, together in ((1025, 1, 1), (3000, 2, 1), (8196, 2, 2)):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1], (128, size)), 1, 0, 0, True)
        emulated.reset()
        wanted = emulated.returning(*case.call)[-1]
        assert emulated.reset()[0] == together
        for sample in (0, 127):
            part = slice(sample, sample + 1)
            got = emulated.returning(*case.samples(part))[-1]
            assert emulated.reset()[0] == alone
            assert_same_bits(got, wanted[part], (size, sample))


@pytest.mark.parametrize("size", (0, 1, 3, 4, 7, 63, 64, 512, 1000, 1024, 1028, 4097, 40_000))
def test_every_shape(emulated, size):
    rng = np.random.default_rng(size)
    for batch in (0, 1, 3) + (70,) * (size <= 64):  # 70 samples share blocks if they are small
        for offset, variant in itertools.product(
            (0, 4, 16), ((2, 0, 0, True), (1, 1, 1), (0, 2, 0, True, 1, True))
        ):
            xs = tensors(rng, (torch.float32, FLOATS[offset % 3]), (batch, size), offset)
            case = ErrorCase(rng, xs, *variant)
            check_error(emulated.out, case, (batch, size, offset, variant), FLOATS[:1], offset)


def test_a_sample_has_the_same_norms_in_any_batch_and_for_any_order_of_threads(emulated):
    rng = np.random.default_rng(1)
    for size, dtypes in itertools.product((2, 30, 600, 1024, 1028, 5000), (FLOATS[:2], FLOATS[3:])):
        samples = 90 if size < 100 else 3
        case = ErrorCase(rng, tensors(rng, dtypes, (samples, size)), 1, 1, 0, True)
        emulated.reset(0)
        wanted = emulated.returning(*case.call)[-1]
        for seed in (1, 2):
            emulated.reset(seed)
            assert_same_bits(emulated.returning(*case.call)[-1], wanted, (size, seed))
        for sample in (0, samples - 1):
            part = slice(sample, sample + 1)
            got = emulated.returning(*case.samples(part))[-1]
            assert_same_bits(got, wanted[part], (size, sample))
            inner = emulated.returning(*case.samples(slice(sample // 2, samples)))[-1]
            assert_same_bits(inner, wanted[sample // 2 :], (size, sample))


def test_blocks_walk_over_many_samples_and_chunks(emulated):
    """More samples, and more chunks, than one grid of the emulation has blocks (256)."""
    rng = np.random.default_rng(5)
    for shape, launches in (((261, 516), 1), ((259 * 8, 70), 1), ((1, 259 * 1024 + 4), 2)):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1], shape), 1, 0, 0, True)
        emulated.reset()
        check_error(emulated.out, case, shape)
        made, blocks, _, _ = emulated.reset()
        assert made == launches
        assert blocks <= 256 + (launches == 2)


def test_the_weights_of_small_samples_fit_into_a_block(emulated):
    """The emulator refuses more shared memory than a block has."""
    rng = np.random.default_rng(10)
    case = ErrorCase(rng, tensors(rng, [torch.float64] * 16, (300, 2)), 4, 1, 0, True, 2)
    check_error(emulated.out, case, "most weights", FLOATS)


def test_elements_behind_the_end_do_not_count(emulated):
    """Of four normals, those that no element takes may well be large, or overflow."""
    rng = np.random.default_rng(12)
    for form, norm in itertools.product(range(3), range(2)):
        xs = tensors(rng, FLOATS[:1], (100, 1))
        case = ErrorCase(rng, xs, 1, form, norm, True, noises=1)
        case.noise_table[:] = 2.5e38
        z = reference_normal.draw(
            case.streams[:, 0], case.streams[:, 1], case.streams[:, 2], 4
        ).abs()
        assert ((z[:, 0] < 1.3) & (z[:, 1:].max(dim=1).values > 1.4)).any()
        check_error(emulated.out, case, (form, norm))


@pytest.mark.parametrize("size", (68, 67))
def test_an_output_may_be_an_input_whatever_the_order_of_threads(emulated, size):
    rng = np.random.default_rng(7)
    for i, variant in enumerate(v for v in VARIANTS[::11] if v[0]):
        stored = variant[0]
        xs = tensors(rng, FLOATS[: 2 + i % 2] * 4, (3, size))
        case = ErrorCase(rng, xs, *variant)
        order = rng.permutation(len(xs))[:stored]
        wanted = [torch.full_like(xs[k], torch.nan) for k in order]
        wanted_norms = torch.empty(3, 2, dtype=torch.float64)
        reference_error.combine_error_out(*case.call, wanted, wanted_norms, None)
        for seed in range(3):
            mine = [x.clone() for x in xs]
            outs = [mine[k] for k in order]
            norms = torch.full((3, 2), torch.nan, dtype=torch.float64)
            emulated.reset(seed)
            emulated.out(mine, *case.call[1:], outs, norms, None)
            for r, (out, row) in enumerate(zip(outs, wanted, strict=True)):
                assert_same_bits(out, row, (variant, seed, r))
            assert_close_norms(norms, wanted_norms, (variant, seed))


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_a_bad_element_spoils_its_own_sample_only(emulated, value):
    rng = np.random.default_rng(8)
    for size, form, norm, bad in itertools.product((64, 63, 1, 2050), range(3), range(2), (0, 2)):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 2, (3, size)), 1, form, norm, True)
        case.xs[bad // 2][bad, size // 2] = value
        norms = check_error(emulated.out, case, (size, form, norm, bad, value))
        assert norms.isfinite().all(dim=1).tolist() == [bad != 0, True, bad != 2]
