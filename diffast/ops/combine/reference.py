"""The specification of `combine`, in plain torch: what the kernels must equal, bit for bit.

It serves every device that has no kernel. Float32 arithmetic here means one torch call per
rounding.
"""

import math

import torch

from diffast.ops.combine.checks import (
    check_combine,
    check_combine_out,
    check_table,
    check_table_out,
)
from diffast.ops.normal.reference import draw
from diffast.ops.streams import SLOT_SHIFT, STAGE_LIMIT


def arithmetic_dtype(tensors) -> torch.dtype:
    """Returns float64 if any tensor is, else float32."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def round_to(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the value rounded once, to nearest even."""
    # Float64 is rounded to a half type by way of float32, as all backends do.
    if value.dtype == torch.float64 and dtype in (torch.float16, torch.bfloat16):
        value = value.to(torch.float32)
    return value.to(dtype)


def sum_columns(weights: list, columns: list[torch.Tensor]) -> torch.Tensor:
    """Returns sum_k weights[k] * columns[k], products and sums rounded one by one, in order."""
    total = columns[0] * weights[0]
    for weight, column in zip(weights[1:], columns[1:], strict=True):
        total = total + column * weight
    return total


def clamp_to(value: torch.Tensor, limits) -> torch.Tensor:
    """Returns the value within (low, high); NaN stays NaN."""
    # As in csrc/core/row.h. torch.clamp would refuse limits beyond float32, which round to infinity
    # here, and it does not say which zero max(-0, +0) is.
    limits = torch.tensor(limits, dtype=torch.float64, device=value.device).to(value.dtype)
    value = torch.where(value < limits[0], limits[0], value)
    return torch.where(value > limits[1], limits[1], value)


def _rows(xs, row_weights, row_noise, noises, clamp, arithmetic):
    """Returns the rows in the arithmetic type and, per row, the sum before any clamp."""
    columns = [x.to(arithmetic) for x in xs]
    noises = [z.to(arithmetic) for z in noises]
    rows, sums = [], []
    for r, (weights, noise) in enumerate(zip(row_weights, row_noise, strict=True)):
        inputs = list(columns)
        if clamp:
            weights = weights[: len(columns)] if r == 0 else weights
            inputs += [] if r == 0 else [rows[0]]
        total = sum_columns([*weights, *noise], [*inputs, *noises])
        sums.append(total)
        if clamp and r == 0:
            total = clamp_to(total, clamp)
        rows.append(total)
    return rows, sums


def normals(seed, ids, word, slots: int, like: torch.Tensor) -> list[torch.Tensor]:
    """Returns the normals of the slots of a counter word, each of the shape of `like`."""
    elements = like[0].numel() if slots and like.shape[0] else 0
    return [
        draw(seed, ids, word + (m << SLOT_SHIFT), elements).reshape(like.shape)
        for m in range(slots)
    ]


def _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic):
    width = len(weights) // rows
    slots = len(noise) // rows
    if slots and ids is None:
        ids = torch.arange(xs[0].shape[0], dtype=torch.int64, device=xs[0].device)
    noises = normals(seed, ids, stage, slots, xs[0])
    row_weights = [weights[r * width : (r + 1) * width] for r in range(rows)]
    row_noise = [noise[r * slots : (r + 1) * slots] for r in range(rows)]
    return _rows(xs, row_weights, row_noise, noises, clamp, arithmetic)


def table_rows(xs, weights, noise, streams, clamp, rows, arithmetic):
    """Returns the rows of a table [B, R, K] in the arithmetic type, and the sums before a clamp."""
    first = xs[0]

    def spread(table, r, k):  # [B, 1, 1, ...]
        return table[:, r, k].to(arithmetic).reshape(-1, *[1] * (first.dim() - 1))

    slots = 0 if noise is None else noise.shape[2]
    noises = []
    if slots:
        seed, ids, word = streams.unbind(dim=1)
        noises = normals(seed, ids, word, slots, first)
    row_weights = [[spread(weights, r, k) for k in range(weights.shape[2])] for r in range(rows)]
    row_noise = [[spread(noise, r, m) for m in range(slots)] for r in range(rows)]
    return _rows(xs, row_weights, row_noise, noises, clamp, arithmetic)


def promoted(xs) -> torch.dtype:
    """Returns the dtype that torch would promote the inputs to."""
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def note(status, sums, stage) -> None:
    """Writes the stage into the entries below 0 of samples with a sum that is not finite."""
    finite = torch.ones_like(status, dtype=torch.bool)
    for total in sums:
        elements = math.prod(total.shape[1:])
        finite = finite & total.isfinite().reshape(total.shape[0], elements).all(dim=1)
    stage = torch.as_tensor(stage, dtype=torch.int64, device=status.device) & (STAGE_LIMIT - 1)
    status.copy_(torch.where(~finite & (status < 0), stage, status))


def store(rows, outs) -> None:
    """Writes the last len(outs) rows, each rounded once to its output's type."""
    for row, out in zip(rows[len(rows) - len(outs) :], outs, strict=True):
        out.copy_(round_to(row, out.dtype))


def combine(xs, weights, noise, seed, stage, ids, clamp):
    """Returns the rows of `combine` with host weights, each of the inputs' promoted dtype."""
    rows = check_combine(xs, weights, noise, seed, stage, ids, clamp)
    arithmetic = arithmetic_dtype(xs)
    values, _ = _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic)
    return [round_to(value, promoted(xs)) for value in values]


def combine_out(xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()):
    """Writes the rows of `combine` with host weights into `outs`."""
    rows = check_combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
    arithmetic = arithmetic_dtype([*xs, *outs])
    values, sums = _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic)
    if status is not None:
        note(status, sums, stage)
    store(values, outs)


def combine_table(xs, weights, noise, streams, clamp):
    """Returns the rows of `combine` with a table of weights [B, R, K]."""
    rows = check_table(xs, weights, noise, streams, clamp)
    values, _ = table_rows(xs, weights, noise, streams, clamp, rows, arithmetic_dtype(xs))
    return [round_to(value, promoted(xs)) for value in values]


def combine_table_out(xs, weights, noise, streams, clamp, outs, status):
    """Writes the rows of `combine` with a table of weights [B, R, K] into `outs`."""
    rows = check_table_out(xs, weights, noise, streams, clamp, outs, status)
    arithmetic = arithmetic_dtype([*xs, *outs])
    values, sums = table_rows(xs, weights, noise, streams, clamp, rows, arithmetic)
    if status is not None:
        note(status, sums, streams[:, 2])
    store(values, outs)


IMPLEMENTATIONS = {
    "combine": combine,
    "combine.out": combine_out,
    "combine.table": combine_table,
    "combine.table_out": combine_table_out,
}
