"""A lowered plan's stages by register number, one by one and as one table on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from diffast.lowering.estimate import EXTRA
from diffast.lowering.program import COND, NOISE, UNCOND, X0, Program, Stage, call_of
from diffast.lowering.slots import slot_name
from diffast.plans.registers import H, V, X, Y

# Registers by number; the slots come after them.
TERMS = tuple(f"g{k}" for k in range(1, 10))
FIXED = (Y, V, X, COND, UNCOND, EXTRA, X0, NOISE, *TERMS)
AT_Y, AT_V, AT_X, AT_COND, AT_UNCOND, AT_EXTRA, AT_X0, AT_NOISE, AT_TERM, *_ = range(len(FIXED))

# The order of the sums: slots stand before a given x0 estimate and a given noise.
_LATE = (AT_X0, AT_NOISE)


@dataclass(frozen=True)
class StepCall:
    """One stage as a `combine` call over numbered registers.

    Args:
        columns: register numbers.
        weights, noise: as of a lowered `Call`; with a clamp the x0 estimate's row is first, then
            come those of `writes`.
        writes: the registers that get a row: h (the entry), y, v, x, in this order where present.
        keeps, slot, held: as of a lowered `Stage`.
        x0_columns, x0_weights: register numbers and weights of the x0 estimate alone.
        rows: how many rows the call makes.
        clamped: whether row 0 is the x0 estimate, which is clamped.
        alone: whether a call of its own makes the x0 estimate, for a hook or a guidance term.
        gradients: numbers, from 1, of the guidance terms whose gradients the call weighs.
        time: model time of the network call, or of the gradients where there is none.
        calls_network: whether the stage calls the network.
    """

    columns: tuple[int, ...]
    weights: list[float]
    noise: list[float]
    writes: tuple[str, ...]
    keeps: frozenset[str]
    slot: int
    held: tuple[int, ...]
    x0_columns: tuple[int, ...]
    x0_weights: list[float]
    rows: int
    clamped: bool
    alone: bool
    gradients: tuple[int, ...]
    time: float
    calls_network: bool

    @property
    def parts(self) -> bool:
        """Returns whether a register beside x is held after the stage."""
        return bool(self.keeps) or any(name in (Y, V) for name in self.writes)


def _numbered(stage: Stage) -> StepCall:
    numbers = {name: k for k, name in enumerate(FIXED)}
    numbers |= {slot_name(slot): len(FIXED) + slot for slot in stage.held}
    main = stage.calls[-1]
    estimate = call_of([(X0, stage.x0)], FIXED)
    return StepCall(
        tuple(numbers[name] for name in main.columns),
        main.weights,
        main.noise,
        tuple(stage.rows),
        stage.keeps,
        stage.slot,
        stage.held,
        tuple(numbers[name] for name in estimate.columns),
        estimate.weights,
        len(main.targets),
        main.clamped,
        len(stage.calls) > 1,
        stage.gradients,
        stage.time,
        bool(stage.times),
    )


def numbered(program: Program) -> tuple[StepCall, ...]:
    """Returns the program's stages over register numbers."""
    return tuple(map(_numbered, program.stages))


class Table(NamedTuple):
    """Every stage of every plan, then its end, as one table on the device; R rows in all.

    Attributes:
        columns: numbers of the registers that any stage weighs.
        weights: [R, rows, columns] float64: the clamped estimate if any, slots, the carried
            registers, x; with a clamp one more column.
        noise: [R, rows, M] float64, the most that any stage draws; or None.
        x0_columns, x0: the same for the x0 estimate alone, [R, 1, columns].
        words: [R] int64, the stage in its plan: the noise's counter word.
        calls: [R, 2] int64, network calls of the plan before the row, and rows of their batches.
        following: [R] int64, the next row; an end follows itself.
        times: [R] float64.
        ended: [R] bool.
    """

    columns: tuple[int, ...]
    weights: torch.Tensor
    noise: torch.Tensor | None
    x0_columns: tuple[int, ...]
    x0: torch.Tensor
    words: torch.Tensor
    calls: torch.Tensor
    following: torch.Tensor
    times: torch.Tensor
    ended: torch.Tensor


