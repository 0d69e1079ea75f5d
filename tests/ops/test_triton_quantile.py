"""`quantile` in the interpreter of Triton equals the reference; see test_triton.py."""

import os

import numpy as np
import pytest
import torch
from op_cases import FLOATS
from quantile_cases import SHARES, check_quantile, quantile_case, special_rows

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see tests/gpu"
)


@pytest.fixture(scope="module")
def quantile():
    from diffast.ops.quantile import triton as triton_quantile

    return triton_quantile.quantile


@pytest.mark.parametrize("inputs", range(1, 9))
def test_every_number_of_inputs(quantile, inputs):
    rng = np.random.default_rng(inputs)
    dtypes = [FLOATS[k % 3] for k in range(inputs)]
    xs, weights = quantile_case(rng, dtypes, (2, 67))
    check_quantile(quantile, xs, weights, SHARES[inputs % 6])


@pytest.mark.parametrize("size", (1, 2, 7, 128, 129, 600))
def test_every_size(quantile, size):
    rng = np.random.default_rng(size)
    for samples, p in ((0, 0.5), (2, 0.995), (1, 0.5)):
        xs, weights = quantile_case(rng, FLOATS[:1], (samples, size))
        check_quantile(quantile, xs, weights, p, size)


def test_numbers_that_crowd(quantile):
    for i, (label, row) in enumerate(special_rows(np.random.default_rng(0), 90)):
        x = torch.from_numpy(row)[None].float()
        one = torch.ones(1, 1, 1, dtype=torch.float64)
        check_quantile(quantile, [x], one, (0.5, 0.995, 0.2)[i % 3], label)


def test_nan_spoils_its_own_sample_only(quantile):
    xs, weights = quantile_case(np.random.default_rng(1), FLOATS[:2], (3, 140))
    weights[weights == 0] = 0.5
    xs[1][1, 139] = np.nan
    xs[0][2, 3] = np.inf
    assert check_quantile(quantile, xs, weights, 0.9).isnan().tolist() == [False, True, False]


def test_float64_is_the_references(quantile):
    xs, weights = quantile_case(np.random.default_rng(2), FLOATS, (2, 50))
    check_quantile(quantile, xs, weights, 0.7)


def test_it_is_refused_in_the_words_of_the_other_backends(quantile):
    x, out = torch.zeros(2, 3), torch.empty(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="quantile: p is 2 but must be from 0 to 1"):
        quantile([x], torch.ones(2, 1, 1, dtype=torch.float64), 2.0, out)
