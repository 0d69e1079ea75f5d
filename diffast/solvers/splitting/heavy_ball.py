"""A heavy ball on any multistep method."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.plans.registers import X0_LEVEL
from diffast.schedules import Schedule
from diffast.solvers.core.docs import splitting_builder
from diffast.solvers.core.integrals import Level, levels_at
from diffast.solvers.splitting.inner import inner_plan
from diffast.solvers.splitting.momentum import check_damping
from diffast.solvers.splitting.weave import Row, Weave, Weights, summed


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
        inner: a multistep method of one call a step: "plms", "lms", "adams", "deis",
            "exponential_adams", "dpmpp_2m" or "euler", or a function (schedule, grid) -> Plan.
    """
    who = "heavy_ball"
    b = check_damping(who, damping)
    grid = check_grid(schedule, grid)
    named, plan = inner_plan(who, inner, order, schedule, grid)
    check_one_call(who, plan)
    levels, weave, known = levels_at(schedule, grid), Weave(who, plan), None
    for n in range(plan.stages):
        row = weave.row_of(n, "x")
        level = _level(weave.row_of(n, "h"), levels[n])
        keep = {"x": row.pop("x", 0.0)}
        whole = sum(row.values())
        if levels[n + 1].sigma == 0.0 or whole == 0.0:
            weave.take(n)
            continue
        mean: Weights = {key: weight / whole for key, weight in row.items()}
        if known == level:
            mean = summed({"v": 1.0 - b}, mean, b)
        known = level
        last = n + 1 == plan.stages or levels[n + 2].sigma == 0.0
        rows = {"x": summed(keep, mean, whole), "v": {} if last else mean}
        weave.take(n, rows, level)
    return weave.plan(f"{who}({named}, damping={b:g})")


def _level(entry: Row, at: Level) -> tuple[float, float]:
    """Returns the (alpha, sigma) that an estimate holds: of x0 (1, 0), of eps (0, 1) and so on."""
    by_x, by_x0 = entry.get("x", 0.0), entry.get("d", 0.0)
    if not by_x:
        return X0_LEVEL
    return float(round(by_x * at.alpha + by_x0)), float(round(by_x * at.sigma))


def check_one_call(who: str, plan: Plan) -> None:
    """Raises ValueError unless the plan is a multistep method of one call a step."""
    if plan.stages != plan.steps or "v" in plan.rows:
        raise ValueError(
            f"{who}: the inner solver {plan.name} has {plan.stages} calls for {plan.steps} steps "
            "or a momentum, but it must be a multistep method of one call a step without momentum"
        )
