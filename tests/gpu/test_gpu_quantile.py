"""On a real GPU: `quantile` of the loaded CUDA op and of Triton against the reference."""

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from quantile_cases import SHARES, check_quantile, quantile_case, special_rows
from test_gpu import on_gpu

from diffast import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)


@pytest.fixture(params=("loaded", TRITON))
def quantile(request):
    """The op that the dispatcher has for CUDA, or Triton's."""
    if request.param == "loaded":
        return ops.quantile
    pytest.importorskip("triton")
    from diffast.ops.quantile import triton

    return triton.quantile


@pytest.mark.parametrize("inputs", range(1, 9))
def test_every_number_of_inputs(quantile, inputs):
    rng = np.random.default_rng(inputs)
    for i, dtypes in enumerate((FLOATS[:3], FLOATS, FLOATS[1:2])):
        for size in (1028, 1001):
            kinds = [dtypes[(k + i) % len(dtypes)] for k in range(inputs)]
            xs, weights = quantile_case(rng, kinds, (3, size))
            check_quantile(quantile, xs, weights, SHARES[(i + inputs) % 6], kinds, "cuda")


@pytest.mark.parametrize(
    "shape", ((0, 4), (1, 1), (3, 63), (20, 132), (5000, 3), (40, 5001), (1, 4_300_000))
)
def test_every_shape(quantile, shape):
    xs, weights = quantile_case(np.random.default_rng(1), FLOATS[:1], shape)
    for p in (0.5, 0.995):
        check_quantile(quantile, xs, weights, p, shape, "cuda")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_numbers_that_crowd(quantile, dtype):
    for label, row in special_rows(np.random.default_rng(2), 9001):
        x = torch.from_numpy(np.stack([row, row[::-1]])).to(dtype)
        for p in SHARES:
            weights = torch.ones(2, 1, 1, dtype=torch.float64)
            check_quantile(quantile, [x], weights, p, label, "cuda")


def test_a_sample_is_the_same_in_any_batch_and_every_time(quantile):
    rng = np.random.default_rng(3)
    for size in (2, 700, 50_000):
        xs, weights = quantile_case(rng, FLOATS[:2], (40, size))
        xs[0][7, size // 2] = np.nan
        got = check_quantile(quantile, xs, weights, 0.9, size, "cuda")
        for low, high in ((0, 1), (3, 17), (39, 40), (0, 40)):
            part = torch.empty(high - low, dtype=torch.float64, device="cuda")
            given = on_gpu([x[low:high] for x in xs])
            quantile(given, weights[low:high].cuda(), 0.9, part)
            assert_same_bits(part.cpu(), got[low:high], (size, low))
