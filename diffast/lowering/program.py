"""A plan lowered for a network: each network call with the `combine` calls that follow it.

What the network predicts and its guidance are linear, so they disappear into the plan's numbers:
lowered rows weigh tensors themselves. Everything that every executor needs is settled here once:
which stage draws what, which entry lives in which slot and when it dies, when the step's state is
the same tensor as x, what a clamp or a hook changes. Executors bind tensors to the names.

    name            tensor
    y, v, x         the plan's registers
    cond, uncond    outputs of the network for the two branches of classifier-free guidance
    g1, g2 ..       gradients of guidance terms
    slot0 ..        remembered entries
    x0              the x0 estimate after a clamp or a hook
    noise           a normal that the caller gives, in place of the kernel's own
    copy0 ..        further places where x has to be written, for the next network call
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from diffast.lowering.silent import without_silent_stages
from diffast.plan import Plan
from diffast.plan.registers import D_RAW, NEW, Z1, Z2, D, H, V, X, Y

COND, UNCOND, X0, NOISE = "cond", "uncond", "x0", "noise"

# Names whose place in the order of the sums is fixed; slots stand between, the oldest entry first.
_FIRST = (Y, V, X, COND, UNCOND, *(f"g{k}" for k in range(1, 10)))
_LAST = (X0, NOISE)


class Outputs(Protocol):
    """What a network's output means: a `Denoiser`, or a `Prediction` where others call it."""

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output, [S] each."""
        ...

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the guidance scales, [S]."""
        ...


@dataclass(frozen=True)
class Constraints:
    """What an executor asks of a lowered plan.

    Args:
        clamp: the x0 estimate is clamped in the call that uses it.
        hook: something is done to the x0 estimate between two calls.
        preview: the x0 estimate is written too.
        given_noise: the fresh normals come as a tensor.
        copies: how many further places x is written to for a following call, by its branches.
        x_stays: x is always in one place, so the step's state moves when the two part; otherwise
            x moves and the state stays.
    """

    clamp: bool = False
    hook: bool = False
    preview: bool = False
    given_noise: bool = False
    copies: tuple[tuple[str, int], ...] = ()
    x_stays: bool = False


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
        time: model time of the call.
        branches: "cond", "uncond" or "both": what the network is called on.
        x0: row of the x0 estimate.
        rows: the written registers: h (the entry), y, v, x, in this order where present.
        calls: the `combine` calls. With a hook two: the x0 estimate, then the others.
        slot: number of the slot that the entry goes to; -1: none is made that is read later.
        held: the slots that hold entries when the stage begins, the oldest entry first.
        joined: whether y is x after the stage.
        keeps: which of y and v stay as they are.
    """

    time: float
    branches: str
    x0: Row
    rows: Mapping[str, Row]
    calls: tuple[Call, ...]
    slot: int
    held: tuple[int, ...]
    joined: bool
    keeps: frozenset[str]


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
    """

    stages: tuple[Stage, ...]
    opening: tuple[float, float] | None
    slots: int
    carried: tuple[str, ...]
    gradients: int
    branches: frozenset[str] = field(default_factory=frozenset)

    @property
    def buffers(self) -> int:
        """Returns how many tensors of the state's size a run holds: x, y, v and the slots."""
        return 1 + len(self.carried) + self.slots


# What was lowered, by the numbers that went in: users run a plan many times over.
_lowered: WeakKeyDictionary = WeakKeyDictionary()
_KEPT = 8


def slot_name(number: int) -> str:
    """Returns the name of a slot's tensor."""
    return f"slot{number}"


def lower(plan: Plan, outputs: Outputs, constraints: Constraints = Constraints()) -> Program:  # noqa: B008
    """Returns the plan's program for a network: the one place where a plan is multiplied out.

    Args:
        plan: a solver's matrices.
        outputs: what the network's output means.
        constraints: what the executor asks for.

    Raises:
        ValueError: given noise for a plan that draws two normals a stage; a stage without a network
            call that cannot be joined to the call before it; what `outputs` raises.
    """
    times = plan.call_times
    a, b = outputs.affine(times)
    scales = outputs.scales(times)
    key = (a.tobytes(), b.tobytes(), scales.tobytes(), constraints)
    kept = _lowered.setdefault(plan, {})
    if key not in kept:
        if len(kept) == _KEPT:
            kept.pop(next(iter(kept)))
        numbers = a.tolist(), b.tolist(), scales.tolist()
        kept[key] = _lower(plan, times.tolist(), *numbers, constraints)
    return kept[key]


