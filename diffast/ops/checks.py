"""What the ops refuse, in the words of csrc/tensors.h, for the backends written in Python."""

import math

import torch

from diffast.ops.schema import MAX_INPUTS, MAX_NOISES, MAX_ROWS

STATE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError, as the compiled kernels do, unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def shape_text(t: torch.Tensor) -> str:
    """Returns the shape as `[2, 3]`."""
    return str(list(t.shape))


def dtype_text(t: torch.Tensor) -> str:
    """Returns the dtype as `float32`."""
    return str(t.dtype).removeprefix("torch.")


def device_text(t: torch.Tensor) -> str:
    """Returns the device as `cpu` or `cuda:0`."""
    return str(t.device)


def check_state(op: str, name: str, t: torch.Tensor, first: torch.Tensor) -> None:
    """Refuses a tensor that does not go with the first input."""
    check(
        t.dtype in STATE_DTYPES,
        f"{op}: {name} has dtype {dtype_text(t)} but only float32, float16, bfloat16 and float64 "
        "are supported",
    )
    check(
        t.shape == first.shape,
        f"{op}: {name} has shape {shape_text(t)} but xs[0] has shape {shape_text(first)}",
    )
    check(
        t.device == first.device,
        f"{op}: {name} is on {device_text(t)} but xs[0] is on {device_text(first)}",
    )
    check(
        t.is_contiguous(),
        f"{op}: {name} of shape {shape_text(t)} is not contiguous but the kernel reads it in "
        "row-major order",
    )


def check_per_sample(
    op: str, name: str, t: torch.Tensor, dtype: torch.dtype, shape: list, first: torch.Tensor
) -> None:
    """Refuses ids, streams, status or a table of the wrong dtype, shape, device or layout."""
    check(
        t.dtype == dtype and list(t.shape) == list(shape),
        f"{op}: {name} is {dtype_text(t)} {shape_text(t)} but "
        f"{str(dtype).removeprefix('torch.')} {list(shape)} is needed",
    )
    check(
        t.device == first.device,
        f"{op}: {name} is on {device_text(t)} but xs[0] is on {device_text(first)}",
    )
    check(
        t.is_contiguous(),
        f"{op}: {name} of shape {shape_text(t)} is not contiguous but the kernel reads it in "
        "row-major order",
    )


def check_word(op: str, stage: int) -> None:
    """Refuses a counter word that uses the slot bits or more than 32 bits."""
    check(
        0 <= stage < 1 << 32 and stage >> 26 & 3 == 0,
        f"{op}: stage {stage} but bits 0 to 25 hold the stage, 28 to 31 the purpose",
    )


def check_inputs(xs: list[torch.Tensor], rows: int) -> None:
    """Refuses an empty or too long list of inputs, too many rows, and inputs that differ."""
    check(len(xs) > 0, "combine: xs is empty but at least 1 input is needed")
    check(
        len(xs) <= MAX_INPUTS,
        f"combine: {len(xs)} inputs but at most {MAX_INPUTS} are supported",
    )
    check(rows <= MAX_ROWS, f"combine: {rows} rows but at most {MAX_ROWS} are supported")
    for k, x in enumerate(xs):
        check_state("combine", f"xs[{k}]", x, xs[0])


def check_clamp(clamp: list[float]) -> None:
    """Refuses anything but nothing or an ordered pair."""
    if not clamp:
        return
    check(len(clamp) == 2, f"combine: clamp has {len(clamp)} numbers but (low, high) is needed")
    check(clamp[0] <= clamp[1], f"combine: clamp low {clamp[0]:g} but high {clamp[1]:g}")


def count_rows(inputs: int, weights: int, clamp: bool) -> int:
    """Returns the number of rows that the flat list of weights holds."""
    if inputs == 0:
        return 1
    columns = inputs + clamp
    check(
        weights > 0 and weights % columns == 0,
        f"combine: {inputs} inputs{' and a clamped row' if clamp else ''} but {weights} weights, "
        "which is not a whole number of rows",
    )
    return weights // columns


def need_batch(first: torch.Tensor, what: str) -> None:
    """Refuses a 0-dimensional state where samples matter."""
    check(first.dim() > 0, f"combine: xs[0] has no batch dimension but {what} needs one")


def check_host_weights(weights: list[float], noise: list[float], rows: int, clamp: bool) -> None:
    """Refuses weights that are not finite or do not divide into rows."""
    columns = len(weights) // rows
    for i, weight in enumerate(weights):
        check(
            math.isfinite(weight),
            f"combine: the weight of row {i // columns}, column {i % columns} is {weight:g} but "
            "weights must be finite",
        )
    if clamp:
        check(
            weights[columns - 1] == 0,
            "combine: row 0 is the clamped row but gives itself the weight "
            f"{weights[columns - 1]:g}",
        )
    check(
        len(noise) % rows == 0 and len(noise) <= rows * MAX_NOISES,
        f"combine: {rows} rows but {len(noise)} noise weights (0, 1 or 2 a row)",
    )
    for i, weight in enumerate(noise):
        check(
            math.isfinite(weight),
            f"combine: the noise weight of row {i // (len(noise) // rows)} is {weight:g} but "
            "weights must be finite",
        )


