"""What `gram` refuses beyond a bad table of weights."""

import torch

from diffast.ops.checks import Beside, check
from diffast.ops.combine.checks import check_table
from diffast.ops.memory import checks_memory
from diffast.ops.schema import MAX_GRAM_INPUTS, MAX_GRAM_ROWS


@checks_memory("gram")
def check_gram(xs, weights, sums, pointers=True) -> None:
    """Refuses a bad call of `gram` (`pointers`: its tensors have real memory)."""
    rows = check_table(xs, weights, None, None, [])
    check(
        len(xs) <= MAX_GRAM_INPUTS and rows <= MAX_GRAM_ROWS,
        f"gram: {len(xs)} inputs and {rows} rows but at most {MAX_GRAM_INPUTS} and "
        f"{MAX_GRAM_ROWS} are supported",
    )
    width = rows * (rows + 1) // 2
    if sums.dim() == 2 and sums.shape[1] == width + rows:
        width += rows  # the sums of the rows' elements, too
    Beside("gram", "xs[0]", xs[0]).numbers("sums", sums, torch.float64, [xs[0].shape[0], width])


CHECKS = {"gram": check_gram}
