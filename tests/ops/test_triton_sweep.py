"""`sweep` and `gram` in the interpreter of Triton equal the reference; see test_triton.py."""

import itertools
import os

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from sweep_cases import SweepCase, check_sweep, random_options
from walk_cases import Walks, check_gram, check_negative_zeros, gram_case

from diffast.ops.sweep import reference as reference_sweep

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see test_gpu_sweep.py"
)


@pytest.fixture(scope="module")
def sweep():
    from diffast.ops.sweep import triton as triton_sweep

    return triton_sweep.sweep


@pytest.fixture(scope="module")
def gram():
    from diffast.ops.gram import triton as triton_gram

    return triton_gram.gram


@pytest.mark.parametrize("entries", range(8))
def test_every_number_of_entries_with_several_options(sweep, entries):
    rng = np.random.default_rng(entries)
    for i, (parts, clamp) in enumerate(itertools.product((False, True), (False, True))):
        outputs = [FLOATS[(entries + i + k) % 3] for k in range((entries + i) % 3)]
        options = {"parts": parts, "clamp": clamp, "outputs": outputs, "noises": (entries - i) % 3}
        options |= {"slopes": i != entries % 4, "norms": i != 3, "in_place": i % 2 == 1}
        Walks(rng, 67, 2, entries=entries, **options).check(sweep, options)


@pytest.mark.parametrize("size", (0, 1, 7, 63, 128, 129, 1000, 4097, (3, 5, 7)))
def test_sizes(sweep, size):
    rng = np.random.default_rng(1)
    walks = ((0, 3, 0), (1, 0, 0), (1, 5, 2), (2, 3, 0))
    for jobs, length, chunk in walks if size != 4097 else ((1, 3, 2),):
        case = Walks(rng, size, jobs, length, noises=1, chunk=chunk, offset=4)
        case.check(sweep, (size, jobs, length, chunk))


def test_large_blocks(sweep, monkeypatch):
    from diffast.ops.sweep import triton

    monkeypatch.setattr(triton, "_MANY", 600)
    rng = np.random.default_rng(2)
    for chunk in (0, 2):
        Walks(rng, 1203, 1, 3, noises=1, chunk=chunk).check(sweep, chunk)


def test_more_partial_sums_than_the_second_kernel_takes_at_a_time(sweep):
    case = Walks(np.random.default_rng(9), 129 * 128 + 3, 1, 1, outputs=(), full=True)
    case.check(sweep, "sums")


@pytest.mark.parametrize("chunk", (1, 2, 3, 7))
def test_chunks(sweep, chunk):
    """Of all lengths, some shorter than a chunk; in place, and from and into the same state."""
    rng = np.random.default_rng(chunk)
    for i, in_place in enumerate((False, True)):
        options = {"noises": i, "outputs": FLOATS[: 2 - i], "slopes": chunk != 3}
        case = Walks(rng, 35, 4, 7, chunk=chunk, in_place=in_place, **options)
        case.check(sweep, (chunk, in_place))
    case = Walks(rng, 35, 1, 7, chunk=chunk, full=True, dtype=torch.float64)
    case.check(sweep, (chunk, "full"))


def test_float64(sweep):
    rng = np.random.default_rng(3)
    for i in range(4):
        options = {"entries": i, "parts": i % 2 == 1, "clamp": True, "noises": i % 3}
        outputs = [FLOATS[i], FLOATS[3]]
        case = Walks(rng, 67, dtype=torch.float64, outputs=outputs, **options)
        case.clamp = [-0.1 - 1e-12, 0.1 + 1e-12]  # no float32
        case.check(sweep, i)


def test_missing_columns_add_nothing(sweep):
    check_negative_zeros(sweep)


def test_limits_beyond_float32(sweep):
    case = Walks(np.random.default_rng(4), 35, clamp=True)
    for limits in ([-1e300, 0.1], [-0.0, np.inf], [0.3, 0.3]):
        case.clamp = limits
        case.check(sweep, limits)


