"""What `quantile` refuses beyond a bad table of weights."""

import torch

from diffast.ops.checks import Beside, check, shape_text
from diffast.ops.combine.checks import check_table
from diffast.ops.memory import checks_memory
from diffast.ops.schema import MAX_QUANTILE_ELEMENTS, MAX_QUANTILE_INPUTS


@checks_memory("quantile")
def check_quantile(xs, weights, p, out, pointers=True) -> None:
    """Refuses a bad call of `quantile` (`pointers`: its tensors have real memory)."""
    rows = check_table(xs, weights, None, None, [])
    check(
        len(xs) <= MAX_QUANTILE_INPUTS and rows == 1,
        f"quantile: {len(xs)} inputs and {rows} rows but at most {MAX_QUANTILE_INPUTS} inputs and "
        "exactly 1 row are supported",
    )
    check(0 <= p <= 1, f"quantile: p is {p:g} but must be from 0 to 1")
    elements = xs[0].shape[1:].numel()
    check(
        xs[0].shape[0] == 0 or elements > 0,
        f"quantile: xs[0] has shape {shape_text(xs[0])} but a quantile needs at least 1 element a "
        "sample",
    )
    check(
        elements <= MAX_QUANTILE_ELEMENTS,
        f"quantile: a sample has {elements} elements but at most {MAX_QUANTILE_ELEMENTS} "
        "(2^31 - 1) can be counted",
    )
    Beside("quantile", "xs[0]", xs[0]).numbers("out", out, torch.float64, [xs[0].shape[0]])


CHECKS = {"quantile": check_quantile}
