"""Arrays that record float64 operations, so that numpy code becomes a straight-line program.

A `Recorded` value takes part in numpy's protocols: `np.exp(value)`, `value * 2.0` and
`np.where(value > 0.0, value, 1.0)` append instructions to the `Recording` that the value belongs
to. Code that is written for numpy arrays (rows of embedded solvers, schedules) is therefore
recorded as it stands, by calling it once with recorded values.

An instruction is a tuple (name, operands ...). Operands are numbers of earlier instructions, but
for these:

    ("constant", number)
    ("input", column)                   a number of the sample, known when the program runs
    ("lookup", row, piece, position)    the table row, a whole number, comes first

`diffast/ops/evaluate` runs such programs. `replay` runs them in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

Instruction = tuple[Any, ...]

# The function of each instruction that has only recorded operands.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.absolute,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "asinh": np.arcsinh,
    "floor": np.floor,
    "round": np.rint,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": np.where,
}
_NAMES: dict[Any, str] = {function: name for name, function in FUNCTIONS.items()}
_NAMES |= {np.bitwise_and: "and", np.bitwise_or: "or", np.invert: "not"}

# What changes nothing: x + 0, x - 0, 1 x, x / 1. The sign of a zero may change.
_NEUTRAL_RIGHT = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}
_NEUTRAL_LEFT = {"add": 0.0, "mul": 1.0}


class NotRecordedError(TypeError):
    """What was asked of a recorded value depends on its number, or has no instruction."""


class Recording:
    """Instructions in the order of their values; equal instructions are recorded once.

    Attributes:
        passes: whether a condition on all samples counts as true, see `Recorded.all`.
    """

    def __init__(self):
        """Begins with no instruction."""
        self.passes = False
        self.instructions: list[Instruction] = []
        self._known: dict[Instruction, int] = {}

    def constant(self, number: Any) -> Recorded:
        """Returns a number as a recorded value."""
        number = float(number)
        # The bits make the key: 0.0 == -0.0, and no NaN equals itself.
        return self._append(("constant", number), ("constant", np.float64(number).tobytes()))

    def input(self, column: int) -> Recorded:
        """Returns a number that is known when the program runs."""
        return self._append(("input", column))

    def piece(self, position: Recorded) -> Recorded:
        """Returns the number of the table's piece that holds a position."""
        return self._append(("piece", position.number))

    def lookup(self, row: int, piece: Recorded, position: Recorded) -> Recorded:
        """Returns the value of a table's row at a position in a piece."""
        return self._append(("lookup", row, piece.number, position.number))

    def apply(self, name: str, *operands: Any) -> Recorded:
        """Returns the value of an instruction of FUNCTIONS, over recorded values and numbers."""
        values = [x if isinstance(x, Recorded) else self.constant(x) for x in operands]
        constants = [value.constant for value in values]
        if None not in constants:
            with np.errstate(all="ignore"):
                return self.constant(FUNCTIONS[name](*constants))
        if constants[-1] is not None and constants[-1] == _NEUTRAL_RIGHT.get(name):
            return values[0]
        if constants[0] is not None and constants[0] == _NEUTRAL_LEFT.get(name):
            return values[1]
        if name == "where" and constants[0] is not None:
            return values[1 if constants[0] else 2]
        if name == "where" and values[1].number == values[2].number:
            return values[1]
        return self._append((name, *(value.number for value in values)))

    def _append(self, instruction: Instruction, key: Instruction | None = None) -> Recorded:
        key = instruction if key is None else key
        number = self._known.get(key)
        if number is None:
            number = self._known[key] = len(self.instructions)
            self.instructions.append(instruction)
        return Recorded(self, number)


