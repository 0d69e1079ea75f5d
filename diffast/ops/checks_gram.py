"""What `gram` refuses, in the words of csrc/gram_tensors.h."""

import torch

from diffast.ops.checks import check, check_per_sample, check_table
from diffast.ops.schema import MAX_GRAM_INPUTS, MAX_GRAM_ROWS


def check_gram(xs, weights, sums) -> None:
    """Refuses a bad call of `gram`."""
    rows = check_table(xs, weights, None, None, [])
    check(
        len(xs) <= MAX_GRAM_INPUTS and rows <= MAX_GRAM_ROWS,
        f"gram: {len(xs)} inputs and {rows} rows but at most {MAX_GRAM_INPUTS} and "
        f"{MAX_GRAM_ROWS} are supported",
    )
    check_per_sample(
        "gram", "sums", sums, torch.float64, [xs[0].shape[0], rows * (rows + 1) // 2], xs[0]
    )
