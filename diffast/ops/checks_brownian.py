"""What `brownian` refuses, in the words of csrc/brownian_tensors.h."""

import torch

from diffast.ops.checks import check, check_per_sample, dtype_text, shape_text
from diffast.ops.schema import MAX_DEPTH


def check_brownian(streams, nodes, weights, depth, last, increment, value) -> None:
    """Refuses a bad call of `brownian.out`."""
    check(
        1 <= depth <= MAX_DEPTH,
        f"brownian: depth {depth} but 1 to {MAX_DEPTH} are supported",
    )
    check(
        increment.dtype in (torch.float32, torch.float64),
        f"brownian: increment has dtype {dtype_text(increment)} but float32 or float64 is needed",
    )
    check(
        increment.dim() > 0,
        "brownian: increment has no batch dimension but [samples, ...] is needed",
    )
    samples = increment.shape[0]
    for name, t, dtype, width in (
        ("streams", streams, torch.int64, 3),
        ("nodes", nodes, torch.int64, 2),
        ("weights", weights, torch.float64, 2),
    ):
        check_per_sample("brownian", name, t, dtype, [samples, width], increment)
    for name, t in (("increment", increment), ("last", last), ("value", value)):
        if t is None:
            continue
        check(
            t.shape == increment.shape and t.dtype == increment.dtype,
            f"brownian: {name} is {dtype_text(t)} {shape_text(t)} but increment is "
            f"{dtype_text(increment)} {shape_text(increment)}",
        )
        check(
            t.device == increment.device,
            f"brownian: {name} is on {t.device} but increment is on {increment.device}",
        )
        check(
            t.is_contiguous(),
            f"brownian: {name} of shape {shape_text(t)} is not contiguous but the kernel reads it "
            "in row-major order",
        )
