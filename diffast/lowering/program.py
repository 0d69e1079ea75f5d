"""A plan lowered for a network: each evaluation with the `combine` calls that follow it.

Prediction type and guidance are linear, so they are multiplied into the plan's numbers: lowered
rows weigh tensors. Lowering also decides what every executor needs: the noise of each stage, the
history slot of each entry and how long the slot is held, when the step's state is the same tensor
as x, and what a clamp or a hook changes. Executors bind tensors to these names:

    name            tensor
    y, v, x         the plan's registers
    cond, uncond    outputs of the network for the two branches of classifier-free guidance, and
    extra           for a third one; cond2, uncond2 .. for the further inputs x2 ..
    momentum, low   tensors of guidance rules, see `diffast.guidance.rule`
    g1, g2 ..       gradients of guidance terms
    slot0 ..        remembered entries
    x0              the x0 estimate after a clamp or a hook; x0_2 .. for x2 ..
    noise           a normal that the caller gives, in place of the kernel's own
    copy0 ..        further places where x has to be written, for the next network call; those of
                    x2 .. follow
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from diffast.guidance.rule import MOMENTUM, Rule, RuleAt
from diffast.guidance.rule import rule_name as rule_name
from diffast.lowering.calls import NOISE as NOISE
from diffast.lowering.calls import Call, Constraints, Row, calls_of, estimate_name
from diffast.lowering.calls import call_of as call_of
from diffast.lowering.estimate import COND, UNCOND
from diffast.lowering.estimate import X0 as X0
from diffast.lowering.evaluations import (
    Evaluation,
    branch_estimate,
    branch_names,
    branches_of,
    check_joined,
    estimate,
    evaluations_of,
    gradient_row,
    gradients_of,
    in_estimate,
)
from diffast.lowering.reductions import Reduction, low_estimate, remembers
from diffast.lowering.silent import without_silent_stages
from diffast.lowering.slots import Slots, last_uses
from diffast.plans import Plan
from diffast.plans.registers import NEW, Z1, Z2, H, V, X, Y, input_number, input_register


class Outputs(Protocol):
    """What a network's output means: a `Denoiser`, or a `Prediction` where others call it.

    A denoiser also has `rules_at` for guidance rules, and `guides`, `gradient_scales`,
    `gradient_weights` for guidance by gradients: see `Denoiser`.
    """

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
class Stage:
    """One evaluation and what follows it: a network call, gradients, or both.

    Args:
        times: model time of the call, one for each input that it is made on at once; empty: the
            stage evaluates gradients alone.
        branches: what the network is called on: "cond", "uncond", "both", or as `branch_names`
            says.
        x0: row of the x0 estimate for x.
        rows: the written registers: h (the entry), y, v, x2 .., x, in this order where present.
        calls: the `combine` calls. The last one makes the rows. Before it come those that make an
            x0 estimate each, where a hook or the clamp of several estimates needs that.
        slot: number of the slot that the entry goes to; -1: none is made that is read later.
        held: the slots that hold entries when the stage begins, the oldest entry first.
        joined: whether y is x after the stage.
        keeps: which of y and v stay as they are.
        gradients: numbers, from 1, of the guidance terms whose gradients the calls weigh.
        gradient_time: model time that these terms are told; also that of a network call that a
            guidance rule leaves out.
        reduction: how row 0 of the first call follows from the sample's outputs; None: the weights
            of all rows are the plan's.
        low: the rule whose `low_pass` makes the tensor "low".
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
    gradients: tuple[int, ...] = ()
    gradient_time: float | None = None
    reduction: Reduction | None = None
    low: Rule | None = None

    @property
    def time(self) -> float:
        """Returns the model time of the call on x, or of the gradients where there is none."""
        if self.times or self.gradient_time is None:
            return self.times[0]
        return self.gradient_time


