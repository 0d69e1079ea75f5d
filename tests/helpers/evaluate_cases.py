"""Cases of `evaluate`: random programs, and what numpy makes of them as they were recorded."""

import ctypes
import ctypes.util

import numpy as np
import torch
from op_cases import assert_guards, assert_same_bits, guarded

from diffast.ops.evaluate.encode import encode
from diffast.ops.schema import KNOT_SCALES, KNOTS, OPERANDS

# The functions of the platform's library: the bits of the compiled kernels, where numpy's own
# versions differ by an ulp.
LIBRARY = ("exp", "expm1", "log", "log1p", "sin", "cos", "tan", "atan", "atan2", "sinh", "asinh")
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -3.5, np.inf, -np.inf, np.nan, 1e300, -1e-300, 5e-324)
SPECIAL += (2.0**53, -(2.0**63), 2.0**63, 700.0, -700.0, 1e-9)
_MATH = ctypes.CDLL(ctypes.util.find_library("m"))


def _library(name):
    function = getattr(_MATH, name)
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_double] * len(OPERANDS[name])
    return np.vectorize(function, otypes=[np.float64])


def _number(truth):
    return truth.astype(np.float64)


NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "round": np.rint,
    "minimum": lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(a < b, a, b)),
    "maximum": lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, np.where(a > b, a, b)),
    "lt": lambda a, b: _number(a < b),
    "le": lambda a, b: _number(a <= b),
    "gt": lambda a, b: _number(a > b),
    "ge": lambda a, b: _number(a >= b),
    "eq": lambda a, b: _number(a == b),
    "and": lambda a, b: _number(np.logical_and(a, b)),
    "or": lambda a, b: _number(np.logical_or(a, b)),
    "not": lambda a: _number(np.logical_not(a)),
    "where": lambda a, b, c: np.where(a != 0, b, c),
}
EXACT = (*NUMPY, "constant", "input", "piece", "lookup")
NUMPY |= {name: _library(name) for name in LIBRARY}
OWN = {
    name: getattr(np, {"atan": "arctan", "atan2": "arctan2", "asinh": "arcsinh"}.get(name, name))
    for name in LIBRARY
}


def _piece(edges, x):
    found = np.searchsorted(edges, np.where(np.isnan(x), np.inf, x)) - 1
    return np.clip(found, 0, len(edges) - 2).astype(np.float64)


def _lookup(edges, row, piece, x):
    piece = np.clip(np.where(np.isnan(piece), 0.0, piece), 0, len(row) - 1).astype(int)
    part = (x - edges[piece]) / (edges[piece + 1] - edges[piece])
    g = [part - knot for knot in KNOTS]
    s = KNOT_SCALES
    weights = (s[0] * g[1] * g[2] * g[3], s[1] * g[0] * g[2] * g[3])
    weights += (s[2] * g[0] * g[1] * g[3], s[3] * g[0] * g[1] * g[2])
    value = row[piece, 0] * weights[0]
    for i in range(1, 4):
        value = value + row[piece, i] * weights[i]
    return value


def in_numpy(instructions, inputs, edges, pieces, functions=None):
    """Returns the number of every instruction, arrays [B]."""
    numbers = []
    for name, *operands in instructions:
        if name == "constant":
            numbers.append(np.full(len(inputs), operands[0]))
        elif name == "input":
            numbers.append(inputs[:, operands[0]])
        elif name == "piece":
            numbers.append(_piece(edges, numbers[operands[0]]))
        elif name == "lookup":
            row, piece, position = operands
            numbers.append(_lookup(edges, pieces[row], numbers[piece], numbers[position]))
        else:
            function = (functions or NUMPY)[name]
            numbers.append(np.asarray(function(*(numbers[place] for place in operands))))
    return numbers


def whole(numbers):
    """Returns what an int64 out gets."""
    rounded = [np.rint(v) if np.isfinite(v) else v for v in numbers]
    return [
        -(2**63) if np.isnan(v) or v < -(2.0**63) else 2**63 - 1 if v >= 2.0**63 else int(v)
        for v in rounded
    ]


