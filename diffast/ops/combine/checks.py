"""What `combine` refuses. Every function has the arguments of one form of the op (schema.py).

`pointers` says whether the tensors have real memory, of which parts may overlap (ops/memory.py).
"""

import math

import torch

from diffast.ops.checks import (
    Beside,
    check,
    check_count,
    check_drawn,
    check_dtype,
    check_limits,
    check_word,
    shape_text,
)
from diffast.ops.memory import checks_memory
from diffast.ops.schema import MAX_INPUTS, MAX_NOISES, MAX_ROWS


def check_combine(xs, weights, noise, seed, stage, ids, clamp) -> int:
    """Refuses a bad call with host weights; returns its number of rows."""
    check_limits("combine", clamp)
    rows = _count_rows(len(xs), len(weights), bool(clamp))
    _check_inputs(xs, rows)
    _check_host_weights(weights, noise, rows, bool(clamp))
    check_word("combine", stage)
    if noise:
        _need_batch(xs[0], "noise")
        check_drawn("combine", xs[0])
    if ids is not None:
        samples = xs[0].shape[0] if xs[0].dim() else 1
        _beside(xs).numbers("ids", ids, torch.int64, [samples])
    return rows


@checks_memory("combine.out")
def check_combine_out(
    xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=(), pointers=True
) -> int:
    """Refuses a bad call of `combine.out`; returns its number of rows."""
    rows = check_combine(xs, weights, noise, seed, stage, ids, clamp)
    check_outputs(xs, outs, rows, bool(clamp), status)
    return rows


def check_table(xs, weights, noise, streams, clamp) -> int:
    """Refuses a bad call with a table of weights; returns its number of rows."""
    check_limits("combine", clamp)
    check(
        weights.dim() == 3,
        f"combine: weights has shape {shape_text(weights)} but [samples, rows, columns] is needed",
    )
    rows = weights.shape[1]
    check(
        rows > 0, f"combine: weights has shape {shape_text(weights)} but at least 1 row is needed"
    )
    _check_inputs(xs, rows)
    _need_batch(xs[0], "a table of weights")
    samples, columns = xs[0].shape[0], len(xs) + bool(clamp)
    beside = _beside(xs)
    beside.numbers("weights", weights, torch.float64, [samples, rows, columns])
    if noise is not None:
        check_drawn("combine", xs[0])
        check(
            noise.dim() == 3 and 1 <= noise.shape[2] <= MAX_NOISES,
            f"combine: noise has shape {shape_text(noise)} but [samples, rows, 1 or 2] is needed",
        )
        beside.numbers("noise", noise, torch.float64, [samples, rows, noise.shape[2]])
        check(streams is not None, "combine: noise is given but no streams (seed, id, stage)")
    if streams is not None:
        beside.numbers("streams", streams, torch.int64, [samples, 3])
    return rows


@checks_memory("combine.table_out")
def check_table_out(xs, weights, noise, streams, clamp, outs, status, pointers=True) -> int:
    """Refuses a bad call of `combine.table_out`; returns its number of rows."""
    rows = check_table(xs, weights, noise, streams, clamp)
    check_outputs(xs, outs, rows, bool(clamp), status)
    check_status_streams(status, streams)
    return rows


def check_outputs(xs, outs, rows: int, clamp: bool, status) -> None:
    """Refuses outputs that do not match the rows."""
    hidden = rows - len(outs)
    check(hidden == 0 or (hidden == 1 and clamp), f"combine: {rows} rows but {len(outs)} outs")
    for r, out in enumerate(outs):
        _check_state(f"outs[{r}]", out, xs)
    if status is not None:
        _need_batch(xs[0], "status")
        _beside(xs).numbers("status", status, torch.int64, [xs[0].shape[0]])


def check_status_streams(status, streams) -> None:
    """Refuses a status without the streams that hold the stage to report."""
    check(
        status is None or streams is not None,
        "combine: status is given but no streams, which hold the stage to report",
    )


def _beside(xs: list[torch.Tensor]) -> Beside:
    return Beside("combine", "xs[0]", xs[0])


def _check_state(name: str, t: torch.Tensor, xs: list[torch.Tensor]) -> None:
    check_dtype("combine", name, t)
    check(
        t.shape == xs[0].shape,
        f"combine: {name} has shape {shape_text(t)} but xs[0] has shape {shape_text(xs[0])}",
    )
    _beside(xs).place(name, t)


def _check_inputs(xs: list[torch.Tensor], rows: int) -> None:
    check(len(xs) > 0, "combine: xs is empty but at least 1 input is needed")
    check_count("combine", len(xs), "inputs", MAX_INPUTS)
    check_count("combine", rows, "rows", MAX_ROWS)
    for k, x in enumerate(xs):
        _check_state(f"xs[{k}]", x, xs)


def _count_rows(inputs: int, weights: int, clamp: bool) -> int:
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


def _need_batch(first: torch.Tensor, what: str) -> None:
    check(first.dim() > 0, f"combine: xs[0] has no batch dimension but {what} needs one")


def _check_host_weights(weights: list[float], noise: list[float], rows: int, clamp: bool) -> None:
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


CHECKS = {
    "combine": check_combine,
    "combine.out": check_combine_out,
    "combine.table": check_table,
    "combine.table_out": check_table_out,
}
