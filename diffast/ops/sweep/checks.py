"""What `sweep` refuses."""

from typing import NamedTuple

import torch

from diffast.ops.checks import (
    STATE_DTYPES,
    Beside,
    check,
    check_count,
    check_drawn,
    check_limits,
    dtype_text,
    shape_text,
)
from diffast.ops.debugging import indices_are_checked
from diffast.ops.memory import checks_memory
from diffast.ops.schema import JOB, MAX_ENTRIES, MAX_NOISES, MAX_OUTPUTS


class Call(NamedTuple):
    """The arguments of `sweep`, as the schema has them; reference.py says what they are."""

    x: torch.Tensor
    outputs: list[torch.Tensor]
    slopes: torch.Tensor | None
    weights: torch.Tensor
    changes: torch.Tensor
    tails: torch.Tensor
    line: torch.Tensor
    jobs: torch.Tensor
    walk: torch.Tensor
    ids: torch.Tensor
    seed: int
    noises: int
    parts: bool
    clamp: list[float]
    points: torch.Tensor
    states: torch.Tensor
    norms: torch.Tensor | None


@checks_memory("sweep")
def check_sweep(*args, pointers: bool = True, **named) -> Call:
    """Refuses a bad call of `sweep` (`pointers`: its tensors have real memory); returns it."""
    call = Call(*args, **named)
    x, outputs, states, ids = call.x, call.outputs, call.states, call.ids
    check(
        x.dtype in (torch.float32, torch.float64),
        f"sweep: x has dtype {dtype_text(x)} but float32 or float64 is needed",
    )
    check(x.dim() > 0, "sweep: x has no dimension of rows but [rows, ...] is needed")
    beside = Beside("sweep", "x", x, "walks")
    beside.place("x", x)
    check_count("sweep", len(outputs), "outputs", MAX_OUTPUTS)
    check_count("sweep", call.noises, "noises", MAX_NOISES)
    for i, output in enumerate(outputs):
        check(
            output.dtype in STATE_DTYPES
            and (output.dtype != torch.float64 or x.dtype == torch.float64),
            f"sweep: outputs[{i}] has dtype {dtype_text(output)} but x has {dtype_text(x)}",
        )
        _check_state(f"outputs[{i}]", output, list(x.shape), beside)
    _check_state("points", call.points, list(x.shape), beside, x.dtype)
    check(
        states.dim() == x.dim() + 1
        and states.shape[2:] == x.shape[1:]
        and 4 <= states.shape[1] <= 4 + MAX_ENTRIES,
        f"sweep: states has shape {shape_text(states)} but [states, 4 to {4 + MAX_ENTRIES}, ...] "
        f"with the elements of x, {shape_text(x)}, is needed",
    )
    _check_state("states", states, list(states.shape), beside, x.dtype)
    _check_tables(call, beside)
    check(
        ids.dtype == torch.int64 and ids.dim() == 1,
        f"sweep: ids is {dtype_text(ids)} {shape_text(ids)} but int64 [samples] is needed",
    )
    beside.place("ids", ids)
    check_limits("sweep", call.clamp)
    if call.noises:
        check_drawn("sweep", x)
    if pointers and indices_are_checked(x.device):
        _check_jobs(x, call.jobs, call.walk, ids, states, call.weights.shape[0])
    return call


def _check_tables(call: Call, beside: Beside) -> None:
    """Refuses tables whose shapes do not fit together."""
    entries, parts = call.states.shape[1] - 4, bool(call.parts)
    stages = call.weights.shape[0] if call.weights.dim() else 0
    made = 2 + (entries > 0) + parts
    columns = 1 + parts + len(call.outputs) + entries + bool(call.clamp) + call.noises
    width = 2 + parts + entries + call.noises
    jobs = call.jobs.shape[0] if call.jobs.dim() else 0
    length = call.walk.shape[1] if call.walk.dim() == 2 else 0
    for name, t, dtype, shape in (
        ("weights", call.weights, torch.float64, [stages, made, columns]),
        ("changes", call.changes, torch.float64, [stages, made]),
        ("tails", call.tails, torch.float64, [stages, made - 1, width]),
        ("line", call.line, torch.float64, [stages, 4]),
        ("slopes", call.slopes, torch.float64, [call.x.shape[0]]),
        ("jobs", call.jobs, torch.int32, [jobs, len(JOB)]),
        ("walk", call.walk, torch.int32, [jobs, length]),
        ("norms", call.norms, torch.float64, [jobs, length + 1]),
    ):
        if t is not None:
            beside.numbers(name, t, dtype, shape)


def _check_state(name, t, shape, beside, dtype=None) -> None:
    x = beside.first
    if dtype is not None:
        check(
            t.dtype == dtype, f"sweep: {name} has dtype {dtype_text(t)} but x has {dtype_text(x)}"
        )
    check(
        list(t.shape) == shape, f"sweep: {name} has shape {shape_text(t)} but x has {shape_text(x)}"
    )
    beside.place(name, t)


def _check_jobs(x, jobs, walk, ids, states, stages) -> None:
    """Refuses indices that lead out of the tensors; only where looking at them is free."""
    rows, length = x.shape[0], walk.shape[1]
    for j, (job, row) in enumerate(zip(jobs.tolist(), walk.tolist(), strict=True)):
        sample, begin, state_in, state_out, first, real, tail, _ = job
        count = real + tail
        for name, value, low, high in (
            ("sample", sample, 0, len(ids)),
            ("from", begin, -1, rows),
            ("state_in", state_in, -1 if begin >= 0 else 0, len(states)),
            ("state_out", state_out, -1, len(states)),
            ("real", real, 0, length + 1),
            ("tail", tail, 0, length + 1 - real),
            ("first", first, 0, stages + 1 - count),
        ):
            check(
                low <= value < high,
                f"sweep: job {j} has {name} {value} but {low} to {high - 1} are possible",
            )
        for k, q in enumerate(row[:count]):
            check(0 <= q < rows, f"sweep: walk[{j}, {k}] is row {q} but x has {rows} rows")


CHECKS = {"sweep": check_sweep}
