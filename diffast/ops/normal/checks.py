"""What `normal` refuses."""

import math

import torch

from diffast.ops.checks import (
    Beside,
    check,
    check_dense,
    check_drawn,
    check_dtype,
    check_word,
    dtype_text,
    shape_text,
)
from diffast.ops.memory import checks_memory


@checks_memory("normal.out")
def check_normal_out(ids, seed, stage: int, scale: float, out, pointers=True) -> None:
    """Refuses a bad call of `normal.out` (`pointers`: its tensors have real memory)."""
    check_dtype("normal", "out", out)
    check_dense("normal", "ids", ids)
    check(
        ids.dtype == torch.int64 and ids.dim() == 1 and ids.is_contiguous(),
        f"normal: ids is {dtype_text(ids)} {shape_text(ids)} but a contiguous int64 [samples] is "
        "needed",
    )
    check(
        out.dim() > 0 and out.shape[0] == ids.shape[0],
        f"normal: out has shape {shape_text(out)} but there are {ids.shape[0]} ids",
    )
    Beside("normal", "ids", ids, "writes").place("out", out)
    check(math.isfinite(scale), f"normal: the scale is {scale:g} but it must be finite")
    check_word("normal", stage)
    check_drawn("normal", out)


def check_normal(ids, shape, seed, stage: int, scale: float, dtype) -> torch.Tensor:
    """Refuses a bad call of the returning form; returns a new tensor [B, *shape]."""
    check(
        all(size >= 0 for size in shape),
        f"normal: shape is {list(shape)} but no size may be below 0",
    )
    out = ids.new_empty([*ids.shape[:1], *shape], dtype=dtype)
    check_normal_out(ids, seed, stage, scale, out, pointers=False)
    return out


CHECKS = {"normal": check_normal, "normal.out": check_normal_out}
