"""A plan lowered for a network: each network call with the `combine` calls that follow it.

Prediction type and guidance are linear, so they are multiplied into the plan's numbers: lowered
rows weigh tensors. Lowering also decides what every executor needs: the noise of each stage, the
history slot of each entry and how long the slot is held, when the step's state is the same tensor
as x, and what a clamp or a hook changes. Executors bind tensors to these names:

    name            tensor
    y, v, x         the plan's registers
    cond, uncond    outputs of the network for the two branches of classifier-free guidance;
                    cond2, uncond2 .. for the further inputs x2 ..
    g1, g2 ..       gradients of guidance terms
    slot0 ..        remembered entries
    x0              the x0 estimate after a clamp or a hook; x0_2 .. for x2 ..
    noise           a normal that the caller gives, in place of the kernel's own
    copy0 ..        further places where x has to be written, for the next network call; those of
                    x2 .. follow
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from diffast.lowering.estimate import COND, UNCOND, X0, estimate_row
from diffast.lowering.silent import without_silent_stages
from diffast.lowering.slots import Slots, last_uses, slot_name
from diffast.plans import Plan
from diffast.plans.registers import NEW, Z1, Z2, H, V, X, Y, input_number, input_register

NOISE = "noise"

# Names whose place in the order of the sums is fixed. Slots come between, the oldest entry first.
_INPUTS = tuple(input_register(e) for e in range(4))
_FIRST = (Y, V, *_INPUTS)
_OUTPUTS = tuple(f"{name}{e or ''}" for e in (0, 2, 3, 4) for name in (COND, UNCOND))
_GRADIENTS = tuple(f"g{k}" for k in range(1, 10))
_LAST = (X0, "x0_2", "x0_3", "x0_4", NOISE)


class Outputs(Protocol):
    """What a network's output means: a `Denoiser`, or a `Prediction` where others call it."""

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output, [S] each."""
        ...

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the guidance scales, [S]."""
        ...

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns the scales [S] that a plan gives in place of these, if they can be had."""
        ...


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
    """

    clamp: bool = False
    hook: bool = False
    preview: bool = False
    given_noise: bool = False
    fills_input: bool = False
    casts: bool = False


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
    """

    columns: tuple[str, ...]
    targets: tuple[str, ...]
    weights: list[float]
    noise: list[float]
    clamped: bool = False


@dataclass(frozen=True)
class Stage:
    """One network call and what follows it.

    Args:
        times: model time of the call, one for each input that it is made on at once.
        branches: "cond", "uncond" or "both": what the network is called on.
        x0: row of the x0 estimate for x.
        rows: the written registers: h (the entry), y, v, x2 .., x, in this order where present.
        calls: the `combine` calls. The last one makes the rows. Before it come those that make an
            x0 estimate each, where a hook or the clamp of several estimates needs that.
        slot: number of the slot that the entry goes to; -1: none is made that is read later.
        held: the slots that hold entries when the stage begins, the oldest entry first.
        joined: whether y is x after the stage.
        keeps: which of y and v stay as they are.
    """

    times: tuple[float, ...]
    branches: str
    x0: Row
    rows: Mapping[str, Row]
    calls: tuple[Call, ...]
    slot: int
    held: tuple[int, ...]
    joined: bool
    keeps: frozenset[str]

    @property
    def time(self) -> float:
        """Returns the model time of the call on x."""
        return self.times[0]


@dataclass(frozen=True)
class Program:
    """A lowered plan.

    Args:
        stages: one a network call.
        opening: weights (keep, fresh) of the initial state and a normal in the first x; None where
            x is the initial state.
        slots: how many slots the entries need.
        carried: which of y and v any stage holds beside x.
        gradients: how many guidance gradients rows weigh.
        inputs: on how many inputs x, x2 .. the network is called at once, at most.
        branches: what the network is called on in any stage.
        batched: whether the network's input is a tensor of its own, a part for each input and
            branch, that the calls fill under the names copy0 ..
        shared: whether the first part of that tensor is x itself. x then stays in its place, and y
            moves when the two part; otherwise x moves.
    """

    stages: tuple[Stage, ...]
    opening: tuple[float, float] | None
    slots: int
    carried: tuple[str, ...]
    gradients: int
    inputs: int
    branches: frozenset[str]
    batched: bool
    shared: bool

    @property
    def buffers(self) -> int:
        """Returns how many tensors of the state's size a run holds: inputs, y, v and the slots."""
        return self.inputs + len(self.carried) + self.slots

    @cached_property
    def structure(self) -> tuple:
        """Returns all that runs of the program do, but for the weights' values; hashable."""
        stages = [
            (
                stage.times,
                stage.branches,
                tuple([(c.columns, c.targets, len(c.noise), c.clamped) for c in stage.calls]),
            )
            for stage in self.stages
        ]
        return self.opening, tuple(stages)


# Programs by plan and input numbers, since users run a plan many times.
_lowered: WeakKeyDictionary = WeakKeyDictionary()
_KEPT = 8