class Recorded(NDArrayOperatorsMixin):
    """A float64 number of each sample that is known only when the program runs.

    Conditions are numbers, too: 1 and 0. The number itself cannot be asked for: a branch on it, an
    index made of it or a function without an instruction raises NotRecordedError.
    """

    __slots__ = ("number", "recording")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, recording: Recording, number: int):
        """Keeps the number of the instruction that makes the value."""
        self.recording, self.number = recording, number

    @property
    def constant(self) -> float | None:
        """Returns the value where it is the same whatever the inputs are, else None."""
        name, *operands = self.recording.instructions[self.number]
        return operands[0] if name == "constant" else None

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        """Records an element-wise function of numpy."""
        if method != "__call__" or options:
            raise NotRecordedError(f"{ufunc.__name__} with {method} or options is not recorded")
        if ufunc in _NAMES:
            return self.recording.apply(_NAMES[ufunc], *inputs)
        if ufunc in _COMPOSED:
            return _COMPOSED[ufunc](*inputs)
        raise NotRecordedError(f"np.{ufunc.__name__} has no instruction")

    def __array_function__(self, function, types, args, options):
        """Records another function of numpy."""
        if function is np.where and len(args) == 3 and not options:
            return self.recording.apply("where", *args)
        if function in _COMPOSED:
            return _COMPOSED[function](*args, **options)
        raise NotRecordedError(f"np.{function.__name__} has no instruction")

    def __array__(self, *args, **options):
        """Raises: the numbers are not known."""
        raise NotRecordedError("a recorded value is no numpy array")

    def __getitem__(self, key):
        """Returns the value itself for the key (), which turns an array [] into a scalar."""
        if key != ():
            raise NotRecordedError(f"element {key} of a recorded value")
        return self

    def __bool__(self):
        """Returns a constant's truth."""
        if self.constant is None:
            raise NotRecordedError("a branch on a recorded value")
        return bool(self.constant)

    def __float__(self):
        """Returns a constant's number."""
        if self.constant is None:
            raise NotRecordedError("the number of a recorded value")
        return self.constant

    def all(self) -> bool:
        """Returns True where `passes` says so: a recording holds for inputs that pass all checks.

        Schedules ask this to refuse times outside their domain. A run's positions lie in it, and
        what is recorded of a schedule is compared with the schedule itself. Rows of solvers are
        not, so there it is a branch like any other.
        """
        return self.recording.passes or bool(self)


def _logaddexp(a: Any, b: Any) -> Any:
    return np.maximum(a, b) + np.log1p(np.exp(-np.abs(a - b)))


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Recorded) or exponent not in (2, 0.5):
        raise NotRecordedError(f"a power of {exponent}: only 2 and 0.5 are recorded")
    return base * base if exponent == 2 else np.sqrt(base)


def _round(x: Any, decimals: int = 0) -> Any:
    if decimals:
        raise NotRecordedError("a number rounded to decimals")
    return np.rint(x)


_COMPOSED: dict[Any, Callable[..., Any]] = {
    np.logaddexp: _logaddexp,
    np.power: _power,
    np.square: lambda x: x * x,
    np.positive: lambda x: x,
    np.not_equal: lambda a, b: np.logical_not(np.equal(a, b)),
    np.clip: lambda x, low, high: np.minimum(np.maximum(x, low), high),
    np.ones_like: lambda x: x.recording.constant(1.0),
    np.zeros_like: lambda x: x.recording.constant(0.0),
    np.full_like: lambda x, number: x.recording.constant(number),
    np.round: _round,
}


def replay(
    instructions: Sequence[Instruction], wanted: Sequence[int], inputs: np.ndarray
) -> list[np.ndarray]:
    """Returns the values [B] of the instructions with these numbers, in numpy.

    Args:
        instructions: without table look-ups.
        wanted: numbers of instructions.
        inputs: [B, C] float64.
    """
    values: list[Any] = []
    with np.errstate(all="ignore"):
        for name, *operands in instructions:
            if name == "constant":
                values.append(np.full(len(inputs), operands[0]))
            elif name == "input":
                values.append(inputs[:, operands[0]])
            else:
                found = FUNCTIONS[name](*(values[k] for k in operands))
                values.append(np.asarray(found, dtype=np.float64))
    return [values[number] for number in wanted]
