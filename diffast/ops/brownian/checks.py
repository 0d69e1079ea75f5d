"""What `brownian` refuses."""

import torch

from diffast.ops.checks import Beside, check, check_drawn, dtype_text, shape_text
from diffast.ops.memory import checks_memory
from diffast.ops.schema import MAX_DEPTH


@checks_memory("brownian.out")
def check_brownian_out(
    streams, nodes, weights, depth, last, increment, value=None, pointers=True
) -> None:
    """Refuses a bad call of `brownian.out` (`pointers`: its tensors have real memory)."""
    check(1 <= depth <= MAX_DEPTH, f"brownian: depth {depth} but 1 to {MAX_DEPTH} are supported")
    check(
        increment.dtype in (torch.float32, torch.float64),
        f"brownian: increment has dtype {dtype_text(increment)} but float32 or float64 is needed",
    )
    check(
        increment.dim() > 0,
        "brownian: increment has no batch dimension but [samples, ...] is needed",
    )
    check_drawn("brownian", increment)
    samples = increment.shape[0]
    beside = Beside("brownian", "increment", increment)
    beside.numbers("streams", streams, torch.int64, [samples, 3])
    beside.numbers("nodes", nodes, torch.int64, [samples, 2])
    beside.numbers("weights", weights, torch.float64, [samples, 2])
    for name, t in (("increment", increment), ("last", last), ("value", value)):
        if t is None:
            continue
        check(
            t.shape == increment.shape and t.dtype == increment.dtype,
            f"brownian: {name} is {dtype_text(t)} {shape_text(t)} but increment is "
            f"{dtype_text(increment)} {shape_text(increment)}",
        )
        beside._replace(does="walks").place(name, t)


def check_brownian(streams, nodes, weights, depth, last, shape, dtype) -> torch.Tensor:
    """Refuses a bad call of the returning form; returns a new tensor [B, *shape]."""
    check(
        all(size >= 0 for size in shape),
        f"brownian: shape is {list(shape)} but no size may be below 0",
    )
    increment = streams.new_empty([*streams.shape[:1], *shape], dtype=dtype)
    check_brownian_out(streams, nodes, weights, depth, last, increment, pointers=False)
    return increment


CHECKS = {"brownian": check_brownian, "brownian.out": check_brownian_out}
