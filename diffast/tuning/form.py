"""The form that tuned plans have: multistep with full memory.

    x_{n+1} = keep_n x_n + sum_{j <= n} c[n, j] d_j + fresh_n z_n

x_n holds a level (alpha_n, sigma_n), d_j is the x0 estimate of call j. keep_n follows from the
noise, keep_n^2 sigma_n^2 + fresh_n^2 = sigma_{n+1}^2, and the sum of c[n] from x0, sum_j c[n, j] =
alpha_{n+1} - keep_n alpha_n. All else is free: the levels, which need not lie on the schedule, the
times that the network is told, and the weights of every remembered estimate. Any deterministic plan
that calls the network on one input at a time is in this form exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffast.plans import Plan, unroll
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import Z1, Z2, D, H, X, entry_column, levels_of, pack

# A fresh normal with less than this share of a row's noise is left out, which `Plan` would refuse.
_LEAST_FRESH = 1e-4


@dataclass(frozen=True)
class Form:
    """The numbers of a plan in this form, N network calls.

    Attributes:
        schedule: of the plan.
        start: model time of the initial state.
        end: model time of the sample.
        levels: [N + 1, 2] of (alpha, sigma) of x_0 .. x_N.
        told: [N] model time that each call is told.
        weights: [N, N] of c, lower triangular.
        fresh: [N] weights of the fresh normals; zeros in deterministic plans.
        guidance: [N] guidance scale of each call; None: the denoiser's.
    """

    schedule: Any
    start: float
    end: float
    levels: np.ndarray
    told: np.ndarray
    weights: np.ndarray
    fresh: np.ndarray
    guidance: np.ndarray | None = None

    @property
    def calls(self) -> int:
        """Returns N."""
        return len(self.told)

    @property
    def keep(self) -> np.ndarray:
        """Returns [N] weights of x_n in x_{n+1}."""
        sigma = self.levels[:, 1]
        return np.sqrt(np.maximum(sigma[1:] ** 2 - self.fresh**2, 0.0)) / sigma[:-1]

    @property
    def gain(self) -> np.ndarray:
        """Returns [N] sums of the estimates' weights, alpha_{n+1} - keep_n alpha_n."""
        return self.levels[1:, 0] - self.keep * self.levels[:-1, 0]

    def plan(self, name: str, **fields: Any) -> Plan:
        """Returns the plan of these numbers; fields are further ones of `Plan`.

        The weight of the newest estimate is what the sum of the others leaves.
        """
        n = self.calls
        keep, gain, fresh = self.keep, self.gain, self.fresh
        older = np.tril(self.weights, -1)
        newest = gain - older.sum(axis=1)
        row = {X: keep, D: newest}
        for age in range(1, n):
            back = np.concatenate([np.zeros(age), np.diagonal(older, -age)])
            if back.any():
                row[entry_column(age)] = back
        if fresh.any():
            row[Z1] = fresh
        rows = {X: row}
        if any(column[0] == H for column in row):
            rows[H] = {D: 1.0}
        rows, columns, matrix = pack(rows, n)
        levels = np.full((n, len(rows), 2), np.nan)
        levels[:, rows.index(X)] = self.levels[1:]
        return Plan(
            schedule=self.schedule,
            times=self.told,
            start=self.start,
            end=self.end,
            rows=rows,
            columns=columns,
            matrix=matrix,
            levels=levels,
            steps=n,
            name=name,
            guidance=self.guidance,
            spans=self._spans(),
            **fields,
        )

    def _spans(self) -> np.ndarray:
        """Returns [N, 2] model times of the levels, which path noise reads."""
        at = [self.start, *(self._time(*level) for level in self.levels[1:-1]), self.end]
        return np.stack([at[:-1], at[1:]], axis=1)

    def _time(self, alpha: float, sigma: float) -> float:
        least = self.schedule.lam(self.start)
        most = self.schedule.lam(self.schedule.t_min)
        return float(self.schedule.time(np.clip(np.log(alpha) - np.log(sigma), least, most)))


def form_of(plan: Plan) -> Form:
    """Returns a plan's numbers in this form.

    Raises:
        ValueError: for a plan that is not in this form, with the reason: one that draws a second
            normal a stage, weighs gradients, calls the network on several inputs at once, changes
            the noise level on purpose, or whose x holds no noise before a call.
    """
    _check(plan)
    stages = plan.calls
    made = unroll(plan)[X]
    states = np.zeros((len(stages) + 1, made.shape[1]))  # x before each call, and at the end
    states[0, 0] = 1.0
    before = np.append(stages[1:] - 1, plan.stages - 1)
    states[1:] = made[before]
    start = levels_of(plan.schedule, plan.start)
    levels = np.vstack([start, plan.levels[before, plan.rows.index(X)]])
    if (levels[:-1, 1] <= 0.0).any():
        raise ValueError(f"form_of: plan {plan.name} calls the network on a state without noise")
    fresh = np.zeros(len(stages))
    if plan.stochastic:
        fresh = _fresh(plan, states, stages)
    found = Form(
        plan.schedule,
        float(plan.start if plan.start is not None else plan.call_times[0]),
        plan.end,
        levels,
        plan.call_times.copy(),
        np.zeros((len(stages), len(stages))),
        fresh,
        None if plan.guidance is None else plan.guidance[stages].copy(),
    )
    steps = states[1:] - found.keep[:, None] * states[:-1]
    found.weights[:] = np.tril(steps[:, 1 + stages])
    return found


def _check(plan: Plan) -> None:
    reasons = {
        "calls the network on several inputs at once": plan.called.shape[1] > 1,
        "weighs gradients of guidance terms": any(column[0] == "g" for column in plan.columns),
        "draws two normals a stage": any(plan.weights(row, Z2).any() for row in plan.rows),
        "has silent stages before its first call": bool(plan.calls[0]),
        "does not keep its noise level": plan.check != "full",
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"form_of: plan {plan.name} {reason}, which this form cannot hold")


def _fresh(plan: Plan, states: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """Returns [N] weights of the fresh normals; ValueError for noise of another structure."""
    check_plain_start("form_of", plan, "tune the plan first, then start it late")
    if plan.stages != len(stages):
        raise ValueError(f"form_of: plan {plan.name} draws noise in stages without a network call")
    drawn = states[:, 1 + plan.stages : 1 + 2 * plan.stages]
    fresh = np.diagonal(drawn[1:]).copy()
    sigma = np.sqrt((states[:, 0] * plan.initial_scale) ** 2 + (drawn**2).sum(axis=1))
    keep = np.sqrt(np.maximum(sigma[1:] ** 2 - fresh**2, 0.0)) / sigma[:-1]
    others = drawn[1:] - keep[:, None] * drawn[:-1] - np.diag(fresh)
    wrong = np.abs(others).max(axis=1) > 1e-6 * np.maximum(sigma[1:], 1e-300)
    wrong |= np.abs(states[1:, 0] - keep * states[:-1, 0]) * plan.initial_scale > 1e-6 * sigma[1:]
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"form_of: plan {plan.name} uses the noise of an earlier stage again at call {i}, "
            "which this form cannot hold"
        )
    return np.where(np.abs(fresh) > _LEAST_FRESH * sigma[1:], np.abs(fresh), 0.0)
