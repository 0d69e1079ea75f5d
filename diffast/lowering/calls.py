"""The `combine` calls of a stage: rows over named tensors, in a fixed order of the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from diffast.guidance.rule import LOW, MOMENTUM
from diffast.lowering.estimate import X0
from diffast.lowering.evaluations import OUTPUTS
from diffast.lowering.reductions import Reduction
from diffast.lowering.slots import slot_name
from diffast.plans.registers import H, V, X, Y, input_register

NOISE = "noise"

# Names whose place in the order of the sums is fixed. Slots come between, the oldest entry first.
_INPUTS = tuple(input_register(e) for e in range(4))
_FIRST = (Y, V, *_INPUTS)
_OF_RULES = (MOMENTUM, LOW)
_GRADIENTS = tuple(f"g{k}" for k in range(1, 10))
_LAST = (X0, "x0_2", "x0_3", "x0_4", NOISE)


@dataclass(frozen=True)
class Constraints:
    """What an executor asks of a lowered plan.

    Args:
        clamp: the x0 estimate is clamped in the call that uses it.
        hook: the x0 estimate is changed between two calls.
        preview: the x0 estimate is written too.
        given_noise: the fresh normals come as a tensor.
        fills_input: the calls write x into the network's input where that is a tensor of its own:
            with guidance, with several inputs, and with `casts`. Otherwise the network reads x.
        casts: the network's input has another dtype than x.
        entries: how many of the newest entries stay remembered, whether or not a stage reads them.
    """

    clamp: bool = False
    hook: bool = False
    preview: bool = False
    given_noise: bool = False
    fills_input: bool = False
    casts: bool = False
    entries: int = 0


@dataclass(frozen=True)
class Row:
    """One linear combination: weights by tensor name, and those of the two fresh normals."""

    weights: Mapping[str, float]
    noise: float = 0.0
    second: float = 0.0


class Call(NamedTuple):
    """One `combine` call.

    Attributes:
        columns: names of the tensors it weighs, in the order of the sums.
        targets: names of the tensors it writes, one a row.
        weights: [rows, columns] flattened; of a clamped call one more column, the clamped row 0.
        noise: [rows, M] flattened weights of the M fresh normals; empty if there are none.
        clamped: whether row 0 is clamped before the other rows see it.
        reduced: whether row 0, the x0 estimate, has weights of its own for each sample.
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    weights: list[float]
    noise: list[float]
    clamped: bool = False
    reduced: bool = False


def estimate_name(number: int) -> str:
    """Returns the name of the x0 estimate for an input, by its number from 0."""
    return _LAST[number]


def calls_of(
    estimates: dict[int, Row],
    written: Mapping[str, Row],
    beside: Mapping[str, Row],
    slot: int,
    copies: list[tuple[str, int]],
    held: tuple[int, ...],
    constraints: Constraints,
    alone: bool,
    reduction: Reduction | None,
) -> tuple[Call, ...]:
    """Returns the calls of a stage.

    `alone`: the x0 estimates are made by calls of their own. `beside`: rows that are no registers.
    """
    rows = [(slot_name(slot) if name == H else name, row) for name, row in written.items()]
    rows += [(f"copy{n}", written[name]) for n, (name, _) in enumerate(copies)]
    rows += beside.items()
    order = (*_FIRST, *OUTPUTS, *_OF_RULES, *_GRADIENTS, *map(slot_name, held), *_LAST)
    reduced = reduction is not None
    clamp = constraints.clamp or (reduced and reduction.at.threshold is not None)
    given, clamp = constraints.given_noise, clamp and bool(estimates)
    shown = [(estimate_name(e), row) for e, row in estimates.items()]
    if alone or (clamp and len(estimates) > 1):
        first = [call_of([row], order, given, clamp)._replace(reduced=reduced) for row in shown]
        return *first, call_of(rows, order, given, False)
    if clamp or reduced or (constraints.preview and shown):
        rows = [shown[0], *rows]
    return (call_of(rows, order, given, clamp or reduced)._replace(reduced=reduced),)


def call_of(rows: list[tuple[str, Row]], order, given_noise: bool = False, clamp=False) -> Call:
    """Returns the call that makes rows, (target, row) pairs, with sums in the order of the names.

    With given noise the fresh normal is the column NOISE. With a clamp row 0 is the x0 estimate,
    whose clamped self is the last column of all rows.
    """
    noise = [row.noise for _, row in rows]
    if given_noise and any(noise):
        rows = [(target, Row({**row.weights, NOISE: row.noise})) for target, row in rows]
    if any([row.second for _, row in rows]):
        noise = [weight for _, row in rows for weight in (row.noise, row.second)]
    used = set().union(*[row.weights for _, row in rows])
    if clamp:  # the clamped row is the last column, not a tensor
        used.discard(X0)
    names = [name for name in order if name in used] or [X]  # an estimate may be 0
    weighed = [*names, X0] if clamp else names
    return Call(
        tuple(names),
        tuple(target for target, _ in rows),
        [row.weights.get(name, 0.0) for _, row in rows for name in weighed],
        noise if any(noise) and not given_noise else [],
        clamp,
    )
