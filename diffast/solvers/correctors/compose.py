"""`predictor_corrector`: visits of a corrector put between the steps of any plan.

A visit's stages are added to the plan's table. They write x and, where the plan has it, y as the
same tensor. So a visit can stand where a step of the plan begins at x alone, and only there. The
entries of a multistep plan go on across a visit, see insert.py.
"""

from __future__ import annotations

import numpy as np

from diffast.plans import Plan
from diffast.plans.places import Place, Where, chosen, places
from diffast.plans.registers import V
from diffast.solvers.correctors.corrector import Corrector, whole
from diffast.solvers.correctors.insert import inserted
from diffast.solvers.correctors.parse import Named, corrector_of

_WHO = "predictor_corrector"


def predictor_corrector(
    plan: Plan, corrector: Corrector | str, *, n: int | None = None, where: Where = None
) -> Plan:
    """Returns the plan with a Langevin corrector between its steps.

    At each place the corrector makes n network calls at the model time where x stands, and moves x
    within the law of that time. That undoes errors of earlier steps, of the network at higher noise
    and of the start; it adds an error of its own, that of the corrector's step. A wrong estimate at
    the place itself is not mended. Chen et al. 2023, "The probability flow ODE is provably fast".

    The corrector walks in the law of the x0 estimate as the run has it: with guidance in that of
    the guided estimate, with a clamp in that of the clamped one, and of a plan that weighs the
    gradients of guidance terms itself, in the law of the estimate and these. With n = 0 the plan
    comes back as it is. Otherwise the noise level at a finite step of the corrector is not exact,
    so the plan is checked for x0 alone, and `made_for` of a tuned plan is left out.

    Tuned plans may have x at another size than the schedule's: x is then scaled to the schedule's
    level for the visit and back after it, and the corrector's calls are told the time of that
    level.

    Remembered entries of a multistep plan are moved along with the state: an entry e is read as
    e + (new - old), where old and new are the entries of the network's answers at the place, before
    the visit and after it. One more entry is remembered for that. See docs/correctors.md.

    Args:
        plan: any plan whose steps begin at x alone.
        corrector: of `df.correctors`, or a text such as "ulmc:n=2,step=0.3" or
            "baoab:n=12,low=0.8,high=1.6", see `df.correctors.parse`.
        n: network calls of a visit; None: what the text says, else 1.
        where: after which steps. None or "all": after each step that ends at sigma > 0. "last":
            after the last of these. Whole numbers: k is after k steps, 0 before the first one, -1
            at the plan's end. A function: after each step that ends at sigma > 0 at a model time
            for which it is true.

    Raises:
        ValueError: a plan that carries more than x from step to step (a state y, a momentum, a
            second input), weighs several gradients one by one, or whose x stands at the level of no
            model time; a place that there is not, or at sigma = 0; two numbers of calls; what
            `df.correctors.parse` raises.
    """
    named = corrector_of(_WHO, corrector)
    corrector, said = named.corrector, named.n
    if n is not None and said is not None and n != said:
        raise ValueError(f"{_WHO}: n = {n} is given, but the corrector's text says n = {said}")
    calls = whole(_WHO, next((k for k in (n, said) if k is not None), 1))
    _check_plan(plan)
    at = _within(plan, named, chosen(_WHO, plan, places(_WHO, plan), where))
    if not calls or not at:
        return plan
    guided = plan.gradients is not None
    visits = [(p, corrector.visit(p.time, *p.level, calls, guided=guided)) for p in at]
    _check_momentum(plan, visits)
    return inserted(plan, visits, f"{plan.name} + {corrector.name}({calls})")


def _within(plan: Plan, named: Named, at: list[Place]) -> list[Place]:
    """Returns the places whose sigma/alpha is within the limits that a text says."""
    if named.low is None and named.high is None:
        return at
    low = 0.0 if named.low is None else named.low
    high = np.inf if named.high is None else named.high
    # alpha may be 0 at the start
    found = [
        place for place in at if low * place.level[0] <= place.level[1] <= high * place.level[0]
    ]
    if not found:
        ratios = [place.level[1] / place.level[0] for place in at if place.level[0]]
        raise ValueError(
            f"{_WHO}: the corrector's text asks for sigma/alpha of {low:g} to {high:g}, but the "
            f"steps of {plan.name} end at {', '.join(f'{ratio:.3g}' for ratio in ratios)}"
        )
    return found


def _check_plan(plan: Plan) -> None:
    gradients = [column for column in plan.columns if column[0] == "g"]
    if gradients not in ([], ["g1"]):
        raise ValueError(
            f"{_WHO}: {plan.name} weighs the gradients {', '.join(gradients)} one by one, but a "
            "corrector needs the gradient of all guidance terms, which is g1 where it is alone"
        )


def _check_momentum(plan: Plan, visits: list) -> None:
    """Refuses a momentum of the plan's own where a visit needs the register."""
    if V not in plan.rows or not any(V in rows for _, visit in visits for rows in visit):
        return
    held = np.any(plan.matrix[:, plan.rows.index(V)], axis=1)
    for place, _ in visits:
        if place.before and held[place.before - 1]:
            raise ValueError(
                f"{_WHO}: {plan.name} holds a momentum after stage {place.before - 1}, but the "
                "corrector needs the register v: take 'overdamped'"
            )
