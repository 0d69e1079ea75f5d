"""The specification of `quantile`: a quantile of the magnitudes of a row that is never stored."""

import math

import torch

from diffast.ops.combine import reference
from diffast.ops.quantile.checks import check_quantile


def rank_of(p: float, elements: int) -> tuple[int, float]:
    """Returns the order statistic (from 0) at or below the p-quantile, and the next one's weight.

    Args:
        p: from 0 to 1.
        elements: of one sample.
    """
    position = p * max(elements - 1, 0)
    return math.floor(position), position - math.floor(position)


def quantile(xs, weights, p, out):
    """Writes the p-quantile of |row| of every sample b, row = sum_k weights[b, 0, k] xs[k].

    The row is rounded as in `combine.table`. With n elements a sample, position = p (n - 1) in
    float64, a its order statistic floor(position) and b the one after it, t the fraction of the
    position:

        quantile = a + (b - a) t        t < 1/2
                   b - (b - a) (1 - t)  otherwise

    in float64, every operation rounded. It is a where t = 0 or a = b, and infinity where only b is
    infinite. These are the bits of numpy.quantile of the row in float64, and the definition of
    torch.quantile, which computes in the row's type. If an element of a sample is NaN, the sample's
    quantile is NaN.

    Args:
        xs: 1 to 8 tensors [B, ...], float32, float16, bfloat16 or float64.
        weights: float64 [B, 1, K].
        p: from 0 to 1.
        out: written; float64 [B].
    """
    check_quantile(xs, weights, p, out)
    if not weights.shape[0]:
        return
    rows, _ = reference.table_rows(xs, weights, None, None, [], 1, reference.arithmetic_dtype(xs))
    magnitudes = rows[0].abs().reshape(len(weights), -1)
    rank, weight = rank_of(p, magnitudes.shape[1])
    ordered = magnitudes.sort(dim=1).values.to(torch.float64)
    a, b = ordered[:, rank], ordered[:, min(rank + 1, ordered.shape[1] - 1)]
    value = a + (b - a) * weight if weight < 0.5 else b - (b - a) * (1.0 - weight)
    value = torch.where(b.isinf(), b, value)
    value = torch.where(a == b, a, value) if weight else a
    out.copy_(torch.where(magnitudes.isnan().any(dim=1), torch.nan, value))


IMPLEMENTATIONS = {"quantile": quantile}
