"""`evaluate` on a program of 300 instructions, against numpy making the same operations.

The program is like the rows of an embedded solver: three look-ups of five numbers each in a table
of 8,192 cubics, then products, sums, quotients and a few exponentials and roots.
"""

import numpy as np
import pytest
import torch

from diffast import ops
from diffast.ops.evaluate.encode import encode
from diffast.ops.schema import KNOT_SCALES, KNOTS

PIECES, ROWS, LENGTH, STORED = 8192, 5, 300, 24
NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "exp": np.exp,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "where": lambda a, b, c: np.where(a != 0, b, c),
    "lt": lambda a, b: (a < b).astype(np.float64),
}
# Each is taken in turn: per ten instructions eight of arithmetic, and one that takes longer.
NAMES = ("mul", "add", "mul", "sub", "mul", "add", "div", "mul", "add", "exp")
NAMES += ("mul", "sub", "mul", "add", "neg", "mul", "div", "add", "lt", "where")
NAMES += ("mul", "add", "mul", "sub", "expm1", "mul", "mul", "add", "div", "mul")


def program():
    """Returns a recorded program of 300 instructions, 24 of which are stored."""
    made = [("input", 0), ("input", 1), ("input", 2)]
    for position in range(3):
        made.append(("piece", position))
        piece = len(made) - 1
        made += [("lookup", row, piece, position) for row in range(ROWS)]
    rng = np.random.default_rng(0)
    first = len(made)
    while len(made) < LENGTH:
        name = NAMES[len(made) % len(NAMES)]
        places = rng.integers(max(0, len(made) - 30), len(made), size=3).tolist()
        if name in ("exp", "expm1", "div"):  # of numbers that stay moderate
            places[:2] = rng.integers(3, first, size=2).tolist()
        count = {"neg": 1, "exp": 1, "expm1": 1, "where": 3}.get(name, 2)
        made.append((name, *places[:count]))
    stored = range(LENGTH - STORED, LENGTH)
    return made, [(0, element, place) for element, place in enumerate(stored)]


def in_numpy(made, stores, inputs, edges, table, out):
    """Makes the same operations, an array [B] at a time."""
    numbers = []
    for name, *operands in made:
        if name == "input":
            numbers.append(inputs[:, operands[0]])
        elif name == "piece":
            found = np.searchsorted(edges, numbers[operands[0]]) - 1
            numbers.append(np.clip(found, 0, PIECES - 1))
        elif name == "lookup":
            row, piece, position = operands
            piece = numbers[piece]
            low, high = edges[piece], edges[piece + 1]
            gap = (numbers[position] - low) / (high - low) - np.array(KNOTS)[:, None]
            weights = np.array(KNOT_SCALES)[:, None] * gap[[1, 0, 0, 0]]
            weights = weights * gap[[2, 2, 1, 1]] * gap[[3, 3, 3, 2]]
            numbers.append((table[row, piece] * weights.T).sum(axis=1))
        else:
            numbers.append(NUMPY[name](*(numbers[place] for place in operands)))
    for _, element, place in stores:
        out[:, element] = numbers[place]


@pytest.mark.parametrize("samples", (1, 64, 512))
def test_evaluate(benchmark, measure, report, threads, samples):
    """Target: a tenth of numpy's time for one sample, at most half of it for many."""
    made, stores = program()
    code = encode([(made, stores)])
    rng = np.random.default_rng(1)
    edges = np.linspace(-3.0, 3.0, PIECES + 1)
    table = 1.0 + 0.1 * rng.standard_normal((ROWS, PIECES, 1)) * np.ones(4)
    inputs = rng.uniform(-2.9, 2.9, size=(samples, 3))
    outs = np.full((2, samples, STORED), np.nan)
    written = torch.from_numpy(outs[0])
    call = (*code[:3], 0, torch.from_numpy(inputs), None, 0, torch.from_numpy(edges))
    call = (*call, torch.from_numpy(table), code.registers, [written])
    functions = {
        "evaluate": lambda: ops.evaluate(*call),
        "numpy": lambda: in_numpy(made, stores, inputs, edges, table, outs[1]),
    }
    with torch.inference_mode(), np.errstate(all="ignore"):
        timings = measure(functions)
        benchmark.pedantic(functions["evaluate"], rounds=3, iterations=1, warmup_rounds=1)
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-9)
    seconds = timings["evaluate"].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "of numpy": seconds / timings["numpy"].median,
    }
    bound = 0.1 if samples == 1 else 0.5
    targets = [("of numpy", "<=", bound)] if threads == 1 else ()
    report(f"evaluate, 300 instructions, {samples} samples", timings, targets, **figures)
