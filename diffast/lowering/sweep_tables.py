"""Sweep tables: a lowered plan's rows, how they follow the x0 estimate, and its gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from diffast.lowering.estimate import COND, EXTRA, UNCOND, X0
from diffast.lowering.evaluations import branch_columns
from diffast.lowering.program import (
    Constraints,
    Identity,
    Outputs,
    Program,
    Row,
    Stage,
    check_plain_calls,
    check_plain_rule,
    lower,
)
from diffast.lowering.slots import slot_name
from diffast.plans import Plan
from diffast.plans.registers import H, V, X

# Columns of `Tables.line`.
ALPHA, SIGMA, INVERSE, GAIN = range(4)


@dataclass(frozen=True)
class Tables:
    """What `sweep` reads of a plan, S network calls; float64 numpy arrays.

    Args:
        outputs: which outputs of the network the rows weigh: (COND,), (UNCOND,) or both.
        weights: [S, rows, columns], the rows of a call over the tensors themselves.
        changes: [S, rows], how each row follows a change of the x0 estimate.
        tails: [S, rows - 1, columns], the rows of a call over a given x0 estimate.
        line: [S, 4] of (alpha, sigma, 1 / sigma or 0, gain of the prior).
        own: [S], the part a of x0 = a x + b output that follows x by itself.
        slope: [S, outputs], the parts b.
        entries: how many remembered entries a sweep carries.
        noises: normals a stage.
        parts: whether a register beside x is carried.
        gains: [S + 1], change of the sample per change of x at each call, if the data were N(0, 1).
        opening: weights (keep, fresh) that the initial state and a normal have in the first x.
    """

    outputs: tuple[str, ...]
    weights: np.ndarray
    changes: np.ndarray
    tails: np.ndarray
    line: np.ndarray
    own: np.ndarray
    slope: np.ndarray
    entries: int
    noises: int
    parts: bool
    gains: np.ndarray
    opening: tuple[float, float] | None

    @property
    def simple(self) -> bool:
        """Returns whether x is all that a sweep carries."""
        return not self.entries and not self.parts


def tables_of(plan: Plan, outputs: Outputs, clamp: bool = False) -> Tables:
    """Returns the plan's tables for a network; with a clamp of the x0 estimate where one is asked.

    Guidance terms are left out: whoever calls the network adds them to its outputs.

    Raises:
        ValueError: a plan that carries a state and a momentum beside x, or weighs the estimate of
            one branch alone; what `check_plain_calls` and `lower` raise.
    """
    check_plain_calls("sample_parallel", plan)
    if plan.initial is not None and plan.initial.entries:
        raise ValueError(
            f"sample_parallel: {plan.name} starts with {plan.initial.entries} entries of a "
            "Gaussian law, but a sweep begins with none: use df.sample"
        )
    check_plain_rule("sample_parallel", outputs)
    alone = branch_columns(plan)
    if alone:
        raise ValueError(
            f"sample_parallel: {plan.name} weighs {', '.join(alone)}, the x0 estimate of one "
            "branch alone, but a sweep has one estimate a call: use df.sample"
        )
    outputs = _without_terms(outputs)
    program = lower(plan, outputs, Constraints(clamp=clamp))
    if len(program.carried) > 1:
        raise ValueError(
            f"sample_parallel: plan {plan.name} carries {' and '.join(program.carried)} beside x, "
            "but a sweep carries one register more"
        )
    if any(EXTRA in branches for branches in program.branches):
        raise ValueError(
            "sample_parallel: guidance has a third branch of the network, but a sweep weighs two "
            "outputs: use df.sample"
        )
    halves = (COND, UNCOND) if program.branches - {COND, UNCOND} else tuple(program.branches)
    halves = (COND, UNCOND) if len(halves) > 1 else halves
    parts = bool(program.carried)
    names = {n for rows in _by_age(program) for row in rows for n in row.weights}
    entries = max((int(n[3:]) for n in names if n.startswith("age")), default=0)
    noises = 0 if not plan.stochastic else 1
    if any(row.second for stage in program.stages for row in stage.rows.values()):
        noises = 2
    shape = _Shape(entries, parts, noises)
    weights = shape.table(program, halves, X0 if clamp else None, estimate=True)
    tails = shape.table(lower(plan, Identity()), (), COND)
    follows = tails[:, :, 1 + parts + entries]
    if clamp:  # the clamped estimate is a column: only what weighs the unclamped one follows
        raw = shape.table(lower(plan, Identity(), Constraints(clamp=True)), (COND,), X0)
        follows = raw[:, :, 1 + parts]
    line = _line(plan)
    a, _ = outputs.affine(plan.call_times)
    return Tables(
        halves,
        weights,
        np.concatenate([np.ones((len(follows), 1)), follows], axis=1),
        tails,
        line,
        np.array(a),
        weights[:, 0, 1 + parts : 1 + parts + len(halves)].copy(),
        entries,
        noises,
        parts,
        _gains(tails, line[:, GAIN], entries, parts, noises),
        program.opening,
    )


def _without_terms(outputs: Any) -> Any:
    """Returns what outputs mean, without guidance terms."""
    return _WithoutTerms(outputs)


class _WithoutTerms:
    """What outputs mean, without guidance terms."""

    guides = ()

    def __init__(self, outputs: Any):
        """Keeps what the outputs mean."""
        self._outputs = outputs

    def __getattr__(self, name: str) -> Any:
        """Returns what is asked for."""
        return getattr(self._outputs, name)


def _by_age(program: Program) -> Iterator[list[Row]]:
    """Yields the rows of each stage, entries named by how many stages ago they were made."""
    made: dict[str, int] = {}
    for i, stage in enumerate(program.stages):
        names = {name: f"age{i - maker}" for name, maker in made.items()}
        yield [
            replace(row, weights={names.get(n, n): w for n, w in row.weights.items()})
            for row in stage.rows.values()
        ]
        if stage.slot >= 0:
            made[slot_name(stage.slot)] = i


class _Shape(NamedTuple):
    """What the rows and columns of a plan's tables are."""

    entries: int
    parts: bool
    noises: int

    def table(
        self, program: Program, outputs: tuple[str, ...], last: str | None, estimate=False
    ) -> np.ndarray:
        """Returns [S, rows, columns]: (x0 estimate), entry, carried register, x.

        Columns are the carried register, x, the outputs, the entries and the last one.
        """
        carried = program.carried[0] if self.parts else X
        names = [carried, *[X] * self.parts, *outputs]
        names += [f"age{age}" for age in range(self.entries, 0, -1)]
        names += [] if last is None else [last]
        made = estimate + bool(self.entries) + self.parts + 1
        weights = np.zeros((len(program.stages), made, len(names) + self.noises))
        one = True  # the carried register and x are one tensor when the stage begins
        for i, (stage, rows) in enumerate(zip(program.stages, _by_age(program), strict=True)):
            named = dict(zip(stage.rows, rows, strict=True))
            listed = [stage.x0] if estimate else []
            listed += [named.get(H, Row({}))] if self.entries else []
            if self.parts:
                stays = Row({carried: 1.0})
                listed.append(stays if carried in stage.keeps else named.get(carried, named[X]))
            for r, row in enumerate([*listed, named[X]]):
                for name, weight in row.weights.items():
                    name = carried if name == X and one else name
                    weights[i, r, names.index(name)] += weight
                weights[i, r, len(names) :] = (row.noise, row.second)[: self.noises]
            one = not self.parts or not _parted(stage, carried)
        return weights