def check_host(xs, weights, noise, stage, ids, clamp) -> int:
    """Refuses a bad call with host weights; returns its number of rows."""
    check_clamp(clamp)
    rows = count_rows(len(xs), len(weights), bool(clamp))
    check_inputs(xs, rows)
    check_host_weights(weights, noise, rows, bool(clamp))
    check_word("combine", stage)
    if noise:
        need_batch(xs[0], "noise")
    if ids is not None:
        samples = xs[0].shape[0] if xs[0].dim() else 1
        check_per_sample("combine", "ids", ids, torch.int64, [samples], xs[0])
    return rows


def check_table(xs, weights, noise, streams, clamp) -> int:
    """Refuses a bad call with a table of weights; returns its number of rows."""
    check_clamp(clamp)
    check(
        weights.dim() == 3,
        f"combine: the table has shape {shape_text(weights)} but [samples, rows, columns] is "
        "needed",
    )
    rows = weights.shape[1]
    check(
        rows > 0,
        f"combine: the table has shape {shape_text(weights)} but at least 1 row is needed",
    )
    check_inputs(xs, rows)
    need_batch(xs[0], "a table of weights")
    samples = xs[0].shape[0]
    columns = len(xs) + bool(clamp)
    check_per_sample(
        "combine", "the table", weights, torch.float64, [samples, rows, columns], xs[0]
    )
    if noise is not None:
        check(
            noise.dim() == 3 and 1 <= noise.shape[2] <= MAX_NOISES,
            f"combine: the noise table has shape {shape_text(noise)} but [samples, rows, 1 or 2] "
            "is needed",
        )
        check_per_sample(
            "combine",
            "the noise table",
            noise,
            torch.float64,
            [samples, rows, noise.shape[2]],
            xs[0],
        )
        check(
            streams is not None,
            "combine: a noise table is given but no streams (seed, id, stage)",
        )
    if streams is not None:
        check_per_sample("combine", "streams", streams, torch.int64, [samples, 3], xs[0])
    return rows


def memory_span(t: torch.Tensor) -> tuple[int, int]:
    """Returns the addresses of a contiguous tensor's first byte and of the one behind its last."""
    begin = t.data_ptr()
    return begin, begin + t.numel() * t.element_size()


def check_outputs(xs, outs, rows: int, clamp: bool, status, pointers: bool = True) -> None:
    """Refuses outputs that do not match the rows, or that overlap (`pointers`: real memory)."""
    hidden = rows - len(outs)
    check(hidden == 0 or (hidden == 1 and clamp), f"combine: {rows} rows but {len(outs)} outs")
    for r, out in enumerate(outs):
        check_state("combine", f"outs[{r}]", out, xs[0])
    if pointers:
        _check_overlap(xs, outs, hidden)
    if status is not None:
        need_batch(xs[0], "status")
        check_per_sample("combine", "status", status, torch.int64, [xs[0].shape[0]], xs[0])


def _check_overlap(xs, outs, hidden: int) -> None:
    for r, out in enumerate(outs):
        begin, end = memory_span(out)
        for k, x in enumerate(xs):
            start, stop = memory_span(x)
            same = start == begin and x.dtype == out.dtype
            check(
                same or stop <= begin or end <= start,
                f"combine: the output of row {r + hidden} overlaps xs[{k}] without being the same "
                "tensor",
            )
        for s in range(r):
            start, stop = memory_span(outs[s])
            check(
                stop <= begin or end <= start,
                f"combine: the output of row {r + hidden} overlaps the output of row {s + hidden}",
            )


def check_status_streams(status, streams) -> None:
    """Refuses a status without the streams that hold the stage to report."""
    check(
        status is None or streams is not None,
        "combine: status is given but no streams, which hold the stage to report",
    )


def check_normal(ids, stage: int, scale: float, out) -> None:
    """Refuses a bad call of `normal.out`."""
    check(
        out.dtype in STATE_DTYPES,
        f"normal: out has dtype {dtype_text(out)} but only float32, float16, bfloat16 and float64 "
        "are supported",
    )
    check(
        ids.dtype == torch.int64 and ids.dim() == 1 and ids.is_contiguous(),
        f"normal: ids is {dtype_text(ids)} {shape_text(ids)} but a contiguous int64 [samples] is "
        "needed",
    )
    check(
        out.dim() > 0 and out.shape[0] == ids.shape[0],
        f"normal: out has shape {shape_text(out)} but there are {ids.shape[0]} ids",
    )
    check(
        out.device == ids.device,
        f"normal: out is on {device_text(out)} but ids are on {device_text(ids)}",
    )
    check(
        out.is_contiguous(),
        f"normal: out of shape {shape_text(out)} is not contiguous but the kernel writes it in "
        "row-major order",
    )
    check(math.isfinite(scale), f"normal: the scale is {scale:g} but it must be finite")
    check_word("normal", stage)
