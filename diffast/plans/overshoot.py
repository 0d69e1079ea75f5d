"""How far a plan throws its samples out of the data: a probe of stability on two clusters.

An explicit method of high order multiplies the changes of the x0 estimate, by up to the ratio of
sigma/alpha over a step for each further call. With few steps these numbers are large: the state is
thrown far out, and the next estimates are those of a place where no data are. Gaussian data do not
show it, for there the estimate changes slowly. Two narrow clusters do: between them the estimate
jumps from one to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffast.plans.registers import H, X, Y, levels_of

if TYPE_CHECKING:
    from diffast.plans.plan import Plan

# Data at +-center with deviation width in each cluster: a spread of 1, and of 0.5 as in EDM.
CENTERS, WIDTHS = (0.9, 0.9, 0.5), (0.05, 0.2, 0.02)
# Where the runs start, in deviations of the noised data. By symmetry the other side is the same.
STARTS = (0.25, 0.6, 1.0, 1.6)
# No start ends further out than this many widths from its cluster.
REACH = 2.0


# Measured with 47 solvers, 3 to 21 calls, 13 pairs of schedule and grid (6,185 plans) on eight
# narrow Gaussians in the plane: of 231 plans whose error is above the spread of the data, 220 have
# an overshoot above 1 (the others have errors of 1.0 to 2.1), and of 400 plans with such an
# overshoot 25 have an error below 0.3.
LARGEST_OVERSHOOT = 1.0

# Plans of more stages are not probed, which keeps their builders fast. Of 11 methods on 16 pairs of
# schedule and grid with 130, 200 and 400 calls, 3 of 528 plans have an overshoot above 1.
MOST_STAGES = 128


class PlanWarning(UserWarning):
    """A plan amplifies errors: at this number of steps its samples can end far out of the data."""


def overshoot(plan: Plan) -> float:
    """Returns how far out of the data samples of a plan end, in spreads of the data; at least 0.

    The plan is run in float64 on 12 numbers, 4 starts for each of 3 pairs of clusters, with the
    exact x0 estimate of each pair. Fresh noise counts as 0. A stable plan returns 0, or a few
    tenths for large steps; the samples of a plan above 1 are no data.

    Args:
        plan: a plan whose stages call the network on one input; the cost is 10 microseconds a
            stage.
    """
    center, width = np.repeat(CENTERS, len(STARTS)), np.repeat(WIDTHS, len(STARTS))
    spread = np.sqrt(center**2 + width**2)
    schedule = plan.schedule
    (alpha, sigma), (last_alpha, last_sigma) = levels_of(schedule, (plan.start, plan.end))
    start = np.tile(STARTS, len(CENTERS)) * np.sqrt((alpha * spread) ** 2 + sigma**2)
    with np.errstate(over="ignore", invalid="ignore"):
        end = np.abs(_run(plan, start, center, width**2))
    inside = last_alpha * (center + REACH * width) + REACH * last_sigma
    out = (end - inside) / (last_alpha * spread + last_sigma)
    return float(np.max(np.where(np.isfinite(out), np.maximum(out, 0.0), np.inf)))


def is_unstable(plan: Plan) -> bool:
    """Returns whether the plan's `overshoot` is above 1; False for plans that are not probed.

    These are plans of more than 128 stages, without a network call, and with several inputs a
    stage.
    """
    probed = plan.nfe > 0 and plan.stages <= MOST_STAGES and plan.times.ndim == 1
    return probed and overshoot(plan) > LARGEST_OVERSHOOT


def _run(plan, state, center, variance):
    """Returns x after the last stage."""
    called = plan.called.reshape(plan.stages, -1)[:, 0]
    times = np.where(called, plan.times.reshape(plan.stages, -1)[:, 0], plan.start)
    alpha, sigma = levels_of(plan.schedule, times).T[:, :, None]
    total = alpha**2 * variance + sigma**2
    pull, slope = alpha * variance / total, alpha * center / total
    rest = center * (1.0 - pull * alpha)
    at = {name: c for c, name in enumerate(plan.columns)}
    known = ("d", "d_raw", "d_cond", "d_uncond")
    estimates = [at[name] for name in known if name in at]
    ages = sorted((int(name[1:]), c) for name, c in at.items() if name[0] == "h" and name != "h0")
    carried = [(at[name], r) for r, name in enumerate(plan.rows) if name in (X, Y)]
    momentum = [(at["v"], plan.rows.index("v"))] if "v" in plan.rows else []
    entry = plan.rows.index(H) if H in plan.rows else None
    new = at.get("h0")
    held = np.zeros((len(at), len(state)))
    for name in (X, Y):
        if name in at:
            held[at[name]] = state
    now, entries = state, []
    makes = plan.matrix[:, entry].any(axis=1) if entry is not None else None
    for i, matrix in enumerate(plan.matrix):
        if called[i]:
            held[estimates] = pull[i] * now + rest[i] * np.tanh(slope[i] * now)
        if new is not None:
            held[new] = 0.0
            held[new] = matrix[entry] @ held
        made = matrix @ held
        if makes is not None and makes[i]:
            entries.insert(0, made[entry])
            for age, c in ages:
                if age <= len(entries):
                    held[c] = entries[age - 1]
        for c, r in (*carried, *momentum):
            held[c] = made[r]
        now = made[plan.rows.index(X)]
    return now
