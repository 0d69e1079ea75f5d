"""Going back by noise: parts of a plan are run again from a noisier state.

Raising a state from (alpha, sigma) to an earlier, noisier (alpha_hat, sigma_hat) is

    x_hat = g x + sqrt(sigma_hat^2 - g^2 sigma^2) z,        g = alpha_hat / alpha

which needs no network call. It is multiplied into the row that ends the part.
"""

from __future__ import annotations

import operator
from dataclasses import replace

import numpy as np

from diffast.plans import Plan
from diffast.plans.registers import NEW, Z1, Z2, H, X, Y, column_key, levels_of


def resampled(
    plan: Plan, jump: int = 1, times: int = 2, where: tuple[float, float] = (0.0, np.inf)
) -> Plan:
    """Returns the plan with each part of `jump` steps run `times` times.

    After a part, noise is put back up to the level at which the part began, and the part is run
    again. Where something outside of the plan pulls the state (a known region, a measurement, a
    gradient), the repeats let the rest of the image follow. It is the resampling of RePaint
    (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1, for jump = 1) and the time travel of
    FreeDoM (Yu et al. 2023, arXiv:2303.09833, algorithm 2). Parts are counted from the end; the
    first steps that fill no part are run once.

    Args:
        plan: a plan whose steps remember nothing of earlier steps: `euler`, `ddim`, `heun`, other
            one-step solvers.
        jump: steps of a part.
        times: how often a part is run in all; 1 for a plan as it was.
        where: (low, high) of sigma/alpha at the end of a part: other parts are run once.

    Raises:
        ValueError: numbers that are not whole and positive; more steps in a part than the plan has;
            a range that holds no end of a part; a plan that remembers estimates of earlier steps,
            carries a momentum, or draws noise into an entry.
    """
    for name, value in (("jump", jump), ("times", times)):
        try:
            fits = operator.index(value) >= 1 and not isinstance(value, bool)
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"resampled: {name} = {value!r}, but it must be a whole number from 1")
    low, high = where
    if not 0 <= low <= high:
        raise ValueError(f"resampled: where = ({low}, {high}), but 0 <= low <= high")
    borders = _borders(plan)
    steps = len(borders) - 1
    if jump > steps:
        raise ValueError(
            f"resampled: jump = {jump}, but plan {plan.name} has {steps} steps that can be repeated"
        )
    _check_memory(plan, borders)
    if times == 1:
        return plan

    row = plan.rows.index(X)
    before = np.concatenate([levels_of(plan.schedule, _start(plan))[None], plan.levels[:, row]])
    clocks = np.append(_start(plan), np.asarray(plan.spans)[:, 1])
    order: list[int] = list(range(borders[steps % jump]))
    lifts: list[tuple[int, int]] = []  # (place in the new plan, stage where the part begins)
    repeated = 0
    for first in range(steps % jump, steps, jump):
        part = range(borders[first], borders[first + jump])
        alpha, sigma = before[part.stop]
        again = low <= sigma / alpha <= high
        repeated += again
        for _ in range((times - 1) * again):
            order += part
            lifts.append((len(order) - 1, part.start))
        order += part
    if not repeated:
        raise ValueError(
            f"resampled: where = ({low:g}, {high:g}), but no part of plan {plan.name} ends at such "
            "a sigma/alpha"
        )

    columns = tuple(sorted({*plan.columns, Z1}, key=column_key))
    matrix = np.zeros((len(order), len(plan.rows), len(columns)))
    matrix[:, :, [columns.index(column) for column in plan.columns]] = plan.matrix[order]
    levels, spans = plan.levels[order].copy(), np.asarray(plan.spans)[order]
    joined = [plan.rows.index(name) for name in (X, Y) if name in plan.rows]
    fresh = columns.index(Z1)
    for place, begin in lifts:
        (alpha, sigma), (alpha_hat, sigma_hat) = before[order[place] + 1], before[begin]
        grow = alpha_hat / alpha
        part = grow * sigma
        added = (sigma_hat - part) * (sigma_hat + part)
        matrix[place, joined] *= grow
        own = matrix[place, row, fresh]
        matrix[place, joined, fresh] = np.sqrt(own**2 + added)
        levels[place, joined] = before[begin]
        spans[place] = clocks[order[place] + 1], clocks[begin]
    return replace(
        plan,
        times=plan.times[order],
        start=plan.start,
        columns=columns,
        matrix=matrix,
        levels=levels,
        spans=spans,
        guidance=None if plan.guidance is None else plan.guidance[order],
        gradients=None if plan.gradients is None else plan.gradients[order],
        blocks=None,
        made_for=None,
        steps=plan.steps + jump * len(lifts),
        name=f"resampled({plan.name}, jump={jump}, times={times})",
    )


def _start(plan: Plan) -> float:
    return float(np.nan if plan.start is None else plan.start)


def _borders(plan: Plan) -> list[int]:
    """Returns the stages at which steps begin, and the number of stages at last."""
    calls = plan.calls[plan.step_starts()]
    # noise before the first call belongs to no step
    return [*map(int, calls), plan.stages]


def _check_memory(plan: Plan, borders: list[int]) -> None:
    """Raises ValueError for a plan whose steps cannot be run again."""
    carried = sorted({*plan.rows} - {H, X, Y})
    if carried:
        raise ValueError(
            f"resampled: plan {plan.name} carries {carried[0]} from step to step, but steps that "
            "are run again may carry the state alone: take a one-step plan (euler, ddim, heun)"
        )
    if H not in plan.rows:
        return
    entries = plan.matrix[:, plan.rows.index(H)]
    if any(plan.weights(H, z).any() for z in (Z1, Z2)):
        raise ValueError(f"resampled: plan {plan.name} draws noise into what it remembers")
    ages = [(k, int(c[1:])) for k, c in enumerate(plan.columns) if c[0] == H and c != NEW]
    for begin, stop in zip(borders[:-1], borders[1:], strict=True):
        made = 0
        for stage in range(begin, stop):
            for k, age in ages:
                if age > made and plan.matrix[stage, :, k].any():
                    raise ValueError(
                        f"resampled: plan {plan.name} remembers estimates of earlier steps at "
                        f"stage {stage}, but steps that are run again may not: take a one-step "
                        "plan (euler, ddim, heun)"
                    )
            made += bool(entries[stage].any())
