"""Calls of every op, with random numbers: what is timed, and what is checked before it is timed.

A call writes into given tensors. Its arguments are those of the op's overload (see
`diffast.ops.schema`), so that the torch reference can be given copies of the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffast import ops
from diffast.ops.evaluate.encode import Instruction, Program, encode

WEIGHTS = (0.9, -0.35, 1.7, 0.2)
DEPTH = 11  # of the tree of `brownian`: 20 Karras steps from 14.6 to 0.03 need so much
WINDOW = 100  # stages of a sweep
LENGTH = 200  # instructions of a program of `evaluate`; a trial step's has 60 to 200
# Instructions of such a program, in turns; each has the same bits on every backend.
ARITHMETIC = ("mul", "add", "mul", "sub", "mul", "add", "div", "minimum", "where")
# `accept`: steps stay at a thousandth, so that no sample ends; the controller runs each time.
RULE = (2, 0.9, 0.467, 0.267, 0, 0.2, 2, 0.9, 0.667, 0.2, 0.9, 0.01, 0.5, 1e-3, 1e-3, 0)
FLAGS = (1, 1, 0, 0, 0, 1, 0, 2**62)


@dataclass(frozen=True)
class OpCall:
    """One call of an op.

    Attributes:
        op: the op's name, as its folder is called.
        overload: the name under which reference and schema know the call.
        function: what is called.
        arguments: its arguments, in order.
        touched: bytes that the call has to read and write at least.
        normals: how many fresh normals it makes.
        eager: the same work in plain torch, None where there is no short form of it.
    """

    op: str
    overload: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    touched: int
    normals: int = 0
    eager: Callable[[], object] | None = None

    def __call__(self) -> None:
        """Makes the call."""
        self.function(*self.arguments)


def bytes_of(*tensors: torch.Tensor) -> int:
    """Returns the bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def combine(
    shape: Sequence[int],
    device: torch.device,
    inputs: int = 4,
    rows: int = 1,
    noise: bool = False,
    half: bool = False,
) -> OpCall:
    """Returns a call of `combine.out`.

    Args:
        shape: of every tensor, [B, ...].
        device: where they are.
        inputs: K tensors.
        rows: R tensors that are written.
        noise: whether the last row has a fresh normal.
        half: whether the last input is bfloat16, as a network's output may be.
    """
    xs, outs = _tensors(inputs, shape, device), _tensors(rows, shape, device)
    if half:
        xs[-1] = xs[-1].bfloat16()
    weights = [w * (1 + r / 8) for r in range(rows) for w in WEIGHTS[:inputs]]
    scales = [0.0] * (rows - 1) + [0.3] if noise else []
    ids = torch.arange(shape[0], device=device)
    given = (xs, weights, outs, None, 3, scales, 7, ids if noise else None)

    def eager():
        for r in range(rows):
            total = weights[r * inputs] * xs[0]
            for w, x in zip(weights[r * inputs + 1 :], xs[1:], strict=False):
                total = total + w * x
            if noise and r == rows - 1:
                total = total + 0.3 * torch.randn_like(total)

    drawn = outs[0].numel() if noise else 0
    size = bytes_of(*xs, *outs)
    return OpCall("combine", "combine.out", ops.combine_out, given, size, drawn, eager)


def combine_table(shape: Sequence[int], device: torch.device, inputs: int = 4) -> OpCall:
    """Returns a call of `combine.table_out`, in which every sample has weights of its own."""
    xs, outs = _tensors(inputs, shape, device), _tensors(1, shape, device)
    table = torch.randn(shape[0], 1, inputs, dtype=torch.float64, device=device)
    spread = table.float().reshape(shape[0], inputs, *[1] * (len(shape) - 1))

    def eager():
        total = spread[:, 0] * xs[0]
        for k in range(1, inputs):
            total = total + spread[:, k] * xs[k]

    given = (xs, table, None, None, [], outs, None)
    size = bytes_of(*xs, *outs)
    return OpCall("combine", "combine.table_out", ops.combine_table_out, given, size, 0, eager)


