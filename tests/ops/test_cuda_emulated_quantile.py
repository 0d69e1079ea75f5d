"""The CUDA source of `quantile`, run on the host thread by thread, equals the reference."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from quantile_cases import SHARES, check_quantile, quantile_case, special_rows
from test_cuda_emulated import load


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The op, and `reset(seed)` for another order of threads."""
    ops, reset, definitions = load(tmp_path_factory, "emulate_quantile", ("quantile",))
    yield SimpleNamespace(quantile=ops.quantile.default, reset=reset, library=definitions)


@pytest.mark.parametrize("inputs", range(1, 9))
def test_every_number_of_inputs(emulated, inputs):
    rng = np.random.default_rng(inputs)
    for i, (dtypes, size) in enumerate(itertools.product((FLOATS[:3], FLOATS), (68, 67))):
        kinds = [dtypes[(k + i) % len(dtypes)] for k in range(inputs)]
        xs, weights = quantile_case(rng, kinds, (2, size))
        check_quantile(emulated.quantile, xs, weights, SHARES[(inputs + i) % 6], (i, kinds))


@pytest.mark.parametrize("size", (1, 3, 4, 63, 64, 1000, 4097, 9000))
def test_every_shape(emulated, size):
    rng = np.random.default_rng(size)
    for samples, offset in itertools.product((0, 1, 3)[: 3 - (size > 999)], (0, 4)):
        xs, weights = quantile_case(rng, FLOATS[:1], (samples, size), offset)
        check_quantile(emulated.quantile, xs, weights, 0.995, (samples, size, offset))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_numbers_that_crowd(emulated, dtype):
    for i, (label, row) in enumerate(special_rows(np.random.default_rng(0), 1100)):
        x = torch.from_numpy(np.stack([row, row[::-1]])).to(dtype)
        weights = torch.ones(2, 1, 1, dtype=torch.float64)
        check_quantile(emulated.quantile, [x], weights, (0.5, 0.995, 0.2)[i % 3], label)


def test_nan_spoils_its_own_sample_only(emulated):
    for dtype in (torch.float32, torch.float64):
        xs, weights = quantile_case(np.random.default_rng(1), [dtype] * 2, (3, 140))
        weights[weights == 0] = 0.5
        xs[1][1, 139] = np.nan
        xs[0][2, 3] = np.inf
        got = check_quantile(emulated.quantile, xs, weights, 0.9)
        assert got.isnan().tolist() == [False, True, False]


def test_the_same_bits_for_any_order_of_threads_and_three_passes(emulated):
    xs, weights = quantile_case(np.random.default_rng(2), FLOATS[:1], (2, 700))
    emulated.reset(0)
    wanted = check_quantile(emulated.quantile, xs, weights, 0.37)
    assert emulated.reset(0)[0] == 1 + 3 * 2  # launches: the beginning, and two a pass
    for seed in (1, 2):
        emulated.reset(seed)
        assert_same_bits(check_quantile(emulated.quantile, xs, weights, 0.37), wanted, seed)


def test_more_samples_and_parts_than_a_grid_has_blocks(emulated):
    """The emulated grid has six blocks."""
    rng = np.random.default_rng(3)
    for samples, size in ((20, 5), (3, 20_000), (1, 40_001)):
        xs, weights = quantile_case(rng, FLOATS[:1], (samples, size))
        check_quantile(emulated.quantile, xs, weights, 0.4, (samples, size))