def lower(plan: Plan, outputs: Outputs, constraints: Constraints = Constraints()) -> Program:  # noqa: B008
    """Returns the plan's program for a network: the one place where a plan is multiplied out.

    Raises:
        ValueError: given noise for a plan that draws two normals a stage; a stage without a network
            call that cannot be joined to the call before it; what `outputs` raises.
    """
    inputs = _inputs_of(plan, outputs)
    key = (constraints, *(numbers.tobytes() for numbers in inputs))
    kept = _lowered.setdefault(plan, {})
    if key not in kept:
        if len(kept) == _KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = _lower(plan, inputs, constraints)
    return kept[key]


def _inputs_of(plan: Plan, outputs: Outputs) -> list[np.ndarray]:
    """Returns for each input x, x2 .. [calls, 4] of (time, a, b, scale); NaN where not called."""
    found = []
    planned = plan.times * np.nan if plan.guidance is None else plan.guidance
    both = np.stack([plan.times, planned]).reshape(2, plan.stages, -1)[:, plan.calls]
    for times, planned in zip(*both.swapaxes(1, 2), strict=True):
        numbers = np.full((len(times), 4), np.nan)
        called = ~np.isnan(times)
        a, b = outputs.affine(times[called])
        if plan.guidance is None:
            scales = outputs.scales(times[called])
        else:
            scales = outputs.planned_scales(planned[called])
        numbers[called] = np.stack([times[called], a, b, scales], axis=1)
        found.append(numbers)
    return found


def _lower(plan: Plan, inputs: list[np.ndarray], constraints: Constraints) -> Program:
    opening, stages = without_silent_stages(plan)
    if constraints.given_noise:
        _check_one_normal(plan, stages)
    slots = Slots(last_uses(stages))
    numbers = np.stack(inputs, axis=1).tolist()  # [calls][E] of (time, a, b, scale)
    called = [[tuple(n) for n in stage if n[0] == n[0]] for stage in numbers]
    branches = [_branches(scale for *_, scale in stage) for stage in called]
    wide = "both" in branches or len(inputs) > 1
    batched = constraints.fills_input and (wide or constraints.casts)
    shared = batched and len(inputs) == 1 and not constraints.casts
    together = True  # x and y are one tensor when the stage begins
    made: list[Stage] = []
    for i, rows in enumerate(stages):
        estimates = [_estimate(e, *n[1:]) for e, n in enumerate(called[i])]
        lowered = _Lowered(rows, estimates, constraints, slots.columns(), together)
        held = slots.held()
        slots.free(i)
        slot = slots.take(i) if rows.get(H) else -1
        written, joined, keeps = _written(rows, lowered, slot, together, i + 1 == len(stages))
        if shared and Y in keeps and together:
            written, keeps = _with_copied_state(written), keeps - {Y}
        copies: list[tuple[str, int]] = []
        if i + 1 < len(stages):
            count = 1 + (branches[i + 1] == "both") - shared if batched else 0
            following = [e for e, n in enumerate(numbers[i + 1]) if n[0] == n[0]]
            copies = [(input_register(e), k) for e in following for k in range(count)]
        calls = _calls(lowered.estimates, written, slot, copies, held, constraints)
        times = tuple([n[0] for n in called[i]])
        estimate = lowered.estimates[0]
        made.append(Stage(times, branches[i], estimate, written, calls, slot, held, joined, keeps))
        together = joined
    beside = [n for n in (Y, V) if any(n in s.rows or n in s.keeps for s in made)]
    gradients = max((int(c[1:]) for c in plan.columns if c[0] == "g"), default=0)
    found = (opening, slots.count, tuple(beside), gradients, len(inputs), frozenset(branches))
    return Program(tuple(made), *found, batched, shared)


class _Lowered:
    """Rows of one stage over tensors."""

    def __init__(self, rows, x0, constraints, slots, together):
        self.rows, self.x0, self.slots, self.together = rows, x0, slots, together
        self.kept = constraints.clamp or constraints.hook
        self.estimates = [self.tidy(weights) for weights in x0]
        self.entry = self.multiplied(rows.get(H, {}))

    def multiplied(self, row) -> dict[str, float]:
        """Returns the weights of a row with its estimates and the new entry written out."""
        weights: dict[str, float] = {}
        for name in sorted(row, key=_in_order):
            for tensor, part in self._parts(name).items():
                part = row[name] * part
                weights[tensor] = weights[tensor] + part if tensor in weights else part
        return weights

    def _parts(self, column: str) -> Mapping[str, float]:
        """Returns a column over tensors."""
        kind = column[0]
        if column == NEW:
            return self.entry
        if kind == "h":
            return {self.slots[int(column[1:])]: 1.0}
        if kind == "d":
            number = input_number(column)
            kept = self.kept and not column.endswith("_raw")
            return {estimate_name(number): 1.0} if kept else self.x0[number]
        return {} if kind == "z" else {column: 1.0}

    def row(self, name) -> Row:
        row = self.rows[name]
        return self.tidy(self.multiplied(row), row.get(Z1, 0.0), row.get(Z2, 0.0))

    def tidy(self, weights, noise=0.0, second=0.0) -> Row:
        """Returns the row without zeros; y's weight is x's where the two are one tensor."""
        weights = dict(weights)
        if self.together and Y in weights:
            weights[X] = weights.pop(Y) + weights.get(X, 0.0)
        return Row({name: w for name, w in weights.items() if w != 0.0}, noise, second)