def combine_error(
    shape: Sequence[int], device: torch.device, inputs: int = 3, stored: int = 2, form: int = 0
) -> OpCall:
    """Returns a call of `combine_error.out`; the forms are numbered in `schema.ERROR_FORMS`."""
    xs, outs = _tensors(inputs, shape, device), _tensors(stored, shape, device)
    rows = stored + 1 + 2 * (form > 0)
    table = torch.randn(shape[0], rows, inputs, dtype=torch.float64, device=device)
    tolerance = torch.rand(shape[0], 2, dtype=torch.float64, device=device) + 0.01
    norms = torch.empty(shape[0], 2, dtype=torch.float64, device=device)
    numbers = table[0].tolist()  # one set of weights for the batch, which spares eager the table
    absolute, relative = (t.float().reshape(-1, *[1] * (len(shape) - 1)) for t in tolerance.T)

    def eager():
        made = []
        for row in numbers:
            total = row[0] * xs[0]
            for w, x in zip(row[1:], xs[1:], strict=True):
                total += w * x
            made.append(total)
        delta = absolute
        if form:
            greatest = torch.maximum(made[stored + 1].abs(), made[stored + 2].abs())
            delta = torch.maximum(delta, greatest * relative)
        return (made[stored] / delta).square().flatten(1).mean(dim=1).sqrt()

    given = (xs, table, None, None, [], tolerance, form, 0, False, outs, norms, None)
    size = bytes_of(*xs, *outs)
    function = ops.combine_error_out
    return OpCall("combine_error", "combine_error.out", function, given, size, 0, eager)


def normal(shape: Sequence[int], device: torch.device) -> OpCall:
    """Returns a call of `normal.out`."""
    ids, out, other = torch.arange(shape[0], device=device), *_tensors(2, shape, device)
    size, count = bytes_of(out), out.numel()
    given = (ids, 7, 3, 1.0, out)
    eager = lambda: torch.randn(shape, out=other)  # noqa: E731
    return OpCall("normal", "normal.out", ops.normal_out, given, size, count, eager)


def brownian(shape: Sequence[int], device: torch.device) -> OpCall:
    """Returns a call of `brownian.out` for nodes of the deepest level."""
    last, out, value = _tensors(3, shape, device)
    ids = torch.arange(shape[0], device=device)
    streams = torch.stack([ids * 0 + 7, ids, ids * 0], dim=1)
    nodes = torch.tensor([[1001, 1013]], device=device).repeat(shape[0], 1)
    weights = torch.ones(shape[0], 2, dtype=torch.float64, device=device)
    given = (streams, nodes, weights, DEPTH, last, out, value)
    size = bytes_of(last, out, value)
    drawn = out.numel() * (DEPTH + 1)
    return OpCall("brownian", "brownian.out", ops.brownian_out, given, size, drawn)


def sweep(
    batch: int, elements: int, device: torch.device, window: int = WINDOW, noise: bool = False
) -> OpCall:
    """Returns a call of `sweep` in which every sample walks through a window of stages."""
    rows = window * batch
    x, output, points = _tensors(3, (rows, elements), device)
    float64 = {"dtype": torch.float64, "device": device}
    columns = 2 + noise
    weights = torch.full((window, 2, columns), 0.9 / columns, **float64)
    changes = torch.full((window, 2), 0.1, **float64)
    tails = torch.zeros(window, 1, 2 + noise, **float64)
    line = torch.ones(window, 4, **float64)
    slopes = torch.rand(rows, **float64)
    jobs = [[b, b, -1, b, 0, window, 0, 1] for b in range(batch)]
    jobs = torch.tensor(jobs, dtype=torch.int32, device=device)
    # Rows are [stage, sample], as a batched network call wants a part of the window.
    walk = torch.arange(rows, dtype=torch.int32, device=device)
    walk = walk.reshape(window, batch).T.contiguous()
    ids = torch.arange(batch, device=device)
    states = torch.randn(batch, 4, elements, device=device)
    norms = torch.empty(batch, window + 1, **float64)
    tables = (slopes, weights, changes, tails, line, jobs, walk, ids)
    given = (x, [output], *tables, 0, int(noise), False, [], points, states, norms)
    size = bytes_of(x, output, points)
    return OpCall("sweep", "sweep", ops.sweep, given, size, x.numel() * noise)


def gram(batch: int, elements: int, device: torch.device, inputs: int = 4) -> OpCall:
    """Returns a call of `gram` for the products of two rows."""
    xs = _tensors(inputs, (batch, elements), device)
    weights = torch.randn(batch, 2, inputs, dtype=torch.float64, device=device)
    sums = torch.empty(batch, 3, dtype=torch.float64, device=device)
    numbers = weights.float()

    def row(r: int) -> torch.Tensor:
        total = numbers[:, r, :1] * xs[0]
        for k, x in enumerate(xs[1:], 1):
            total += numbers[:, r, k : k + 1] * x
        return total

    def eager():
        first, second = row(0), row(1)
        for y, z in ((first, first), (first, second), (second, second)):
            (y * z).sum(dim=1)

    return OpCall("gram", "gram", ops.gram, (xs, weights, sums), bytes_of(*xs), 0, eager)


