"""A plan as the tables of `sweep`: its rows, how they follow a changed estimate, and its gains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.lowering import program
from diffast.lowering.program import ANCHOR, COND, INPUT, UNCOND, X0
from diffast.plan import Plan

# Columns of `Tables.line`.
ALPHA, SIGMA, INVERSE, GAIN = range(4)


@dataclass(frozen=True)
class Tables:
    """What `sweep` reads of a plan, S stages; float64 numpy arrays.

    Args:
        outputs: what of the network's answer the rows weigh: (COND,), (UNCOND,) or both.
        weights: [S, rows, columns], the rows of a stage over the tensors themselves.
        changes: [S, rows], how each row follows a change of the x0 estimate.
        tails: [S, rows - 1, columns], the rows of a stage over a given x0 estimate.
        line: [S, 4] of (alpha, sigma, 1 / sigma or 0, gain of the prior).
        own: [S], the part a of x0 = a x + b output that follows the point by itself.
        slope: [S, outputs], the parts b.
        entries: how many remembered entries a walk carries.
        noises: normals a stage.
        parts: whether any anchor differs from its point.
        gains: [S + 1], change of the sample per change of the point at each stage, if the data were
            N(0, 1).
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

    @property
    def simple(self) -> bool:
        """Returns whether the point is all that a walk carries."""
        return not self.entries and not self.parts


def tables_of(plan: Plan, denoiser, clamp: bool = False) -> Tables:
    """Returns the plan's tables for that denoiser.

    Args:
        plan: a solver's tables.
        denoiser: gives `affine(times)` and `scales(times)`.
        clamp: the x0 estimate is clamped before the other rows see it.

    Raises:
        ValueError: what `denoiser.affine` and `denoiser.scales` raise.
    """
    stages = program.build(plan, denoiser, fold=not clamp)
    halves = {stage.halves for stage in stages}
    outputs = (COND, UNCOND) if len(halves) > 1 or "both" in halves else (*halves,)
    outputs = tuple({"cond": COND, "uncond": UNCOND}.get(name, name) for name in outputs)
    ages = [i - j for i, stage in enumerate(stages) for j in _read(stage)]
    entries = max(ages, default=0)
    parts = any(stage.anchor != stage.point for stage in stages)
    noises = 0 if not plan.stochastic else 1
    if any(row.second for stage in stages for row in (stage.point, stage.anchor) if row):
        noises = 2
    follows, tails = _by_estimate(plan, entries, parts, noises)
    weights = _over_tensors(stages, outputs, entries, parts, noises, clamp)
    line = _line(plan)
    changes = follows.copy()
    if clamp:  # the clamped estimate is a column: only what weighs the unclamped one follows
        changes[:, 1:] = 0.0
        if plan.direct is not None:
            changes[:, -1] = plan.direct[:, 0, 1]
            if parts:
                changes[:, -2] = plan.direct[:, 1, 1]
    a, _ = denoiser.affine(plan.times)
    at = [1 + parts + k for k in range(len(outputs))]
    return Tables(
        outputs,
        weights,
        changes,
        tails,
        line,
        np.array(a),
        weights[:, 0, at],
        entries,
        noises,
        parts,
        _gains(tails, line[:, GAIN], entries, parts, noises),
    )


def _read(stage) -> list[int]:
    rows = [row for row in (stage.point, stage.anchor) if row is not None]
    return [name[1] for row in rows for name in row.weights if isinstance(name, tuple)]


def _over_tensors(stages, outputs, entries, parts, noises, clamp) -> np.ndarray:
    """Returns [S, rows, columns]: x0 estimate, entry, anchor, point."""
    names = [ANCHOR, *[INPUT] * parts, *outputs, *range(entries, 0, -1), *[X0] * clamp]
    made = 2 + bool(entries) + parts
    weights = np.zeros((len(stages), made, len(names) + noises))
    for i, stage in enumerate(stages):
        rows = [stage.x0]
        if entries:
            rows.append(stage.entry or program.Row({}))
        if parts:
            rows.append(stage.anchor or program.Row({ANCHOR: 1.0}))
        rows.append(stage.point)
        for r, row in enumerate(rows):
            for name, weight in row.weights.items():
                name = i - name[1] if isinstance(name, tuple) else name
                # Without parts anchor and point are one.
                name = ANCHOR if name == INPUT and not parts else name
                weights[i, r, names.index(name)] += weight
            fresh = (row.noise, row.second)[:noises]
            weights[i, r, len(names) : len(names) + noises] = fresh
    return weights


def _by_estimate(plan, entries, parts, noises) -> tuple[np.ndarray, np.ndarray]:
    """Returns how the rows follow the x0 estimate, [S, rows], and the rows over it."""
    stages = plan.stages
    made = 2 + bool(entries) + parts
    x0 = 1 + parts + entries
    rows = np.zeros((stages, made - 1, x0 + 1 + noises))
    direct = np.zeros((stages, 2, 2)) if plan.direct is None else plan.direct
    second = np.zeros((stages, 2)) if plan.second is None else plan.second
    together = True
    for i in range(stages):
        tables = [(plan.point[i], direct[i, 0], second[i, 0])]
        if parts:
            tables.insert(0, (plan.anchor[i], direct[i, 1], second[i, 1]))
        base = made - 1 - len(tables)
        for r, (table, beside, other) in enumerate(tables, base):
            of_input = table[2] * plan.read[i, 0] + beside[0]
            rows[i, r, 0] = table[0]
            rows[i, r, int(parts and not together)] += of_input
            for back in range(1, min(len(table) - 2, entries + 1)):
                rows[i, r, x0 - back] = table[2 + back]
            rows[i, r, x0] = table[2] * plan.read[i, 1] + beside[1]
            rows[i, r, x0 + 1 : x0 + 1 + noises] = (table[1], other)[:noises]
        if base:
            rows[i, 0, int(parts and not together)] += plan.read[i, 0]
            rows[i, 0, x0] = plan.read[i, 1]
        together = np.array_equal(plan.point[i], plan.anchor[i])
        together = together and np.array_equal(direct[i, 0], direct[i, 1])
        together = together and second[i, 0] == second[i, 1]
    return np.concatenate([np.ones((stages, 1)), rows[:, :, x0]], axis=1), rows


def _line(plan) -> np.ndarray:
    """Returns [S, 4]: alpha, sigma, 1 / sigma, and the gain d x0 / d x of N(0, 1) data."""
    alpha, sigma = plan.schedule.alpha(plan.times), plan.schedule.sigma(plan.times)
    inverse = np.divide(1.0, sigma, out=np.zeros_like(sigma), where=sigma > 0)
    return np.stack([alpha, sigma, inverse, alpha / (alpha**2 + sigma**2)], axis=1)


def _gains(tails, gain, entries, parts, noises) -> np.ndarray:
    """Returns [S + 1], by walking the adjoint of the stages from the end."""
    stages = len(tails)
    x0 = 1 + parts + entries
    # What a walk carries: point, anchor (with parts), entries newest first.
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
