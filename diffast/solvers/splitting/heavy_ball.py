"""A heavy ball on any multistep method."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.plans.registers import MOMENTUM_LEVEL, X0_LEVEL
from diffast.schedules import Schedule
from diffast.solvers.core.docs import splitting_builder
from diffast.solvers.core.integrals import levels_at
from diffast.solvers.splitting.inner import inner_plan
from diffast.solvers.splitting.momentum import check_damping
from diffast.solvers.splitting.weave import Weave, Weights, summed


@splitting_builder
def heavy_ball(
    schedule: Schedule,
    grid: ArrayLike,
    inner: str | Callable[..., Plan] = "plms",
    order: int | None = None,
    damping: float = 0.8,
) -> Plan:
    """Returns a multistep method with a heavy ball. Order 1, 1 call a step.

    Each step of the inner method moves x by its weight w times a mean e' of remembered slopes or x0
    estimates. Here a velocity takes the place of e' (arXiv 2307.11118, algorithm 1):

        v = (1 - b) v + b e',      v = e' in the first step
        x_t = keep x_s + w v

    The smaller b is, the larger the steps at which the method is stable, and the larger the error
    of small steps. Momentum starts anew where the method changes from x0 to slopes (out of
    alpha_s = 0). The step into sigma_t = 0 has none: it is the inner method's own.

    Args:
        inner: a multistep method of one call a step: "plms", "lms", "deis", "exponential_adams",
            "dpmpp_2m" or "euler", or a function (schedule, grid) -> Plan.
    """
    who = "heavy_ball"
    b = check_damping(who, damping)
    grid = check_grid(schedule, grid)
    named, plan = inner_plan(who, inner, order, schedule, grid)
    check_one_call(who, plan)
    levels, weave, known = levels_at(schedule, grid), Weave(who, plan), None
    for n in range(plan.stages):
        row = weave.row_of(n, "x")
        slopes = "x" in weave.row_of(n, "h")
        keep = {"x": row.pop("x", 0.0)}
        whole = sum(row.values())
        if levels[n + 1].sigma == 0.0 or whole == 0.0:
            weave.take(n)
            continue
        mean: Weights = {key: weight / whole for key, weight in row.items()}
        if known == slopes:
            mean = summed({"v": 1.0 - b}, mean, b)
        known = slopes
        last = n + 1 == plan.stages or levels[n + 2].sigma == 0.0
        level = MOMENTUM_LEVEL if slopes else X0_LEVEL
        rows = {"x": summed(keep, mean, whole), "v": {} if last else mean}
        weave.take(n, rows, level)
    return weave.plan(f"{who}({named}, damping={b:g})")


def check_one_call(who: str, plan: Plan) -> None:
    """Raises ValueError unless the plan is a multistep method of one call a step."""
    if plan.stages != plan.steps or "v" in plan.rows:
        raise ValueError(
            f"{who}: the inner solver {plan.name} has {plan.stages} calls for {plan.steps} steps "
            "or a momentum, but it must be a multistep method of one call a step without momentum"
        )
