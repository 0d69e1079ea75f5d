"""Places between the steps of a plan at which something else may move x: where, and at what level.

A corrector and a Metropolis chain move x at a fixed level. They can do so where a step of the plan
begins at x alone: where y, if the plan has one, is the same tensor, and no second input is carried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffast.plans.plan import Plan
from diffast.plans.registers import ERROR, H, V, X, Y, levels_of

Where = str | Sequence[int] | Callable[[float], bool] | None

# Below this relative difference a level is that of the time that is told next; below the other it
# needs no scale.
_SAME, _NEAR = 1e-9, 1e-6


@dataclass(frozen=True)
class Place:
    """A place between two steps.

    Attributes:
        number: of the step that begins there; the number of steps at the plan's end.
        before: how many of the plan's stages come before it.
        time: model time.
        level: (alpha, sigma) of that time.
        scale: what x has to be multiplied by to stand at that level. It is 1 but in tuned plans,
            which call the network on x of another size than the schedule's.
    """

    number: int
    before: int
    time: float
    level: tuple[float, float]
    scale: float = 1.0


def places(who: str, plan: Plan) -> list[Place]:
    """Returns where steps of the plan begin at x alone, and the plan's end.

    Raises:
        ValueError: no step does; an x that stands at the level of no model time. The message begins
            with `who`, the public function.
    """
    called = np.any(plan.called, axis=1)
    joined = np.ones(plan.stages, dtype=bool)
    x = plan.matrix[:, plan.rows.index(X)]
    for r, name in enumerate(plan.rows):
        if name == Y:
            joined &= np.all(plan.matrix[:, r] == x, axis=1)
        elif name not in (X, H, V, ERROR):
            joined &= ~plan.matrix[:, r].any(axis=1)
    joined[-1] = True
    # Noise that a silent stage puts back belongs to the step that follows.
    if plan.gradients is not None:
        called = called | ~np.isnan(plan.gradients)
    after = np.flatnonzero(joined & called)
    if not called[-1] and (not len(after) or after[-1] != plan.stages - 1):
        after = np.append(after, plan.stages - 1)
    if len(after) == 1 and plan.steps > 1:
        raise ValueError(
            f"{who}: no step of {plan.name} begins at x alone: what is carried beside x would "
            "belong to another state"
        )
    starts = [(0, levels_of(plan.schedule, plan.start), float(plan.start or 0.0))]
    for i in after.tolist():
        following = plan.times.reshape(plan.stages, -1)[i + 1 :, 0]
        following = following[~np.isnan(following)]
        told = plan.end if not len(following) else float(following[0])
        starts.append((i + 1, plan.levels[i, plan.rows.index(X)], told))
    found: list[Place] = []
    for before, level, told in starts:
        time, scale = _time(who, plan, level, told)
        alpha, sigma = (float(part) * scale for part in level)
        place = Place(len(found), before, time, (alpha, sigma), scale)
        if found and place.time == found[-1].time and place.level == found[-1].level:
            found.pop()  # a stage that moves x at one level, such as a guidance half-step
            place = replace(place, number=len(found))
        found.append(place)
    return found


def _time(who: str, plan: Plan, level: np.ndarray, told: float) -> tuple[float, float]:
    """Returns the model time of a level, and the scale to it.

    It is the time that is told next, if x stands at its level; else the time of the same log-SNR.
    """
    alpha, sigma = level
    if np.allclose(levels_of(plan.schedule, told), level, rtol=_SAME, atol=0.0) or sigma == 0.0:
        return told, 1.0
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    try:
        found = float(plan.schedule.time(lam))
    except ValueError as error:
        raise ValueError(
            f"{who}: {plan.name} has x at alpha = {alpha:.6g}, sigma = {sigma:.6g}, but "
            f"{plan.schedule} has this ratio at no model time: {error}"
        ) from None
    scale = float(plan.schedule.sigma(found)) / sigma
    return found, 1.0 if abs(scale - 1.0) < _NEAR else scale


def chosen(who: str, plan: Plan, places: list[Place], where: Where) -> list[Place]:
    """Returns those of the places that are asked for, in order.

    Args:
        who: the public function, which messages begin with.
        plan: the plan.
        places: of `places`.
        where: None or "all": after each step that ends at sigma > 0. "last": after the last of
            these. Whole numbers: k is after k steps, 0 before the first one, -1 at the plan's end.
            A function: after each step that ends at sigma > 0 at a model time for which it is true.

    Raises:
        ValueError: a place that there is not, or at sigma = 0.
    """
    noisy = [place for place in places[1:] if place.level[1] > 0.0]
    if where is None or where == "all":
        return noisy
    if isinstance(where, str):
        if where != "last":
            raise ValueError(
                f"{who}: where = {where!r}, but it must be 'all', 'last', whole numbers or a "
                "function of the model time"
            )
        return noisy[-1:]
    if callable(where):
        return [place for place in noisy if where(place.time)]
    numbers = set()
    for k in np.atleast_1d(np.asarray(where)).tolist():
        if not isinstance(k, int) or isinstance(k, bool) or not -len(places) <= k < len(places):
            raise ValueError(
                f"{who}: where has {k!r}, but {plan.name} has the places 0 to {len(places) - 1}"
            )
        place = places[k]
        if place.level[1] == 0.0:
            raise ValueError(
                f"{who}: where has {k}, but sigma = 0 there (t = {place.time:g}), where the score "
                "has no value"
            )
        numbers.add(place.number)
    return [places[k] for k in sorted(numbers)]


def last_reads(plan: Plan) -> dict[int, int]:
    """Returns the last stage that reads a remembered entry, by the stage that made the entry.

    Entries that a plan starts with are those of stage -1.
    """
    ages = [(int(name[1:]), c) for c, name in enumerate(plan.columns) if name[0] == H]
    made = np.any(plan.matrix[:, 0], axis=1) & (H in plan.rows)
    own = [] if plan.initial is None else [-1] * plan.initial.entries
    last: dict[int, int] = {}
    read = np.any(plan.matrix, axis=1)
    for i in range(plan.stages):
        for age, c in ages:
            if age and read[i, c]:
                last[own[-age]] = i
        if made[i]:
            own.append(i)
    return last