def test_where_nothing_moves_no_change_is_seen(sweep):
    """The bits are those without slopes, whatever the slopes are; and every norm is 0."""
    rng = np.random.default_rng(5)
    for chunk, entries in ((0, 0), (0, 2), (2, 0)):
        options = {"entries": entries, "chunk": chunk, "noises": 1, "full": True}
        case = Walks(rng, 35, 2, 5, **options).settled()
        case.slopes[:] = np.nan
        points, states, norms = case.check(sweep, (chunk, entries))
        assert (norms[:, :-1] == 0).all()
        case.slopes, case.chunk = None, 0
        wanted = case.run(reference_sweep.sweep)
        assert_same_bits(points, wanted[0])
        assert_same_bits(states, wanted[1])


def test_a_job_has_the_same_norms_in_any_call(sweep):
    rng = np.random.default_rng(6)
    case = Walks(rng, 700, 3, 4)
    wanted = case.run(sweep)[2]
    for j in range(3):
        assert_same_bits(case.job(j).run(sweep)[2], wanted[j : j + 1], j)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_bad_element_spoils_its_own_job_only(sweep, value):
    rng = np.random.default_rng(7)
    for chunk in (0, 2):
        case = Walks(rng, 200, 3, 4, chunk=chunk, full=True)
        case.x[case.walk[2, 0], 199] = value
        norms = case.check(sweep, (value, chunk))[2]
        assert norms.isfinite().all(dim=1).tolist() == [True, True, False]


def test_a_call_is_refused_in_the_words_of_the_other_backends(sweep):
    case = Walks(np.random.default_rng(8), 5, entries=1)
    case.chunk = 2
    with pytest.raises(RuntimeError, match="sweep: chunk 2 but only walks without entries"):
        case.run(sweep)


def test_the_cases_of_the_cpu(sweep):
    rng = np.random.default_rng(13)
    for i in range(12):
        options = random_options(rng)
        case = SweepCase(rng, ((67,), (4, 5), (1,), (5, 0))[i % 4], **options)
        check_sweep(case, options, sweep)


@pytest.mark.parametrize("inputs", range(1, 9))
def test_gram_of_every_number_of_inputs(gram, inputs):
    rng = np.random.default_rng(inputs)
    for rows, dtypes in itertools.product(range(1, 5), (FLOATS[:3], FLOATS)):
        xs, weights = gram_case(
            rng, [dtypes[k % len(dtypes)] for k in range(inputs)], (2, 67), rows
        )
        check_gram(gram, xs, weights, (inputs, rows, dtypes))


@pytest.mark.parametrize("size", (0, 1, 7, 63, 128, 129, 1000, 4097, 129 * 512 + 3))
def test_gram_of_every_size(gram, size):
    rng = np.random.default_rng(size)
    for samples in (0, 1, 3):
        xs, weights = gram_case(rng, FLOATS[:2], (samples, size), 2, offset=16)
        check_gram(gram, xs, weights, (samples, size))


def test_gram_of_a_sample_is_the_same_in_any_batch(gram):
    rng = np.random.default_rng(9)
    xs, weights = gram_case(rng, FLOATS[:2], (3, 1500), 3)
    xs[1][1, 3] = np.inf
    sums = check_gram(gram, xs, weights, "bad element")
    assert sums.isfinite().all(dim=1).tolist() == [True, False, True]
    for b in range(3):
        alone = torch.empty(1, 6, dtype=torch.float64)
        with np.errstate(all="ignore"):
            gram([x[b : b + 1] for x in xs], weights[b : b + 1], alone)
        assert_same_bits(alone, sums[b : b + 1], b)


def test_gram_is_refused_in_the_words_of_the_other_backends(gram):
    xs, weights = gram_case(np.random.default_rng(0), FLOATS[:1] * 9, (1, 3), 1)
    with pytest.raises(RuntimeError, match="gram: 9 inputs and 1 rows but at most 8 and 4"):
        gram(xs, weights, torch.empty(1, 1, dtype=torch.float64))