def branches_of(plan: Plan, outputs: Outputs) -> frozenset[str]:
    """Returns what the network is called on in any stage: "cond", "uncond", "both"."""
    return frozenset(_branches(scale) for scale in outputs.scales(plan.call_times).tolist())


def _lower(plan: Plan, times, a, b, scales, constraints: Constraints) -> Program:
    opening, stages = without_silent_stages(plan)
    if constraints.given_noise:
        _check_one_normal(plan, stages)
    last_use = _last_uses(stages)
    slots = _Slots(last_use)
    branches = [_branches(scale) for scale in scales]
    together = True  # x and y are one tensor when the stage begins
    made: list[Stage] = []
    for i, rows in enumerate(stages):
        x0 = {X: a[i], **_outputs(scales[i], b[i])}
        lowered = _Lowered(rows, x0, constraints, slots.columns(i), together)
        held = slots.held()
        slot = slots.take(i) if H in rows else -1
        written, joined, keeps = _written(rows, lowered, slot, together, i + 1 == len(stages))
        if constraints.x_stays and Y in keeps and together:
            written = _with_copied_state(written)
            keeps -= {Y}
        copies = dict(constraints.copies).get(branches[i + 1], 0) if i + 1 < len(stages) else 0
        estimate = lowered.tidy(x0)
        calls = _calls(estimate, written, slot, copies, held, constraints)
        made.append(
            Stage(times[i], branches[i], estimate, written, calls, slot, held, joined, keeps)
        )
        together = joined
    carried = tuple(
        name for name in (Y, V) if any(name in stage.rows or name in stage.keeps for stage in made)
    )
    gradients = max((int(c[1:]) for c in plan.columns if c[0] == "g"), default=0)
    return Program(tuple(made), opening, slots.count, carried, gradients, frozenset(branches))


class _Lowered:
    """Rows of one stage over tensors."""

    def __init__(self, rows, x0, constraints, slots, together):
        self.x0, self.slots, self.together = x0, slots, together
        self.kept = constraints.clamp or constraints.hook
        self.estimate = {X0: 1.0} if self.kept else x0
        self.entry = self.multiplied(rows.get(H, {}))
        self.rows = rows

    def multiplied(self, row) -> dict[str, float]:
        """Returns the weights of a row with its estimates and the new entry written out."""
        weights: dict[str, float] = {}
        if NEW in row:
            _add(weights, row[NEW], self.entry)
        if D in row:
            _add(weights, row[D], self.estimate)
        for name in (Y, V, X):
            if name in row:
                _add(weights, 1.0, {name: row[name]})
        if D_RAW in row:
            _add(weights, row[D_RAW], self.x0)
        for name, weight in row.items():
            if name[0] == "h" and name != NEW:
                weights[self.slots[int(name[1:])]] = weight
            elif name[0] == "g":
                weights[name] = weight
        return weights

    def row(self, name) -> Row:
        """Returns a row of the stage, lowered."""
        row = self.rows[name]
        return self.tidy(self.multiplied(row), row.get(Z1, 0.0), row.get(Z2, 0.0))

    def tidy(self, weights, noise=0.0, second=0.0) -> Row:
        """Returns the row without zeros; y's weight is x's where the two are one tensor."""
        weights = dict(weights)
        if self.together and Y in weights:
            weights[X] = weights.pop(Y) + weights.get(X, 0.0)
        return Row({name: w for name, w in weights.items() if w != 0.0}, noise, second)


def _add(weights: dict, factor: float, more: Mapping[str, float]) -> None:
    for name, weight in more.items():
        part = factor * weight
        weights[name] = weights[name] + part if name in weights else part


def _branches(scale: float) -> str:
    return "cond" if scale == 1.0 else "uncond" if scale == 0.0 else "both"


def _outputs(scale: float, b: float) -> dict[str, float]:
    if scale == 1.0:
        return {COND: b}
    if scale == 0.0:
        return {UNCOND: b}
    return {COND: b * scale, UNCOND: b * (1.0 - scale)}


