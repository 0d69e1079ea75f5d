"""Plans whose steps take the gradients of guidance terms on the state, not in the x0 estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffast.plans import Plan
from diffast.plans.registers import H, X, column_key, levels_of

# What one gradient is multiplied by: alpha before the step, alpha after it -> weight.
KINDS = {
    "step": lambda before, after: np.ones_like(before),
    "variance": lambda before, after: np.divide(
        after, before, out=np.zeros_like(before), where=before > 0.0
    ),
    "mean": lambda before, after: after,
}


def on_state(plan: Plan, terms: Sequence[str] | None = None) -> Plan:
    """Returns the plan with the gradients of guidance terms added to the state after every step.

    x' = step(x, d) + w g, with d unguided and g the gradient at x times the term's scale. This is
    where DPS (Chung et al. 2023, algorithm 1), MCG and FreeDoM (Yu et al. 2023, algorithm 1) take
    theirs, and TFG (Ye et al. 2024, algorithm 1) takes both of its terms. Other plans take a
    gradient as a part of the score.

        plan = df.solvers.on_state(df.solvers.ddim(schedule, grid, eta=1.0))
        denoiser = df.Denoiser(network, schedule, "epsilon", guides=[df.guidance.dps(A, y, 0.5)])

    For time travel `df.solvers.resampled` comes last, `resampled(on_state(plan))`: the noise that
    is put back then covers the guided state.

    Args:
        plan: of a solver with one network call a step, which may remember earlier estimates.
        terms: for each guidance term of the denoiser how its gradient is weighed: "step" by 1,
            "variance" by alpha'/alpha (at alpha = 0 not at all), "mean" by alpha', where alpha' is
            that of the next state. None: all terms by 1.

    Raises:
        ValueError: an unknown kind; a plan that already weighs gradients, or carries more than the
            state from call to call.
    """
    kinds = ("step",) if terms is None else tuple(terms)
    if isinstance(terms, str) or not kinds or len(kinds) > 9 or set(kinds) - set(KINDS):
        raise ValueError(
            f"on_state: terms = {terms!r}, but 1 to 9 names among {', '.join(KINDS)} are needed"
        )
    if plan.gradients is not None:
        raise ValueError(f"on_state: plan {plan.name} has weights for gradients already")
    carried = sorted({*plan.rows} - {H, X})
    if carried or len(plan.calls) != plan.stages:
        what = f"carries {carried[0]} beside the state" if carried else "has stages without a call"
        raise ValueError(
            f"on_state: plan {plan.name} {what}, but a plan with one network call a step is needed "
            "(ddim, euler, dpmpp_2m)"
        )
    row = plan.rows.index(X)
    after = plan.levels[:, row, 0]
    before = levels_of(plan.schedule, plan.call_times)[:, 0]
    names = [f"g{k}" for k in range(1, len(kinds) + 1)]
    columns = tuple(sorted({*plan.columns, *names}, key=column_key))
    matrix = np.zeros((plan.stages, len(plan.rows), len(columns)))
    matrix[:, :, [columns.index(column) for column in plan.columns]] = plan.matrix
    for name, kind in zip(names, kinds, strict=True):
        matrix[:, row, columns.index(name)] = KINDS[kind](before, after)
    shown = "" if terms is None else ", " + ", ".join(kinds)
    return replace(plan, columns=columns, matrix=matrix, name=f"on_state({plan.name}{shown})")
