"""`predictor_corrector`: visits of a corrector put between the steps of any plan.

A visit's stages are added to the plan's table. They write x and, where the plan has it, y as the
same tensor. So a visit can stand where a step of the plan begins at x alone, and only there. The
entries of a multistep plan go on across a visit, see insert.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffast.plans import Plan
from diffast.plans.registers import ERROR, H, V, X, Y, levels_of
from diffast.solvers.correctors.corrector import Corrector, whole
from diffast.solvers.correctors.insert import Place, inserted
from diffast.solvers.correctors.parse import corrector_of

Where = str | Sequence[int] | Callable[[float], bool] | None

_WHO = "predictor_corrector"
# A level and that of a model time are the same below this relative difference.
_SAME = 1e-9


def predictor_corrector(
    plan: Plan, corrector: Corrector | str, *, n: int | None = None, where: Where = None
) -> Plan:
    """Returns the plan with a Langevin corrector between its steps.

    At each place the corrector makes n network calls at the model time where x stands, and moves x
    within the law of that time. That undoes errors of earlier steps, of the network at higher noise
    and of the start; it adds an error of its own, that of the corrector's step. A wrong estimate at
    the place itself is not mended. Chen et al. 2023, "The probability flow ODE is provably fast".

    The corrector walks in the law of the x0 estimate as the run has it: with guidance in that of
    the guided estimate, with a clamp in that of the clamped one. With n = 0 the plan comes back as
    it is. Otherwise the noise level at a finite step of the corrector is not exact, so the plan is
    checked for x0 alone, and annotations of a tuned plan (`made_for`) are left out.

    Remembered entries of a multistep plan are moved along with the state: an entry e is read as
    e + (new - old), where old and new are the entries of the network's answers at the place, before
    the visit and after it. One more entry is remembered for that. See docs/correctors.md.

    Args:
        plan: any plan whose steps begin at x alone.
        corrector: of `df.correctors`, or a text such as "ulmc:n=2,step=0.3", see
            `df.correctors.parse`.
        n: network calls of a visit; None: what the text says, else 1.
        where: after which steps. None or "all": after each step that ends at sigma > 0. "last":
            after the last of these. Whole numbers: k is after k steps, 0 before the first one, -1
            at the plan's end. A function: after each step that ends at sigma > 0 at a model time
            for which it is true.

    Raises:
        ValueError: a plan that carries more than x from step to step (a state y, a momentum, a
            second input), weighs gradients of guidance terms, or whose x stands at the level of no
            model time; a place that there is not, or at sigma = 0; two numbers of calls; what
            `df.correctors.parse` raises.
    """
    corrector, said = corrector_of(_WHO, corrector)
    if n is not None and said is not None and n != said:
        raise ValueError(f"{_WHO}: n = {n} is given, but the corrector's text says n = {said}")
    calls = whole(_WHO, next((k for k in (n, said) if k is not None), 1))
    _check_plan(plan)
    chosen = _chosen(plan, _places(plan), where)
    if not calls or not chosen:
        return plan
    visits = [(p, corrector.visit(p.time, *p.level, calls)) for p in chosen]
    _check_momentum(plan, visits)
    return inserted(plan, visits, f"{plan.name} + {corrector.name}({calls})")


def _check_plan(plan: Plan) -> None:
    gradients = [column for column in plan.columns if column[0] == "g"]
    if gradients:
        raise ValueError(
            f"{_WHO}: {plan.name} weighs the gradients {', '.join(gradients)} of guidance terms, "
            "but a corrector walks in the law of the x0 estimate alone and would undo them"
        )


def _places(plan: Plan) -> list[Place]:
    """Returns where steps of the plan begin at x alone, and the plan's end."""
    called = plan.called.any(axis=1)
    joined = np.ones(plan.stages, dtype=bool)
    x = plan.matrix[:, plan.rows.index(X)]
    for r, name in enumerate(plan.rows):
        if name == Y:
            joined &= (plan.matrix[:, r] == x).all(axis=1)
        elif name not in (X, H, V, ERROR):
            joined &= ~plan.matrix[:, r].any(axis=1)
    joined[-1] = True
    # Noise that a silent stage puts back belongs to the step that follows.
    after = np.flatnonzero(joined & called)
    if not called[-1] and (not len(after) or after[-1] != plan.stages - 1):
        after = np.append(after, plan.stages - 1)
    if len(after) == 1 and plan.steps > 1:
        raise ValueError(
            f"{_WHO}: no step of {plan.name} begins at x alone, but a corrector moves x, and what "
            "is carried beside it would belong to another state"
        )
    starts = [(0, levels_of(plan.schedule, plan.start), plan.start)]
    for i in after.tolist():
        following = plan.times.reshape(plan.stages, -1)[i + 1 :, 0]
        following = following[~np.isnan(following)]
        told = plan.end if not len(following) else float(following[0])
        starts.append((i + 1, plan.levels[i, plan.rows.index(X)], told))
    return [Place(k, p, _time(plan, lv, t), tuple(lv)) for k, (p, lv, t) in enumerate(starts)]


def _time(plan: Plan, level: np.ndarray, told: float) -> float:
    """Returns the model time of a level: the one that is told next, if it is its time."""
    alpha, sigma = level
    if np.allclose(levels_of(plan.schedule, told), level, rtol=_SAME, atol=0.0) or sigma == 0.0:
        return told
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    found = float(plan.schedule.time(lam)) if np.isfinite(lam) else float("nan")
    if not np.allclose(levels_of(plan.schedule, found), level, rtol=1e-6, atol=0.0):
        raise ValueError(
            f"{_WHO}: {plan.name} has x at alpha = {alpha:.6g}, sigma = {sigma:.6g}, but "
            f"{plan.schedule} is there at no model time, and the network has to be told one"
        )
    return found


def _chosen(plan: Plan, places: list[Place], where: Where) -> list[Place]:
    """Returns the places of visits, in order."""
    noisy = [place for place in places[1:] if place.level[1] > 0.0]
    if where is None or where == "all":
        return noisy
    if isinstance(where, str):
        if where != "last":
            raise ValueError(
                f"{_WHO}: where = {where!r}, but it must be 'all', 'last', whole numbers or a "
                "function of the model time"
            )
        return noisy[-1:]
    if callable(where):
        return [place for place in noisy if where(place.time)]
    numbers = set()
    for k in np.atleast_1d(np.asarray(where)).tolist():
        if not isinstance(k, int) or isinstance(k, bool) or not -len(places) <= k < len(places):
            raise ValueError(
                f"{_WHO}: where has {k!r}, but {plan.name} has the places 0 to {len(places) - 1}"
            )
        place = places[k]
        if place.level[1] == 0.0:
            raise ValueError(
                f"{_WHO}: where has {k}, but sigma = 0 there (t = {place.time:g}), where the score "
                "has no value"
            )
        numbers.add(place.number)
    return [places[k] for k in sorted(numbers)]


def _check_momentum(plan: Plan, visits: list) -> None:
    """Refuses a momentum of the plan's own where a visit needs the register."""
    if V not in plan.rows or not any(V in rows for _, visit in visits for rows in visit):
        return
    held = plan.matrix[:, plan.rows.index(V)].any(axis=1)
    for place, _ in visits:
        if place.before and held[place.before - 1]:
            raise ValueError(
                f"{_WHO}: {plan.name} holds a momentum after stage {place.before - 1}, but the "
                "corrector needs the register v: take 'overdamped'"
            )
