"""The ops under `torch.vmap`: the mapped dimension becomes part of the batch.

The returning forms of `combine` and `normal` serve it: a sample's result depends on that sample
alone, so that a call on all samples of all maps has the same bits. Noise belongs to ids: samples of
two maps that have one id have the same normals. The other ops refuse.
"""

from collections.abc import Callable
from typing import Any

import torch

from diffast.ops.checks import check
from diffast.ops.memory import parameters_of
from diffast.ops.schema import SCHEMAS, library, overload_of


def _merged(t: torch.Tensor | None, dim: int | None, size: int) -> Any:
    """Returns a tensor [B, ...] of each map as one [size B, ...], contiguous; None stays None."""
    if t is None:
        return None
    t = t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.reshape(t.shape[0] * t.shape[1], *t.shape[2:]).contiguous()


def _need_batch(t: torch.Tensor, dim: int | None) -> None:
    check(
        t.dim() - (dim is not None) > 0,
        "combine: torch.vmap over tensors without a batch dimension is not supported: give [1]",
    )


def _split(rows: list[torch.Tensor], size: int) -> tuple[list[torch.Tensor], list[int]]:
    """Returns the rows [size B, ...] as [size, B, ...], and where the mapped dimension is."""
    split = [row.reshape(size, row.shape[0] // size, *row.shape[1:]) for row in rows]
    return split, [0] * len(split)


def _combine(info, in_dims, xs, weights, noise, seed, stage, ids, clamp):
    for x, dim in zip(xs, in_dims[0], strict=True):
        _need_batch(x, dim)
    merged = [_merged(x, dim, info.batch_size) for x, dim in zip(xs, in_dims[0], strict=True)]
    if ids is None and noise:
        samples = merged[0].shape[0] // max(info.batch_size, 1)
        ids = torch.arange(samples, dtype=torch.int64, device=merged[0].device)
    ids = _merged(ids, in_dims[5] if isinstance(in_dims[5], int) else None, info.batch_size)
    rows = overload_of("combine")(merged, weights, noise, seed, stage, ids, clamp)
    return _split(rows, info.batch_size)


def _combine_table(info, in_dims, xs, weights, noise, streams, clamp):
    for x, dim in zip(xs, in_dims[0], strict=True):
        _need_batch(x, dim)
    size = info.batch_size
    merged = [_merged(x, dim, size) for x, dim in zip(xs, in_dims[0], strict=True)]
    tables = [
        _merged(t, dim, size)
        for t, dim in zip((weights, noise, streams), in_dims[1:4], strict=True)
    ]
    return _split(overload_of("combine.table")(merged, *tables, clamp), size)


def _normal(info, in_dims, ids, shape, seed, stage, scale, dtype):
    merged = _merged(ids, in_dims[0], info.batch_size)
    out = overload_of("normal")(merged, shape, seed, stage, scale, dtype)
    (split,), (dim,) = _split([out], info.batch_size)
    return split, dim


def _refuse(name: str) -> Callable:
    def call(info, in_dims, *args):
        op = name.partition(".")[0]
        written = any(is_written for _, is_written in parameters_of(name))
        what = "which writes into given tensors" if written else "in this form"
        raise RuntimeError(
            f"{op}: torch.vmap cannot map this op, {what}: call it once on the whole batch, or use "
            "the returning form of combine or normal"
        )

    return call


def register() -> None:
    """Registers the rules of all ops."""
    rules = {"combine": _combine, "combine.table": _combine_table, "normal": _normal}
    for name in SCHEMAS:
        rule = rules.get(name) or _refuse(name)
        torch.library.register_vmap(f"diffast::{name}", rule, lib=library)
