"""Weights of the x0 estimate that depend on each sample's outputs: guidance rules that reduce.

A rule weighs the outputs by numbers of the sample (dot products and sums of its tensors). Lowering
settles which tensors these numbers are of, and records the rule's formula as a float64 program that
writes row 0 of the stage's `combine` call, the x0 estimate. All other rows weigh that estimate, as
behind a clamp, and are the plan's. An executor makes a stage in three calls:

    gram        dot products and sums of the sample's tensors     (where the rule needs any)
    quantile    of the x0 estimate                                (with dynamic thresholding)
    evaluate    the weights of row 0
    combine     all rows, one table for each sample
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffast.guidance.reducing import guided
from diffast.guidance.rule import EXTRA, LOW, MOMENTUM, Measured, RuleAt, width
from diffast.lowering.estimate import COND, UNCOND
from diffast.lowering.recorder import Instruction, Recorded, Recording

_X = "x"

Row = dict[str, Any]


class Reduction:
    """How row 0 of a stage's call follows from the sample's numbers.

    Args:
        at: the rule at the stage's network call.
        affine: (a, b) of x0 = a x + b output.
        remembers: whether an earlier stage has written the momentum.

    Attributes:
        names: of what is measured: branches, "momentum", "low". Empty: nothing is.
        columns: tensors that the measured rows weigh.
        rows: their weights, [names][columns].
        key: all that the reduction depends on; hashable.
    """

    def __init__(self, at: RuleAt, affine: tuple[float, float], remembers: bool):
        """Settles what is measured."""
        self.at, self.affine = at, affine
        self.basis = basis_of(at, affine, remembers)
        measured = at.weights is None or at.rescaled
        self.names = at.rule.measured(tuple(self.basis)) if measured else ()
        used = set().union(*(self.basis[name] for name in self.names)) if measured else set()
        order = (_X, COND, UNCOND, EXTRA, MOMENTUM, LOW)
        self.columns = tuple(name for name in order if name in used)
        self.rows = tuple(
            tuple(self.basis[name].get(column, 0.0) for column in self.columns)
            for name in self.names
        )
        self.key = (at, affine, remembers)

    @property
    def momentum(self) -> Row:
        """Returns the row of the momentum after the stage, over tensors."""
        return momentum_row(self.at, self.affine, self.key[2])

    @property
    def width(self) -> int:
        """Returns how many numbers of the sample are measured."""
        return width(len(self.names)) if self.names else 0

    def estimate_row(self) -> Row:
        """Returns the tensors that the x0 estimate weighs, with weights that say nothing."""
        used = set().union(*self.basis.values())
        row = {name: 1.0 for name in used}
        if self.affine[0] != 0.0:
            row[_X] = self.affine[0]
        return row

    def program(
        self, count: int, columns: tuple[str, ...], quantile: int = -1
    ) -> tuple[list[Instruction], list[tuple[int, int, int]]]:
        """Returns the recorded program that writes the weights of row 0 into out 0.

        Its inputs are the measured numbers.

        Args:
            count: elements of a sample.
            columns: tensors of the row, in order: element k of the out is the weight of the k-th.
            quantile: which input is the quantile of |x0|; -1: none, and nothing is divided by it.
        """
        recording = Recording()
        values = [recording.input(k) for k in range(self.width)]
        divisor: Any = 1.0
        if quantile >= 0 and self.at.threshold is not None:
            divisor = np.maximum(recording.input(quantile), 1.0)
            divisor = np.minimum(divisor, self.at.threshold.maximum)
        row = self.estimate(np, values, count)
        stores = []
        for k, name in enumerate(columns):
            weight = row.get(name, 0.0) / divisor
            made = weight if isinstance(weight, Recorded) else recording.constant(weight)
            stores.append((0, k, made.number))
        return recording.instructions, stores

    def estimate(self, xp: Any, values: Any, count: int) -> Row:
        """Returns the weights of the x0 estimate over tensors, before a threshold.

        Args:
            xp: numpy's functions, which also record.
            values: the measured numbers, see `Measured`.
            count: elements of a sample.
        """
        numbers = Measured(self.names, values, count)
        weights = guided(xp, self.at, numbers)
        a, b = self.affine
        row: Row = {}
        of_outputs = self.at.rule.space == "output"
        if of_outputs and a != 0.0 or not weights:
            row[_X] = a
        for name, weight in weights.items():
            factor = b * weight if of_outputs else weight
            for tensor, part in self.basis[name].items():
                row[tensor] = row.get(tensor, 0.0) + factor * part
        return row


def basis_of(at: RuleAt, affine: tuple[float, float], remembers: bool) -> dict[str, Row]:
    """Returns what a rule weighs, over tensors: the outputs, or in the space x0 the estimates.

    The momentum is that after the stage: m' = cond - uncond + beta m.
    """
    a, b = affine if at.rule.space == "x0" else (0.0, 1.0)
    found: dict[str, Row] = {}
    for name in at.used:
        if name in (COND, UNCOND, EXTRA):
            found[name] = ({_X: a} if a != 0.0 else {}) | {name: b}
        elif name == LOW:
            found[name] = {LOW: b}
    if at.weights is None and at.rule.momentum_factor is not None and remembers:
        found[MOMENTUM] = momentum_row(at, affine, remembers)
    return found


def momentum_row(at: RuleAt, affine: tuple[float, float], remembers: bool) -> Row:
    """Returns the momentum after a stage, over tensors."""
    b = affine[1] if at.rule.space == "x0" else 1.0
    row: Row = {COND: b, UNCOND: -b}
    if remembers:
        row[MOMENTUM] = at.rule.momentum_factor
    return row


def remembers(at: RuleAt | None) -> bool:
    """Returns whether a rule writes its momentum at a network call."""
    return at is not None and at.weights is None and at.rule.momentum_factor is not None


def low_estimate(at: RuleAt, affine: tuple[float, float]) -> Row:
    """Returns the x0 estimate of a linear rule with a low-passed difference, over tensors."""
    a, b = affine
    row: Row = {_X: a}
    for name, weight in at.weights or ():
        row[name] = b * weight
    return row
