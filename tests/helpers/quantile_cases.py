"""Random calls of `quantile` for the tests of all its kernels, compared with the reference."""

import numpy as np
import torch
from op_cases import assert_guards, assert_same_bits, guarded, placed, random_tensor

from diffast.ops.quantile import reference

# 0 and 1, the median, what dynamic thresholding takes, and positions between order statistics.
SHARES = (0.0, 0.3, 0.5, 0.995, 0.9999, 1.0)


def quantile_case(rng, dtypes, shape, offset=0):
    """Returns (xs, weights) of a random call; one input in three has the weight 1 alone."""
    xs = [placed(random_tensor(rng, shape, dtype), offset) for dtype in dtypes]
    weights = torch.from_numpy(rng.standard_normal((shape[0], 1, len(dtypes))))
    if rng.random() < 0.3:
        weights[:] = 0.0
        weights[:, 0, rng.integers(len(dtypes))] = 1.0
    return xs, weights


# Kinds of rows whose numbers crowd: sign and order are random.
def special_rows(rng, size):
    """Yields (label, row [size] of float32) with ties, subnormals, infinities and the like."""
    numbers = rng.standard_normal(size).astype(np.float32)
    yield "all equal", np.full(size, -0.7, np.float32)
    yield "zeros of both signs", np.where(numbers > 0, np.float32(0), -np.float32(0))
    yield "two numbers", np.where(numbers > 1.3, np.float32(2.5), -np.float32(1))
    yield "two far apart", np.where(numbers > 0, np.float32(1e38), np.float32(1e-44))
    yield "neighbours", (1 + rng.integers(-9, 9, size) * 2.0**-23).astype(np.float32)
    yield "subnormal", (rng.integers(-99, 99, size) * 2.0**-149).astype(np.float32)
    yield "every scale", (numbers * 10.0 ** rng.integers(-40, 38, size)).astype(np.float32)
    yield "some infinite", np.where(numbers > 1, np.float32(np.inf), numbers)
    yield "one infinite", np.where(np.arange(size) == size // 2, -np.float32(np.inf), numbers)
    yield "all infinite", np.where(numbers > 0, np.float32(np.inf), -np.float32(np.inf))
    yield "counted", rng.permutation(size).astype(np.float32)


def check_quantile(op, xs, weights, p, label="", device="cpu"):
    """The op's numbers equal the reference's to the last bit; returns them."""
    got, buffer = guarded((len(weights),), torch.float64)
    wanted = torch.full((len(weights),), torch.nan, dtype=torch.float64)
    reference.quantile(xs, weights, p, wanted)
    if device == "cpu":
        with np.errstate(all="ignore"):
            op(xs, weights, p, got)
        assert_guards(got, buffer)
    else:
        out = got.to(device)
        op([x.to(device) for x in xs], weights.to(device), p, out)
        got = out.cpu()
    assert_same_bits(got, wanted, (label, p))
    return got