def make_table(
    calls: list[StepCall | None],
    first: list[int],
    times: list[float],
    before: list[tuple[int, int]],
    slots: int,
    carried: tuple[str, ...],
    clamp: bool,
    put: Callable[[torch.Tensor], torch.Tensor],
) -> Table:
    """Returns the table of all calls; None among them is a plan's end.

    The slots hold the oldest entry first at every stage. The sums of samples at different stages
    then have the order, and so the bits, of a call for one stage.

    `first` are the plans' first rows, `times` the model times of all rows, [R], `before` the
    network calls before each, and rows of their batches. With a clamp the x0 estimate's row comes
    first.
    """
    real = [call for call in calls if call is not None]
    used = {AT_X, *map(FIXED.index, carried), *(k for call in real for k in call.columns)}
    used |= {len(FIXED) + slot for slot in range(slots)}
    columns = (*sorted(used - {*_LATE}), *(k for k in _LATE if k in used))
    x0_columns = tuple(sorted({k for call in real for k in call.x0_columns}))
    normals = max((len(call.noise) // call.rows for call in real), default=1) or 1
    table = _Rows(columns, slots, carried, int(clamp), len(calls), normals)
    x0 = np.zeros((len(calls), 1, len(x0_columns)))
    words, following = np.zeros(len(calls), dtype=np.int64), np.arange(len(calls))
    for row, call in enumerate(calls):
        words[row] = row - max(begin for begin in first if begin <= row)
        if call is None:
            table.keep_all(row)
            continue
        following[row] += 1
        after = calls[row + 1]
        table.add(row, call, after.held if after is not None else ())
        for k, weight in zip(call.x0_columns, call.x0_weights, strict=True):
            x0[row, 0, x0_columns.index(k)] = weight

    def there(array: np.ndarray) -> torch.Tensor:
        return put(torch.from_numpy(array))

    return Table(
        columns,
        there(table.weights),
        there(table.noise) if table.noise.any() else None,
        x0_columns,
        there(x0),
        there(words),
        there(np.array(before, dtype=np.int64)),
        there(following),
        there(np.array(times, dtype=np.float64)),
        there(np.array([call is None for call in calls])),
    )


class _Rows:
    """The weights of a table while it is filled.

    A table row has the hidden estimate (with a clamp), the slots, the carried registers, then x.
    """

    def __init__(self, columns, slots, carried, hidden, count, normals):
        self.slots, self.carried, self.hidden = slots, carried, hidden
        self.at = {k: n for n, k in enumerate(columns)}
        self.width = len(columns)
        self.first = hidden + slots  # row of the first carried register
        rows = self.first + len(carried) + 1
        self.weights = np.zeros((count, rows, self.width + hidden))
        self.noise = np.zeros((count, rows, normals))

    def _keep(self, row: int, target: int, register: int) -> None:
        self.weights[row, target, self.at[register]] = 1.0

    def keep_all(self, row: int) -> None:
        """Fills the row of a plan's end: every register stays."""
        for age in range(self.slots):
            self._keep(row, self.hidden + age, len(FIXED) + age)
        for n, name in enumerate(self.carried):
            self._keep(row, self.first + n, FIXED.index(name))
        self._keep(row, -1, AT_X)

    def add(self, row: int, call: StepCall, after: tuple[int, ...]) -> None:
        """Fills the row of a stage, after which the slots `after` hold entries."""
        ages = {len(FIXED) + slot: len(FIXED) + age for age, slot in enumerate(call.held)}
        for age, slot in enumerate(after):
            if slot != call.slot:
                self._keep(row, self.hidden + age, ages[len(FIXED) + slot])
        targets = {name: self.first + n for n, name in enumerate(self.carried)}
        targets |= {H: self.hidden + len(after) - 1, X: self.first + len(self.carried)}
        # A stage that makes no x0 estimate, such as a step along gradients alone, clamps none.
        hidden = self.hidden if call.clamped else 0
        places = [self.at[ages.get(k, k)] for k in call.columns] + [self.width] * hidden
        fresh = np.reshape(call.noise or [0.0] * call.rows, (call.rows, -1))
        written = [0] * hidden + [targets[name] for name in call.writes]
        for n, target in enumerate(written):
            self.weights[row, target] = 0.0
            self.weights[row, target, places] = call.weights[n * len(places) :][: len(places)]
            self.noise[row, target, : fresh.shape[1]] = fresh[n]
        for name in self.carried:
            if name in call.keeps:
                self._keep(row, targets[name], FIXED.index(name))
            elif name == Y and name not in call.writes:  # y is x
                self.weights[row, targets[Y]] = self.weights[row, targets[X]]
                self.noise[row, targets[Y]] = self.noise[row, targets[X]]
