"""The CUDA sources of `sweep` and `gram`, run on the host thread by thread, equal the reference."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from sweep_cases import SweepCase, check_sweep, random_options
from test_cuda_emulated import load
from walk_cases import Walks, check_gram, check_negative_zeros, gram_case

from diffast.ops.sweep import reference as reference_sweep


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """Both ops, and `reset(seed)` for another order of threads."""
    ops, reset, definitions = load(tmp_path_factory, "emulate_sweep", ("gram", "sweep"))
    gram, sweep = ops.gram.default, ops.sweep.default
    yield SimpleNamespace(gram=gram, sweep=sweep, reset=reset, library=definitions)


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("entries", range(8))
def test_every_option(emulated, entries, size):
    rng = np.random.default_rng(entries)
    flags = (False, True)
    for i, (parts, clamp, outputs, noises) in enumerate(
        itertools.product(flags, flags, range(3), range(3))
    ):
        if (i + entries + size) % 2:
            continue
        options = {"parts": parts, "clamp": clamp, "noises": noises, "in_place": i % 5 == 1}
        options |= {"slopes": i % 7 != 3, "norms": i % 5 != 2}
        options |= {"outputs": [FLOATS[(entries + i + k) % 3] for k in range(outputs)]}
        Walks(rng, size, 2, entries=entries, **options).check(emulated.sweep, options)


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("entries", (0, 1, 2, 7))
def test_float64(emulated, entries, size):
    rng = np.random.default_rng(10 + entries)
    for i, parts in itertools.product(range(4), (False, True)):
        options = {"parts": parts, "clamp": i % 2 == 0, "noises": i % 3}
        options |= {"outputs": [FLOATS[i], FLOATS[3]][: 1 + i % 2]}
        case = Walks(rng, size, entries=entries, dtype=torch.float64, **options)
        case.check(emulated.sweep, (i, options))


@pytest.mark.parametrize("size", (0, 1, 3, 4, 7, 63, 64, 128, 132, 1000, 4097, (4, 6, 2)))
def test_every_shape(emulated, size):
    rng = np.random.default_rng(1)
    for jobs, length, offset in ((0, 3, 0), (1, 0, 0), (1, 1, 4), (9, 3, 16), (2, 7, 4)):
        options = {"outputs": (FLOATS[offset // 8],), "noises": 1}
        case = Walks(rng, size, jobs, length, offset=offset, **options)
        case.check(emulated.sweep, (size, jobs, length, offset))


@pytest.mark.parametrize("entries", (0, 1, 3))
def test_walks_of_every_length(emulated, entries):
    """Around the stages requested ahead, and around those whose weights are together in a block."""
    rng = np.random.default_rng(entries)
    for length in (1, 2, 3, 4, 5, 6, 31, 32, 33, 36, 65):
        for noises in (0, 1):
            options = {"entries": entries, "noises": noises, "outputs": FLOATS[:1]}
            Walks(rng, 5, 2, length, **options).check(emulated.sweep, (length, noises))
            Walks(rng, 8, 1, length, full=True, **options).check(emulated.sweep, (length, noises))


def test_sizes_with_other_blocks(emulated):
    rng = np.random.default_rng(2)
    for size in (4 * (1 << 14), 4 * (1 << 14) + 4):
        emulated.reset()
        Walks(rng, size, 1, 3, full=True).check(emulated.sweep, size)
        threads = 64 if size == 1 << 16 else 128
        blocks = -(-size // (4 * threads))
        assert emulated.reset()[:3] == [2, blocks + 1, blocks * threads + 256]


def test_missing_columns_add_nothing(emulated):
    check_negative_zeros(emulated.sweep)


def test_limits_beyond_float32(emulated):
    case = Walks(np.random.default_rng(4), 35, clamp=True)
    for limits in ([-1e300, 0.1], [-0.0, np.inf], [0.3, 0.3]):
        case.clamp = limits
        case.check(emulated.sweep, limits)


def test_where_nothing_moves_no_change_is_seen(emulated):
    """The bits are those without slopes, whatever the slopes are; and every norm is 0."""
    rng = np.random.default_rng(5)
    for entries in (0, 2):
        options = {"entries": entries, "noises": 1, "full": True}
        case = Walks(rng, 35, 2, 5, **options).settled()
        case.slopes[:] = np.nan
        points, states, norms = case.check(emulated.sweep, entries)
        assert (norms[:, :-1] == 0).all()
        case.slopes = None
        wanted = case.run(reference_sweep.sweep)
        assert_same_bits(points, wanted[0])
        assert_same_bits(states, wanted[1])


def test_norms_are_the_same_in_any_call_and_for_any_order_of_threads(emulated):
    rng = np.random.default_rng(6)
    for size in (2, 700):
        case = Walks(rng, size, 3, 5)
        emulated.reset(0)
        wanted = case.run(emulated.sweep)[2]
        for seed in (1, 2):
            emulated.reset(seed)
            assert_same_bits(case.run(emulated.sweep)[2], wanted, (size, seed))
        for j in range(3):
            assert_same_bits(case.job(j).run(emulated.sweep)[2], wanted[j : j + 1], (size, j))


def test_more_jobs_than_a_grid_has_blocks(emulated):
    Walks(np.random.default_rng(7), 1, 4100, 1).check(emulated.sweep, "jobs")


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_a_bad_element_spoils_its_own_job_only(emulated, value):
    rng = np.random.default_rng(8)
    case = Walks(rng, 200, 3, 4, full=True)
    case.x[case.walk[2, 0], 199] = value
    norms = case.check(emulated.sweep, value)[2]
    assert norms.isfinite().all(dim=1).tolist() == [True, True, False]


def test_the_cases_of_the_cpu(emulated):
    rng = np.random.default_rng(13)
    for i in range(100):
        options = random_options(rng)
        case = SweepCase(rng, ((67,), (4, 5), (1,), (5, 0))[i % 4], **options)
        check_sweep(case, options, emulated.sweep)


@pytest.mark.parametrize("inputs", range(1, 9))
def test_gram_of_every_number_of_inputs(emulated, inputs):
    rng = np.random.default_rng(inputs)
    for rows, dtypes, size in itertools.product(range(1, 5), (FLOATS[:3], FLOATS), (68, 67)):
        kinds = [dtypes[(k + rows) % len(dtypes)] for k in range(inputs)]
        xs, weights = gram_case(rng, kinds, (3, size), rows)
        check_gram(emulated.gram, xs, weights, (inputs, rows, dtypes))


@pytest.mark.parametrize("size", (0, 1, 3, 4, 63, 64, 128, 132, 1000, 1028, 4097))
def test_gram_of_every_shape(emulated, size):
    rng = np.random.default_rng(size)
    for samples, offset in itertools.product((0, 1, 3, 20)[: 4 - (size > 999)], (0, 4, 16)):
        xs, weights = gram_case(rng, FLOATS[:2], (samples, size), 2, offset)
        check_gram(emulated.gram, xs, weights, (samples, size, offset))


def test_gram_of_more_samples_than_a_grid_has_blocks(emulated):
    xs, weights = gram_case(np.random.default_rng(11), FLOATS[:1], (4097 * 8, 1), 1)
    emulated.reset()
    check_gram(emulated.gram, xs, weights, "samples")
    # Without sums of rows and with them. 3960 is six times what the emulated device runs at once.
    assert emulated.reset()[:2] == [2, 2 * 3960]


def test_gram_of_a_sample_is_the_same_in_any_batch_and_for_any_order_of_threads(emulated):
    rng = np.random.default_rng(12)
    for size in (70, 1500):
        xs, weights = gram_case(rng, FLOATS[:2], (3, size), 3)
        xs[1][1, 3] = np.inf
        sums = check_gram(emulated.gram, xs, weights, "bad element")
        assert sums.isfinite().all(dim=1).tolist() == [True, False, True]
        for seed in range(3):
            emulated.reset(seed)
            alone = torch.empty(1, 6, dtype=torch.float64)
            emulated.gram([x[seed : seed + 1] for x in xs], weights[seed : seed + 1], alone)
            assert_same_bits(alone, sums[seed : seed + 1], (size, seed))
