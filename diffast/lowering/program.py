"""A plan and a denoiser multiplied out: for each stage, the rows of one `combine` call.

What the network predicts and its guidance are linear, so they disappear into the plan's numbers:
each row here weighs the tensors themselves (anchor, model input, raw network outputs, remembered
entries). Which buffer holds what is the executor's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from diffast.plan import Plan

# Tensors that rows weigh. A remembered entry is ("history", stage that made it).
ANCHOR, INPUT, COND, UNCOND, X0 = "anchor", "input", "cond", "uncond", "x0"

# The fresh normals, where a caller gives them as a tensor.
NOISE = "noise"

# What rows make.
POINT, ENTRY = "point", "entry"


@dataclass(frozen=True)
class Row:
    """One linear combination: weights by tensor name, and those of the two fresh normals."""

    weights: dict
    noise: float = 0.0
    second: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One network call and the rows that follow it.

    Args:
        time: model time of the call.
        halves: "cond", "uncond" or "both": what the network is called on.
        x0: the x0 estimate from input and outputs.
        point: the next model input.
        anchor: the next anchor; None: the anchor stays; equal to `point`: they are one tensor.
        entry: what is remembered; None: nobody asks for it later.
        forget: stages whose remembered entries nobody asks for after this one.
    """

    time: float
    halves: str
    x0: Row
    point: Row
    anchor: Row | None
    entry: Row | None
    forget: tuple[int, ...]


# What was built for a plan, by the numbers that went in: users run a plan many times over.
_built: WeakKeyDictionary = WeakKeyDictionary()
_KEPT = 8


def build(plan: Plan, denoiser, fold: bool = True) -> tuple[Stage, ...]:
    """Returns the stages of the plan for that denoiser, [S].

    Args:
        plan: the solver's tables.
        denoiser: gives `affine(times)` and `scales(times)`.
        fold: True: rows weigh the network's outputs; False: they weigh the tensor "x0", which
            something not linear (a clamp, a hook) has been done to.

    Raises:
        ValueError: what `denoiser.affine` and `denoiser.scales` raise.
    """
    a, b = denoiser.affine(plan.times)
    scales = denoiser.scales(plan.times)
    key = (a.tobytes(), b.tobytes(), scales.tobytes(), fold)
    kept = _built.setdefault(plan, {})
    if key not in kept:
        if len(kept) == _KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = _build(plan, a.tolist(), b.tolist(), scales.tolist(), fold)
    return kept[key]


def _build(plan: Plan, a: list, b: list, scales: list, fold: bool) -> tuple[Stage, ...]:
    times, read = plan.times.tolist(), plan.read.tolist()
    point, anchor = plan.point.tolist(), plan.anchor.tolist()
    direct = None if plan.direct is None else plan.direct.tolist()
    second = [[0.0, 0.0]] * plan.stages if plan.second is None else plan.second.tolist()
    uses = _uses(plan)
    keep = [1.0] + [0.0] * (plan.history + 1)
    stages = []
    # Whether anchor and model input are one tensor, before the stage.
    together = True
    for i in range(plan.stages):
        halves, outputs = _outputs(scales[i], b[i])
        x0 = {INPUT: a[i], **outputs}
        entry = _scaled(read[i][1], x0 if fold else {X0: 1.0})
        entry[INPUT] = entry.get(INPUT, 0.0) + read[i][0]
        rows = {}
        for r, (name, table) in enumerate((("point", point[i]), ("anchor", anchor[i]))):
            weights = _scaled(table[2], entry)
            weights[ANCHOR] = weights.get(ANCHOR, 0.0) + table[0]
            if direct is not None:
                _add(weights, {INPUT: direct[i][r][0]})
                _add(weights, _scaled(direct[i][r][1], x0))
            for back, weight in enumerate(table[3:], 1):
                if weight != 0.0:
                    weights[("history", i - back)] = weight
            rows[name] = Row(_tidy(weights, together), table[1], second[i][r])
        beside = [[0.0, 0.0]] * 2 if direct is None else direct[i]
        keeps = anchor[i] == keep and beside[1] == [0.0, 0.0] and second[i][1] == 0.0
        joins = point[i] == anchor[i] and beside[0] == beside[1] and second[i][0] == second[i][1]
        stays = keeps and not (together and joins)
        stages.append(
            Stage(
                time=times[i],
                halves=halves,
                x0=Row(_tidy(x0, together)),
                point=rows["point"],
                anchor=None if stays else rows["anchor"],
                entry=Row(_tidy(entry, together)) if uses[i] else None,
                forget=tuple(j for j in range(i) if uses[j] and uses[j][-1] == i),
            )
        )
        together = joins
    return tuple(stages)


def _outputs(scale: float, b: float) -> tuple[str, dict]:
    if scale == 1.0:
        return "cond", {COND: b}
    if scale == 0.0:
        return "uncond", {UNCOND: b}
    return "both", {COND: b * scale, UNCOND: b * (1.0 - scale)}


def _scaled(factor: float, weights: dict) -> dict:
    return {name: factor * weight for name, weight in weights.items()}


def _add(weights: dict, more: dict) -> None:
    for name, weight in more.items():
        weights[name] = weights.get(name, 0.0) + weight


def _tidy(weights: dict, together: bool) -> dict:
    """Returns the weights without zeros, the input's added to the anchor's where they are one."""
    weights = dict(weights)
    if together and INPUT in weights:
        weights[ANCHOR] = weights.get(ANCHOR, 0.0) + weights.pop(INPUT)
    return {name: weight for name, weight in weights.items() if weight != 0.0}


def _uses(plan: Plan) -> list[list[int]]:
    """Returns, for each stage, the later stages that ask for the entry it made."""
    asked = (plan.point[:, 2:] != 0.0) | (plan.anchor[:, 2:] != 0.0)  # [S, H]
    later = [[] for _ in range(plan.stages)]
    for i, back in np.argwhere(asked):
        if back > 0:
            later[i - back].append(int(i))
    return later


def check_one_noise(plan: Plan, who: str) -> None:
    """Raises ValueError if a stage draws two normals, where one can be given from outside."""
    if plan.second is not None:
        i = int(np.flatnonzero(plan.second.any(1))[0])
        raise ValueError(
            f"{who}: {plan.name} draws 2 normals at stage {i}, but 1 a stage can be given"
        )


def flatten(
    rows: list[Row], index: dict, given_noise: bool = False, clamp: bool = False
) -> tuple[tuple, list[float], list[float]]:
    """Returns (columns, weights, noise) of rows as a `combine` call wants them.

    The noise is [rows, M] flattened: M = 2 if a row weighs the second normal, else 1; empty if none
    weighs any.

    Args:
        rows: what the call makes.
        index: what stands for each name, in the order of the sums.
        given_noise: the fresh normals are a column of their own, under the name NOISE; for plans
            that pass `check_one_noise`.
        clamp: row 0 is the x0 estimate, whose clamped self is the last column of all rows.
    """
    noise = [row.noise for row in rows]
    if given_noise and any(noise):
        rows = [Row(row.weights | {NOISE: row.noise}) for row in rows]
    if any(row.second for row in rows):
        noise = [weight for row in rows for weight in (row.noise, row.second)]
    used = set().union(*(row.weights for row in rows))
    if clamp:  # the clamped row is the last column, not a tensor
        used.discard(X0)
    names = [name for name in index if name in used]
    weighed = [*names, X0] if clamp else names
    return (
        tuple(index[name] for name in names),
        [row.weights.get(name, 0.0) for row in rows for name in weighed],
        noise if any(noise) and not given_noise else [],
    )