def _written(rows, lowered: _Lowered, slot: int, together: bool, last: bool):
    """Returns (written rows by register, whether y is x then, which registers stay)."""
    written: dict[str, Row] = {}
    keeps = set()
    if slot >= 0:
        written[H] = lowered.row(H)
    joined = last or Y not in rows or rows[Y] == rows[X]
    if not joined:
        if rows[Y] == {Y: 1.0}:
            keeps.add(Y)
        elif rows[Y]:
            written[Y] = lowered.row(Y)
    if not last and rows.get(V) == {V: 1.0}:
        keeps.add(V)
    elif not last and rows.get(V):
        written[V] = lowered.row(V)
    written[X] = lowered.row(X)
    return written, joined, frozenset(keeps)


def _with_copied_state(written: dict[str, Row]) -> dict[str, Row]:
    """Returns the rows with one for y, which leaves the tensor that it shared with x."""
    copied = {Y: Row({X: 1.0})}
    entry = {H: written[H]} if H in written else {}
    return entry | copied | {name: row for name, row in written.items() if name != H}


def _calls(estimate: Row, written, slot, copies, held, constraints: Constraints):
    rows = [(slot_name(slot) if name == H else name, row) for name, row in written.items()]
    rows += [(f"copy{k}", written[X]) for k in range(copies)]
    order = (*_FIRST, *map(slot_name, held), *_LAST)
    given, clamp = constraints.given_noise, constraints.clamp
    if constraints.hook:
        first = call_of([(X0, estimate)], order, given, clamp)
        return first, call_of(rows, order, given, False)
    if constraints.clamp or constraints.preview:
        rows = [(X0, estimate), *rows]
    return (call_of(rows, order, given, clamp),)


def call_of(rows: list[tuple[str, Row]], order, given_noise: bool = False, clamp=False) -> Call:
    """Returns the call that makes rows.

    Args:
        rows: (target, row) pairs.
        order: names of tensors in the order of the sums.
        given_noise: the fresh normal is a column of its own, under the name NOISE.
        clamp: row 0 is the x0 estimate, whose clamped self is the last column of all rows.
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
        tuple([target for target, _ in rows]),
        [row.weights.get(name, 0.0) for _, row in rows for name in weighed],
        noise if any(noise) and not given_noise else [],
        clamp,
    )


class _Slots:
    """Which slot holds the entry of which stage."""

    def __init__(self, last_use: dict[int, int]):
        """Begins with no entry.

        Args:
            last_use: the last stage that reads a stage's entry, by the stage that made it.
        """
        self.last_use, self.count = last_use, 0
        self._holds: dict[int, int] = {}  # stage -> slot, the oldest entry first
        self._free: list[int] = []
        self._numbers: dict[int, int] = {}  # stage -> how many entries there were before its own

    def columns(self, i: int) -> dict[int, str]:
        """Returns the tensors' names by the age of their entry."""
        made = len(self._numbers)
        return {made - self._numbers[stage]: slot_name(slot) for stage, slot in self._holds.items()}

    def held(self) -> tuple[int, ...]:
        """Returns the slots that hold entries, the oldest first."""
        return tuple(self._holds.values())

    def take(self, i: int) -> int:
        """Frees what stage i reads last; returns the slot of its entry, -1 if nobody reads it."""
        # An entry that is read for the last time may be overwritten by the same call.
        for stage in [s for s in self._holds if self.last_use[s] == i]:
            self._free.append(self._holds.pop(stage))
        self._numbers[i] = len(self._numbers)
        if i not in self.last_use:
            return -1
        slot = self._free.pop() if self._free else self.count
        self.count = max(self.count, slot + 1)
        self._holds[i] = slot
        return slot


def _last_uses(stages) -> dict[int, int]:
    """Returns the last stage that reads a stage's entry, by the stage that made it."""
    made: list[int] = []
    last = {}
    for i, rows in enumerate(stages):
        for column in set().union(*rows.values()):
            if column[0] == "h" and column != NEW:
                last[made[-int(column[1:])]] = i
        if rows.get(H):
            made.append(i)
    return last


def _check_one_normal(plan: Plan, stages) -> None:
    """Raises ValueError if a stage draws two normals, where one can be given from outside."""
    for i, rows in enumerate(stages):
        if any(row.get(Z2) for row in rows.values()):
            raise ValueError(
                f"given noise: {plan.name} draws 2 normals at stage {i}, but 1 a stage can be given"
            )


def identity() -> Any:
    """Returns outputs that are x0 estimates themselves, without guidance."""
    return _Identity()


class _Identity:
    def affine(self, times):
        return np.zeros(len(times)), np.ones(len(times))

    def scales(self, times):
        return np.ones(len(times))