def quantile(batch: int, elements: int, device: torch.device, p: float = 0.995) -> OpCall:
    """Returns a call of `quantile` for the magnitudes of one tensor."""
    (x,) = _tensors(1, (batch, elements), device)
    weights = torch.ones(batch, 1, 1, dtype=torch.float64, device=device)
    out = torch.empty(batch, dtype=torch.float64, device=device)

    def eager():
        torch.quantile(x.abs(), p, dim=1)

    return OpCall(
        "quantile", "quantile", ops.quantile, ([x], weights, p, out), bytes_of(x), 0, eager
    )


def accept(samples: int, elements: int, device: torch.device, planes: int = 2) -> OpCall:
    """Returns a call of `accept` that accepts every sample's step and copies its planes."""
    sources = _tensors(planes, (samples, elements), device)
    targets = _tensors(planes, (samples, elements), device)
    row = [0.0, 1e-3, 1e300, math.nan, math.nan, math.nan]
    counts = torch.zeros(samples, 7, dtype=torch.int64, device=device)
    counts[:, 1] = 1
    moves = [number for k in range(planes) for number in (1, k, k)]
    norms = torch.full((samples, 2), 0.7, dtype=torch.float64, device=device)
    control = torch.tensor([row] * samples, dtype=torch.float64, device=device)
    streams = torch.zeros(samples, 3, dtype=torch.int64, device=device)
    status = torch.full((samples,), -1, device=device)
    given = (norms, status, list(RULE), list(FLAGS), moves, [], sources, control, counts, streams)
    mask = torch.ones(samples, 1, dtype=torch.bool, device=device)

    def eager():
        for source, target in zip(sources, targets, strict=True):
            torch.where(mask, source, target, out=target)

    size = bytes_of(*sources, *targets)
    return OpCall("accept", "accept", ops.accept, (*given, targets), size, 0, eager)


def evaluate(
    samples: int,
    device: torch.device,
    length: int = LENGTH,
    lookups: bool = False,
    counted: bool = False,
) -> OpCall:
    """Returns a call of `evaluate` that stores 24 float64 numbers and one whole number a sample.

    Args:
        samples: how many.
        device: where they are.
        length: instructions of a program.
        lookups: whether the program looks numbers up in a table of cubics.
        counted: whether every sample has its own one of two programs.
    """
    programs = [_program(length, lookups), _program(length // 2, lookups)][: 1 + counted]
    code, constants, starts, registers = encode(programs).to(device)
    float64 = {"dtype": torch.float64, "device": device}
    inputs = torch.rand(samples, 3, **float64) + 0.5
    edges = torch.linspace(0.0, 2.0, 65, **float64)
    pieces = torch.rand(2, 64, 4, **float64) + 0.5
    outs = [torch.empty(samples, 24, **float64), torch.empty_like(inputs[:, :1], dtype=torch.int64)]
    counts = torch.arange(2 * samples, device=device).reshape(samples, 2) // 2 % 2
    given = (code, constants, starts, 0, inputs, counts if counted else None, 1)
    given = (*given, edges, pieces, registers, outs)
    instructions, stores = programs[0]
    columns = list(inputs.T)
    stored = torch.empty(24, samples, **float64)

    def eager():
        numbers: list[torch.Tensor] = []
        for name, *places in instructions:
            if name == "input":
                numbers.append(columns[places[0]])
            elif name == "where":
                a, b, c = (numbers[place] for place in places)
                numbers.append(torch.where(a != 0, b, c))
            else:
                numbers.append(getattr(torch, name)(*(numbers[place] for place in places)))
        torch.stack([numbers[place] for *_, place in stores[:-1]], out=stored)
        numbers[stores[-1][-1]].round().long()

    size = bytes_of(code, constants, inputs, *outs)
    plain = None if lookups or counted else eager
    return OpCall("evaluate", "evaluate", ops.evaluate, given, size, 0, plain)


def _program(length: int, lookups: bool) -> Program:
    """Returns a program whose numbers stay moderate: one operand is near 1, one was just made."""
    made: list[Instruction] = [("input", k) for k in range(3)]
    if lookups:
        made += [("piece", 2), ("lookup", 0, 3, 2), ("lookup", 1, 3, 2)]
    near_one = [place for place, (name, *_) in enumerate(made) if name != "piece"]
    while len(made) < length:
        name, last = ARITHMETIC[len(made) % len(ARITHMETIC)], len(made) - 1
        other = near_one[len(made) % len(near_one)]
        made.append((name, last, other, last - 1) if name == "where" else (name, last, other))
    stores = [(0, element, length - 24 + element) for element in range(24)]
    return made, [*stores, (1, 0, length - 1)]


def _tensors(count: int, shape: Sequence[int], device: torch.device) -> list[torch.Tensor]:
    return [torch.randn(*shape, device=device) for _ in range(count)]
