"""CFG++: a plan whose steps put back the noise that the unconditional estimate leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import NEW, H, X, column_key

_D, _UNCOND = "d", "d_uncond"


def cfg_plus_plus(plan: Plan) -> Plan:
    """Returns a plan's CFG++ form (Chung et al. 2024, arXiv 2406.08070).

    A step x' = A x + B d + sum_j b_j d_j (+ noise) takes the noise eps out of x with the guided
    estimate d and puts it back. The form takes it out with the unconditional estimate:

        x' = A (x - alpha d_uncond) + (alpha' - sum_j b_j) d + sum_j b_j d_uncond,j (+ noise)

    Remembered estimates are unconditional ones, as in ComfyUI's euler_cfg_pp, its ancestral form
    and dpmpp_2m_cfg_pp. Without guidance the two estimates are one, and the plan is the same map.
    Scales are from 0 to 1: 1 renoises the conditional estimate with the unconditional noise.

    Args:
        plan: a plan of one call a step whose entries are x0 estimates or sums of them: Euler (DDIM)
            and multistep methods of data, with fresh noise or without.

    Raises:
        ValueError: for a plan whose rows are others.
    """
    columns = {name: c for c, name in enumerate(plan.columns)}
    _check(plan)
    x_row = plan.rows.index(X)
    alpha = np.concatenate([[plan.schedule.alpha(plan.start)], plan.levels[:-1, x_row, 0]])
    past = _weights_of_estimates(plan)  # [S, S]
    noise = [name for name in plan.columns if name[0] == "z"]
    ages = int(max((i - j for i, j in zip(*np.nonzero(np.tril(past, -1)), strict=True)), default=0))
    names = [X, _D, _UNCOND, *noise, *(f"h{age}" for age in range(1, ages + 1))]
    names.sort(key=column_key)
    rows = (H, X) if ages else (X,)
    matrix = np.zeros((plan.stages, len(rows), len(names)))
    at = {name: c for c, name in enumerate(names)}
    for i in range(plan.stages):
        keep = plan.matrix[i, x_row, columns[X]] if X in columns else 0.0
        row = matrix[i, -1]
        row[at[X]], row[at[_UNCOND]] = keep, -keep * alpha[i]
        for name in noise:
            row[at[name]] = plan.matrix[i, x_row, columns[name]]
        for age in range(1, min(ages, i) + 1):
            row[at[f"h{age}"]] = past[i, i - age]
        row[at[_D]] = plan.levels[i, x_row, 0] - past[i, :i].sum()
        if ages:
            matrix[i, 0, at[_UNCOND]] = 1.0
    levels = np.stack([plan.levels[:, x_row]] * len(rows), axis=1)
    if ages:
        levels[:, 0] = np.nan
    return replace(
        plan,
        rows=rows,
        columns=tuple(names),
        matrix=matrix,
        levels=levels,
        name=f"{plan.name}_cfg_plus_plus",
        made_for=None,
    )


def _check(plan: Plan) -> None:
    """Refuses plans that are no sums of one state and estimates."""
    who = "solvers.cfg_plus_plus"
    if plan.initial is not None and plan.initial.entries:
        check_plain_start(who, plan, "its entries are no unconditional estimates")
    other = [c for c in plan.columns if c not in (X, _D) and c[0] not in "hz"]
    if other or set(plan.rows) - {H, X}:
        what = ", ".join(other or sorted(set(plan.rows) - {H, X}))
        raise ValueError(
            f"{who}: {plan.name} weighs or writes {what}, but only methods of one state and x0 "
            "estimates have this form"
        )
    if plan.called.shape[1] > 1 or not plan.called.all():
        raise ValueError(
            f"{who}: {plan.name} has stages of no network call or of several, but one call a stage "
            "is needed"
        )
    if H in plan.rows and X in plan.columns:
        entries = plan.matrix[:, plan.rows.index(H), plan.columns.index(X)]
        if entries.any():
            raise ValueError(
                f"{who}: {plan.name} remembers states or noises, but only methods that remember x0 "
                "estimates have this form: dpmpp_2m, dpmpp_3m and their stochastic forms do"
            )


def _weights_of_estimates(plan: Plan) -> np.ndarray:
    """Returns the weight of each stage's x0 estimate in the rows of x, [S, S]."""
    count = plan.stages
    columns = {name: c for c, name in enumerate(plan.columns)}
    entries: list[np.ndarray] = []  # of earlier stages, over estimates
    made = np.zeros((count, count))

    def over_estimates(i: int, row: np.ndarray, new: np.ndarray | None) -> np.ndarray:
        found = np.zeros(count)
        if _D in columns:
            found[i] = row[columns[_D]]
        for name, c in columns.items():
            if name[0] == "h" and row[c] != 0.0:
                found = found + row[c] * (new if name == NEW else entries[-int(name[1:])])
        return found

    for i in range(count):
        new = None
        if H in plan.rows:
            new = over_estimates(i, plan.matrix[i, plan.rows.index(H)], None)
        made[i] = over_estimates(i, plan.matrix[i, plan.rows.index(X)], new)
        if new is not None and plan.matrix[i, plan.rows.index(H)].any():
            entries.append(new)
    return made