@cache
def _in_order(column: str) -> tuple[int, str]:
    """Returns what the columns of a row are sorted by, in the order in which they add up."""
    if column.endswith("_raw"):
        return 3, column
    return (0 if column == NEW else {"d": 1, "y": 2, "v": 2, "x": 2}.get(column[0], 4)), column


def _branches(scales: Iterable[float]) -> str:
    """Returns what a stage calls the network on, whose inputs have these scales or NaN."""
    found = {"cond" if s == 1.0 else "uncond" if s == 0.0 else "both" for s in scales if s == s}
    return found.pop() if len(found) == 1 else "both"


def _estimate(number: int, a: float, b: float, scale: float) -> dict[str, float]:
    """Returns the x0 estimate for an input over that input and the network's outputs for it."""
    row = estimate_row(a, b, scale, input_register(number))
    if not number:
        return row
    named = dict(zip((COND, UNCOND), output_names(number), strict=True))
    return {named.get(name, name): weight for name, weight in row.items()}


def estimate_name(number: int) -> str:
    """Returns the name of the x0 estimate for an input, by its number from 0."""
    return _LAST[number]


def output_names(number: int) -> tuple[str, ...]:
    """Returns the names of the network's outputs (cond, uncond) for an input."""
    return _OUTPUTS[2 * number : 2 * number + 2]


def check_plain_calls(who: str, plan: Plan) -> None:
    """Raises ValueError for calls on several inputs at once, or with gradients beside them."""
    gradients = [column for column in plan.columns if column[0] == "g"]
    if gradients:
        raise ValueError(
            f"{who}: {plan.name} weighs the gradients {', '.join(gradients)} of guidance terms, "
            "but only df.sample runs such plans"
        )
    if plan.called.shape[1] > 1:
        raise ValueError(
            f"{who}: {plan.name} calls the network on {plan.called.shape[1]} inputs at once, but "
            "only df.sample runs such plans"
        )


def _written(rows, lowered: _Lowered, slot: int, together: bool, last: bool):
    """Returns (written rows by register, whether y is x then, which registers stay)."""
    written: dict[str, Row] = {}
    keeps = set()
    if slot >= 0:
        written[H] = lowered.row(H)
    joined = last or Y not in rows or rows[Y] == rows[X]
    for name in () if last else (V,) if joined else (Y, V):
        if rows.get(name) == {name: 1.0}:
            keeps.add(name)
        elif rows.get(name):
            written[name] = lowered.row(name)
    others = [] if last else [name for name in _INPUTS[1:] if rows.get(name)]
    written |= {name: lowered.row(name) for name in (*others, X)}
    return written, joined, frozenset(keeps)


def _with_copied_state(written: dict[str, Row]) -> dict[str, Row]:
    """Returns the rows with one for y, which leaves the tensor that it shared with x."""
    entry = {H: written[H]} if H in written else {}
    return entry | {Y: Row({X: 1.0})} | {name: row for name, row in written.items() if name != H}


def _calls(estimates: list[Row], written, slot, copies, held, constraints: Constraints):
    rows = [(slot_name(slot) if name == H else name, row) for name, row in written.items()]
    rows += [(f"copy{n}", written[name]) for n, (name, _) in enumerate(copies)]
    order = (*_FIRST, *_OUTPUTS, *_GRADIENTS, *map(slot_name, held), *_LAST)
    given, clamp = constraints.given_noise, constraints.clamp
    shown = [(estimate_name(e), row) for e, row in enumerate(estimates)]
    if constraints.hook or (clamp and len(estimates) > 1):
        first = [call_of([row], order, given, clamp) for row in shown]
        return *first, call_of(rows, order, given, False)
    if clamp or constraints.preview:
        rows = [shown[0], *rows]
    return (call_of(rows, order, given, clamp),)


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
    names = [name for name in order if name in used]
    weighed = [*names, X0] if clamp else names
    return Call(
        tuple(names),
        tuple(target for target, _ in rows),
        [row.weights.get(name, 0.0) for _, row in rows for name in weighed],
        noise if any(noise) and not given_noise else [],
        clamp,
    )


def _check_one_normal(plan: Plan, stages) -> None:
    """Raises ValueError if a stage draws two normals, where one can be given from outside."""
    for i, rows in enumerate(stages):
        if any(row.get(Z2) for row in rows.values()):
            raise ValueError(
                f"given noise: {plan.name} draws 2 normals at stage {i}, but 1 a stage can be given"
            )


class Identity:
    """Outputs that are x0 estimates themselves, without guidance."""

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (0, 1)."""
        return np.zeros(len(times)), np.ones(len(times))

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns 1."""
        return np.ones(len(times))

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns 1: the estimates hold the guidance."""
        return np.ones(len(scales))