def random_program(rng, length, columns, rows, sizes, names):
    """Returns a program of about so many instructions, and stores in some elements of outs."""
    program = [("input", column) for column in range(columns)] or [("constant", 1.5)]
    names = [n for n in names if rows or n not in ("piece", "lookup")]
    while len(program) < length:
        name = names[rng.integers(len(names))]
        if name == "constant":
            operands = [float(rng.choice([*SPECIAL, *rng.standard_normal(8)]))]
        elif name == "input":
            operands = [int(rng.integers(columns))] if columns else None
        else:
            back = rng.geometric(0.1, size=3)  # mostly what was made just before
            places = [int(max(0, len(program) - b)) for b in back]
            operands = places[: len(OPERANDS[name])]
            if name == "lookup":
                operands[0] = int(rng.integers(rows))
        if operands is not None:
            program.append((name, *operands))
    stores = [
        (out, element, int(rng.integers(len(program))))
        for out, size in enumerate(sizes)
        for element in range(size)
        if rng.random() < 0.8
    ]
    return program, stores


class Problem:
    """A random call of `evaluate`, and what its outs have to hold.

    Args:
        rng: numpy generator.
        samples: B.
        length: instructions of a program.
        programs: how many there are.
        by_counts: whether every sample has a program of its own.
        names: the instructions that programs are made of.
        table: whether there is a table of cubics.
        columns: inputs of a sample.
    """

    shapes = ((3, 2), (4,), ())
    dtypes = (torch.float64, torch.int64, torch.float64)

    def __init__(
        self,
        rng,
        samples,
        length=60,
        programs=3,
        by_counts=True,
        names=EXACT,
        table=True,
        columns=5,
    ):
        pieces, rows = (int(rng.integers(1, 20)), 3) if table else (0, 0)
        self.edges = np.sort(rng.standard_normal(pieces + 1)) if table else np.zeros(0)
        self.pieces = rng.standard_normal((rows, pieces, 4))
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.programs = [
            random_program(rng, length, columns, rows, sizes, names) for _ in range(programs)
        ]
        inputs = rng.standard_normal((samples, columns)) * 10.0 ** rng.integers(-3, 4)
        special = rng.random(inputs.shape) < 0.1
        self.inputs = np.where(special, rng.choice(SPECIAL, size=inputs.shape), inputs)
        if table and samples:
            self.inputs[:, 0] = rng.choice([*self.edges, *rng.standard_normal(5)], size=samples)
        self.counts, self.column, self.program = None, 0, int(rng.integers(programs))
        if by_counts:
            self.column = 1
            self.counts = rng.integers(-5, 99, size=(samples, 3))
            self.counts[:, 1] = rng.integers(programs, size=samples)

    def wanted(self, outs):
        """Writes what numpy makes of the recorded programs into outs."""
        numbers = np.full(len(self.inputs), self.program)
        numbers = numbers if self.counts is None else self.counts[:, self.column]
        for number, (instructions, stores) in enumerate(self.programs):
            samples = np.flatnonzero(numbers == number)
            with np.errstate(all="ignore"):
                made = in_numpy(instructions, self.inputs[samples], self.edges, self.pieces)
            for out, element, place in stores:
                if len(samples):
                    values = made[place]
                    values = whole(values) if self.dtypes[out] == torch.int64 else values
                    flat = outs[out].view(len(self.inputs), -1)
                    flat[samples, element] = torch.as_tensor(np.array(values))

    def call(self, outs):
        """Returns the arguments of the op."""
        code = encode(self.programs)
        counts = None if self.counts is None else torch.from_numpy(self.counts)
        return (
            *code[:3],
            self.program,
            torch.from_numpy(self.inputs),
            counts,
            self.column,
            torch.from_numpy(self.edges),
            torch.from_numpy(self.pieces),
            code.registers,
            outs,
        )

    def outs(self, offset=0):
        """Returns outs full of bytes 0xff, and their buffers."""
        pairs = [
            guarded((len(self.inputs), *shape), dtype, offset)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        return [out for out, _ in pairs], [buffer for _, buffer in pairs]

    def check(self, function, label="", offset=0):
        """Compares the outs of a call with numpy's, bit for bit; nothing else is written."""
        outs, buffers = self.outs(offset)
        call = self.call(outs)
        before = [t.clone() for t in call if isinstance(t, torch.Tensor)]
        function(*call)
        wanted, _ = self.outs()
        self.wanted(wanted)
        for out, buffer, want in zip(outs, buffers, wanted, strict=True):
            if out.dtype == torch.int64:
                assert torch.equal(out, want), (label, out, want)
            else:
                assert_same_bits(out, want, label)
            assert_guards(out, buffer)
        after = [t for t in call if isinstance(t, torch.Tensor)]
        for t, copy in zip(after, before, strict=True):
            assert t.equal(copy) or t.is_floating_point(), (label, "an input was written")
            if t.is_floating_point():
                assert_same_bits(t, copy, (label, "an input was written"))
