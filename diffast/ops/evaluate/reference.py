"""The specification of `evaluate`: a program of float64 instructions for every sample.

A program is a straight line of instructions (opcode, target, a, b, c): the opcodes are places in
`schema.INSTRUCTIONS`, and `schema.OPERANDS` says what a, b and c are. A sample has registers
r[0], r[1], ... of its own. All instructions but `store` write r[target]:

    constant             constants[a]
    input                inputs[sample, a]
    add sub mul div      r[a] + r[b], r[a] - r[b], r[a] * r[b], r[a] / r[b]
    neg abs sqrt floor   of r[a]
    round                r[a] to the nearest whole number, halves to the even one
    exp expm1 log log1p sin cos tan atan sinh asinh    of r[a]
    atan2                the angle of the point (x, y) = (r[b], r[a])
    minimum maximum      of r[a] and r[b]; NaN if one is NaN; r[b] if they are equal
    lt le gt ge eq       1 if r[a] < r[b] (<=, >, >=, ==), else 0
    and or not           1 or 0; a number is true unless it is 0, so NaN is true
    where                r[b] if r[a] is true, else r[c]
    piece                the piece of `edges` that holds r[a]: the number of edges below r[a] less
                         one, but 0 at least and the last piece at most (also for NaN)
    lookup               the cubic of row a in piece r[b] at position r[c]

`store` writes r[c] to element b of the sample's part of outs[a]. An int64 out gets the nearest
whole number, halves to the even one; beyond int64's range its nearest number, and its lowest one
for NaN.

The cubic of a piece with edges low and high goes through pieces[a, piece, i] at knot i of
`schema.KNOTS`. With part = (r[c] - low) / (high - low) and gap_i = part - knot_i it is

    sum_i pieces[a, piece, i] * (scale_i * gap_j * gap_k * gap_l),    j < k < l the other knots

summed in the order of i, with the products in the order they are written in.

+ - * / sqrt are rounded one by one, so these have the same bits on every backend. exp, expm1, log,
log1p, sin, cos, tan, atan, atan2, sinh and asinh are the platform's own: there backends, numpy
included, differ by a few ulp.
"""

import math

import torch

from diffast.ops.evaluate.checks import check_evaluate, check_programs
from diffast.ops.schema import INSTRUCTIONS, KNOT_SCALES, KNOTS, OPERANDS

_INT64 = torch.iinfo(torch.int64)


def _numbers(truth: torch.Tensor) -> torch.Tensor:
    return truth.to(torch.float64)


def _root(numbers: torch.Tensor) -> torch.Tensor:
    """Returns the roots, rounded correctly; torch.sqrt on a CPU may be an ulp beside them."""
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in numbers.tolist()]
    return numbers.new_tensor(roots)


_ARITHMETIC = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "sqrt": _root,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "atan": torch.atan,
    "atan2": torch.atan2,
    "sinh": torch.sinh,
    "asinh": torch.asinh,
    "floor": torch.floor,
    "round": torch.round,
    # A comparison with NaN is false: a NaN on the right is taken, one on the left asked for.
    "minimum": lambda a, b: torch.where((a < b) | (a != a), a, b),
    "maximum": lambda a, b: torch.where((a > b) | (a != a), a, b),
    "lt": lambda a, b: _numbers(a < b),
    "le": lambda a, b: _numbers(a <= b),
    "gt": lambda a, b: _numbers(a > b),
    "ge": lambda a, b: _numbers(a >= b),
    "eq": lambda a, b: _numbers(a == b),
    "and": lambda a, b: _numbers((a != 0) & (b != 0)),
    "or": lambda a, b: _numbers((a != 0) | (b != 0)),
    "not": lambda a: _numbers(a == 0),
    "where": lambda a, b, c: torch.where(a != 0, b, c),
}


def evaluate(
    code, constants, starts, program, inputs, counts, column, edges, pieces, registers, outs
):
    """Runs each sample's program, which writes elements of `outs`.

    The other elements of `outs` stay as they are. On the CPU a number of a program that there is
    not is refused; a kernel on another device runs nothing for that sample.

    Args:
        code: int32 [N, 5], the instructions of all programs.
        constants: float64 [K].
        starts: int32 [P + 1]: program p is the instructions starts[p] to starts[p + 1] - 1.
        program: the number of the program of all samples; not read if there are `counts`.
        inputs: float64 [B, C].
        counts: int64 [B, M] or None: the program of sample b is counts[b, column].
        column: see `counts`.
        edges: float64 [E + 1], ascending, or empty.
        pieces: float64 [F, E, 4], a table of piecewise cubics.
        registers: how many numbers a program holds at a time, 1 to 256.
        outs: written; float64 or int64 [B, ...].
    """
    check_evaluate(
        code, constants, starts, program, inputs, counts, column, edges, pieces, registers, outs
    )
    if inputs.device.type != "cpu":
        check_programs(
            code, constants, starts, program, inputs, counts, column, pieces, registers, outs
        )
    bounds = starts.tolist()
    if counts is None:
        groups = {program: torch.arange(inputs.shape[0], device=inputs.device)}
    else:
        numbers = counts[:, column]
        groups = {p: (numbers == p).nonzero()[:, 0] for p in set(numbers.tolist())}
    for number, samples in groups.items():
        instructions = code[bounds[number] : bounds[number + 1]].tolist()
        _run(instructions, constants, inputs[samples], samples, edges, pieces, registers, outs)


def _run(instructions, constants, inputs, samples, edges, pieces, registers, outs):
    r: list = [None] * registers
    for opcode, target, a, b, c in instructions:
        name = INSTRUCTIONS[opcode]
        if name == "constant":
            r[target] = constants[a].expand(len(samples))
        elif name == "input":
            r[target] = inputs[:, a]
        elif name == "piece":
            found = torch.searchsorted(edges, r[a].contiguous()) - 1
            r[target] = _numbers(found.clamp(0, pieces.shape[1] - 1))
        elif name == "lookup":
            r[target] = _lookup(edges, pieces[a], r[b], r[c])
        elif name == "store":
            if len(samples):
                flat = outs[a].view(outs[a].shape[0], -1)
                flat[samples, b] = r[c] if flat.is_floating_point() else _whole(r[c])
        else:
            operands = (a, b, c)[: len(OPERANDS[name])]
            r[target] = _ARITHMETIC[name](*(r[i] for i in operands))


def _lookup(edges, row, piece, position):
    """Returns the cubics of the samples' pieces [B] at their positions [B]."""
    last = row.shape[0] - 1
    # A piece is a number that a program made: NaN is piece 0.
    piece = torch.where(piece == piece, piece, 0.0).clamp(0, last).to(torch.int64)
    low, high = edges[piece], edges[piece + 1]
    part = (position - low) / (high - low)
    gaps = [part - knot for knot in KNOTS]
    value = None
    for i, scale in enumerate(KNOT_SCALES):
        j, k, m = (gap for other, gap in enumerate(gaps) if other != i)
        term = row[piece, i] * (scale * j * k * m)
        value = term if value is None else value + term
    return value


def _whole(numbers):
    """Returns the nearest int64 numbers; the lowest one for NaN."""
    rounded = torch.where(numbers == numbers, numbers, -torch.inf).round()
    high, low = rounded >= 2.0**63, rounded < -(2.0**63)
    whole = rounded.masked_fill(high | low, 0.0).to(torch.int64)
    return whole.masked_fill(high, _INT64.max).masked_fill(low, _INT64.min)


IMPLEMENTATIONS = {"evaluate": evaluate}
