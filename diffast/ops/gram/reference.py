"""The specification of `gram`: inner products of rows that are never stored."""

import torch

from diffast.ops.combine import reference
from diffast.ops.gram.checks import check_gram


def gram(xs, weights, sums):
    """Writes <y_i, y_j> of the rows y_j = sum_k weights[b, j, k] xs[k] of every sample b.

    Rows are rounded as in `combine.table`. Products of two rows are made and added up in float64,
    in an order that depends on the number of elements alone. If `sums` has J more columns, they get
    the sum of each row's elements, added up in the same order. Means and standard deviations are
    made of it.

    Args:
        xs: 1 to 8 tensors [B, ...], float32, float16, bfloat16 or float64.
        weights: float64 [B, J, K], J from 1 to 4.
        sums: written; float64 [B, J (J + 1) / 2]: (0, 0), (0, 1), ..., (1, 1), ...; or float64
            [B, J (J + 1) / 2 + J], then sum_e y_0[e], sum_e y_1[e], ...
    """
    check_gram(xs, weights, sums)
    if not weights.shape[0] or not xs[0].numel():
        sums.zero_()
        return
    count = weights.shape[1]
    rows, _ = reference.table_rows(
        xs, weights, None, None, [], count, reference.arithmetic_dtype(xs)
    )
    flat = [row.reshape(row.shape[0], -1).to(torch.float64) for row in rows]
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    for column, (i, j) in enumerate(pairs):
        sums[:, column] = (flat[i] * flat[j]).sum(dim=1)
    for j in range(count) if sums.shape[1] > len(pairs) else ():
        sums[:, len(pairs) + j] = flat[j].sum(dim=1)


IMPLEMENTATIONS = {"gram": gram}
