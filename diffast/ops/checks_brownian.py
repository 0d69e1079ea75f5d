"""What `brownian` refuses, in the words of csrc/brownian_tensors.h."""

import torch

from diffast.ops.checks import check, device_text, dtype_text, memory_span, shape_text
from diffast.ops.schema import MAX_DEPTH


def check_brownian(
    streams, nodes, weights, depth, last, increment, value, pointers: bool = True
) -> None:
    """Refuses a bad call of `brownian.out` (`pointers`: its tensors have real memory)."""
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
        check(
            t.dtype == dtype and list(t.shape) == [samples, width],
            f"brownian: {name} is {dtype_text(t)} {shape_text(t)} but "
            f"{str(dtype).removeprefix('torch.')} [{samples}, {width}] is needed",
        )
        _check_place(name, t, increment, "reads")
    for name, t in (("increment", increment), ("last", last), ("value", value)):
        if t is None:
            continue
        check(
            t.shape == increment.shape and t.dtype == increment.dtype,
            f"brownian: {name} is {dtype_text(t)} {shape_text(t)} but increment is "
            f"{dtype_text(increment)} {shape_text(increment)}",
        )
        _check_place(name, t, increment, "walks")
    if pointers:
        _check_overlap(last, increment, value)


def _check_place(name, t, increment, does: str) -> None:
    check(
        t.device == increment.device,
        f"brownian: {name} is on {device_text(t)} but increment is on {device_text(increment)}",
    )
    check(
        t.is_contiguous(),
        f"brownian: {name} of shape {shape_text(t)} is not contiguous but the kernel {does} it in "
        "row-major order",
    )


def _check_overlap(last, increment, value) -> None:
    """Refuses outputs that share memory; `last` may be an output itself."""

    def overlap(a, b):
        start, end = memory_span(a)
        begin, stop = memory_span(b)
        return begin < end and start < stop

    check(
        value is None or not overlap(value, increment),
        "brownian: value overlaps increment but both are written",
    )
    if last is None:
        return
    for name, out in (("increment", increment), ("value", value)):
        same = out is None or last.data_ptr() == out.data_ptr()
        check(
            same or not overlap(last, out),
            f"brownian: {name} overlaps last without being the same tensor",
        )