@dataclass(frozen=True)
class Program:
    """A lowered plan.

    Args:
        stages: one an evaluation.
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
        given: slots of the entries that a run starts with, the oldest first; -1: not read.
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
    given: tuple[int, ...] = ()

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
                stage.gradient_time,
                None if stage.reduction is None else stage.reduction.key,
                stage.low,
                tuple([(c.columns, c.targets, len(c.noise), c.clamped) for c in stage.calls]),
            )
            for stage in self.stages
        ]
        return self.opening, self.given, tuple(stages)


# Programs by plan and input numbers, since users run a plan many times.
_lowered: WeakKeyDictionary = WeakKeyDictionary()
_KEPT = 8


def lower(plan: Plan, outputs: Outputs, constraints: Constraints = Constraints()) -> Program:  # noqa: B008
    """Returns the plan's program for a network: the one place where a plan is multiplied out.

    Raises:
        ValueError: given noise for a plan that draws two normals a stage; a stage without a network
            call that cannot be joined to the call before it; guidance or a clamp that no row of the
            plan would see; what `outputs` raises.
    """
    check_joined(plan, outputs, constraints.clamp or constraints.hook)
    evaluations = evaluations_of(plan, outputs)
    # Terms that read the x0 estimate need it as a tensor of its own, as a hook does.
    of_x0 = tuple(k for k, g in enumerate(getattr(outputs, "guides", ()), 1) if g.through == "x0")
    key = (constraints, of_x0, evaluations.key)
    kept = _lowered.setdefault(plan, {})
    if key not in kept:
        if len(kept) == _KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = _lower(plan, evaluations.each(), constraints, of_x0)
    return kept[key]


def _lower(
    plan: Plan, evaluations: list[Evaluation], constraints: Constraints, of_x0: tuple[int, ...]
) -> Program:
    opening, stages = without_silent_stages(plan)
    if constraints.given_noise:
        _check_one_normal(plan, stages)
    given = 0 if plan.initial is None else plan.initial.entries
    slots = Slots(last_uses(stages, given, constraints.entries), given)
    inputs = plan.called.shape[1]
    columns = [set().union(*rows.values()) for rows in stages]
    remembered = [remembers(e.rule) for e in evaluations]
    branches = [branches_of(e, used) for e, used in zip(evaluations, columns, strict=True)]
    wide = inputs > 1 or any(len(branch_names(b)) > 1 for b in branches)
    batched = constraints.fills_input and (wide or constraints.casts)
    shared = batched and inputs == 1 and not constraints.casts
    together = True  # x and y are one tensor when the stage begins
    made: list[Stage] = []
    for i, (rows, found) in enumerate(zip(stages, evaluations, strict=True)):
        reads_x0 = _reads_x0(plan, i, found, of_x0)
        reduction = None
        if found.rule is not None and found.rule.reduces:
            reduction = Reduction(found.rule, found.affine[0], any(remembered[:i]))
        kept = constraints.clamp or constraints.hook or reads_x0
        lowered = _Lowered(plan, rows, found, kept, slots.columns(), together, reduction)
        held = slots.held()
        slots.free(i)
        slot = slots.take(i) if rows.get(H) else -1
        written, joined, keeps = _written(rows, lowered, slot, together, i + 1 == len(stages))
        if shared and Y in keeps and together:
            written, keeps = _with_copied_state(written), keeps - {Y}
        copies: list[tuple[str, int]] = []
        if batched and i + 1 < len(stages):
            count = len(branch_names(branches[i + 1])) - shared
            following = evaluations[i + 1].inputs
            copies = [(input_register(e), k) for e in following for k in range(count)]
        alone = constraints.hook or reads_x0
        beside = {}
        if reduction is not None and remembered[i] and any(remembered[i + 1 :]):
            beside = {MOMENTUM: Row(reduction.momentum)}
        calls = calls_of(
            *(lowered.estimates, written, beside, slot, copies, held, constraints, alone),
            reduction,
        )
        estimate = next(iter(lowered.estimates.values()), Row({}))
        gradients = tuple([int(n[1:]) for n in calls[-1].columns if n[0] == "g"])
        made.append(
            Stage(
                *(found.times, branches[i], estimate, written, calls, slot, held, joined, keeps),
                *(gradients, found.gradient_time if gradients or not found.times else None),
                *(
                    reduction,
                    found.rule.rule if found.rule is not None and found.rule.low else None,
                ),
            )
        )
        together = joined
    carried = [n for n in (Y, V) if any(n in s.rows or n in s.keeps for s in made)]
    gradients = max((k for s in made for k in s.gradients), default=0)
    called = frozenset(b for b in branches if b)
    return Program(
        *(tuple(made), opening, slots.count, tuple(carried), gradients, inputs, called),
        *(batched, shared, slots.given),
    )


def _low_passing(at: RuleAt | None) -> Rule | None:
    """Returns the rule if it makes a low-passed difference."""
    return at.rule if at is not None and at.low else None


def _reads_x0(plan: Plan, i: int, found: Evaluation, of_x0: tuple[int, ...]) -> bool:
    """Returns whether a guidance term of stage i reads the x0 estimate.

    Raises:
        ValueError: where the stage makes none.
    """
    weights = found.scales if plan.gradients is not None else found.in_estimate
    reads = any(weights[k - 1] != 0.0 for k in of_x0)
    if reads and not found.times:
        raise ValueError(
            f"plan {plan.name}: evaluation {i} takes gradients without a network call, but "
            f"guidance term {of_x0[0]} reads the x0 estimate of a call: give the term "
            "through='network'"
        )
    return reads


class _Lowered:
    """Rows of one stage over tensors."""

    def __init__(self, plan, rows, found: Evaluation, kept: bool, slots, together, reduction):
        self.plan, self.found, self.rows, self.slots = plan, found, rows, slots
        # Of an estimate whose weights are the sample's own, other rows weigh the row itself.
        self.kept, self.together = kept or reduction is not None, together
        self.reduced = reduction is not None
        self.changed = reduction is not None and (kept or found.rule.threshold is not None)
        each = zip(found.inputs, found.affine, found.weights, strict=True)
        self.x0 = {e: estimate(e, affine, weights) for e, affine, weights in each}
        if reduction is not None:
            self.x0[0] = reduction.estimate_row()
        elif found.rule is not None:  # linear, with a low-passed difference
            self.x0[0] = low_estimate(found.rule, found.affine[0])
        self.affine = dict(zip(found.inputs, found.affine, strict=True))
        self.estimates = {e: self.tidy(weights) for e, weights in self.x0.items()}
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
            return self._estimate(column)
        if kind == "g":
            return gradient_row(self.plan, self.found, column)
        return {} if kind == "z" else {column: 1.0}

    def _estimate(self, column: str) -> Mapping[str, float]:
        """Returns an x0 estimate over tensors."""
        number, which = input_number(column), column.partition("_")[2]
        if which in (COND, UNCOND):
            return branch_estimate(number, self.affine[number], column)
        if which and self.changed:
            raise ValueError(
                f"plan {self.plan.name} weighs the x0 estimate before a clamp or a hook, but "
                f"{self.found.rule.rule.name} makes it for each sample in one call with the clamp"
            )
        if which and self.reduced:
            return {estimate_name(number): 1.0}
        if which:  # as the network gave it
            return self.x0[number]
        row = {estimate_name(number): 1.0} if self.kept else self.x0[number]
        return row if number else row | in_estimate(self.found)

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


def check_plain_calls(who: str, plan: Plan) -> None:
    """Raises ValueError for calls on several inputs at once, or with gradients beside them."""
    gradients = gradients_of(plan)
    if gradients:
        raise ValueError(
            f"{who}: {plan.name} weighs the gradients {', '.join(gradients)} of guidance terms, "
            "but only df.sample and Stepper run such plans"
        )
    check_one_input(who, plan)


def check_plain_rule(who: str, outputs: Outputs | None) -> None:
    """Raises ValueError for a guidance rule that is not a weighted sum of one call's outputs."""
    rule = getattr(outputs, "rule", None)
    if rule is not None and not rule.plain:
        raise ValueError(
            f"{who}: guidance is {rule_name(rule)}, which needs each sample's outputs or networks "
            "of its own, and is no row of weights: use df.sample"
        )


def check_one_input(who: str, plan: Plan) -> None:
    """Raises ValueError for calls on several inputs at once."""
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
    others = [] if last else [name for name in map(input_register, (1, 2, 3)) if rows.get(name)]
    written |= {name: lowered.row(name) for name in (*others, X)}
    return written, joined, frozenset(keeps)


def _with_copied_state(written: dict[str, Row]) -> dict[str, Row]:
    """Returns the rows with one for y, which leaves the tensor that it shared with x."""
    entry = {H: written[H]} if H in written else {}
    return entry | {Y: Row({X: 1.0})} | {name: row for name, row in written.items() if name != H}


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