def _parted(stage: Stage, carried: str) -> bool:
    """Returns whether the carried register is a tensor of its own after the stage."""
    return carried in stage.rows or carried in stage.keeps or (carried != V and not stage.joined)


def _line(plan) -> np.ndarray:
    """Returns [S, 4]: alpha, sigma, 1 / sigma, and the gain d x0 / d x of N(0, 1) data."""
    times = plan.call_times
    alpha, sigma = plan.schedule.alpha(times), plan.schedule.sigma(times)
    inverse = np.divide(1.0, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    return np.stack([alpha, sigma, inverse, alpha / (alpha**2 + sigma**2)], axis=1)


def _gains(tails, gain, entries, parts, noises) -> np.ndarray:
    """Returns [S + 1], by the adjoint of the stages, from the last to the first."""
    stages = len(tails)
    x0 = 1 + parts + entries
    # What is carried: x, the register beside x (with parts), entries newest first.
    after = np.zeros(1 + parts + entries)
    after[0] = 1.0
    gains = np.ones(stages + 1)
    for i in range(stages - 1, -1, -1):
        rows = tails[i].copy()
        at_point = int(parts)
        rows[:, at_point] += rows[:, x0] * gain[i]
        before = np.zeros_like(after)

        def add(weight, row, before=before, at_point=at_point):
            before[0] += weight * row[at_point]
            if parts:
                before[1] += weight * row[0]
            for age in range(1, entries + 1):
                before[parts + age] += weight * row[x0 - age]

        add(after[0], rows[-1])
        if parts:
            add(after[1], rows[-2])
        if entries:
            add(after[1 + parts], rows[0])
            before[1 + parts : -1] += after[2 + parts :]
        after = before
        gains[i] = abs(after[0]) + (abs(after[1]) if parts else 0.0)
    return gains
