"""Plans of any schedule as plans on x = x0 + sigma eps, which k-diffusion and EDM sample on.

A register that holds alpha x0 + sigma eps holds x0 + (sigma / alpha) eps after a division by alpha.
The network's input is divided by the alpha of the time that the network is told: such tools
multiply by that alpha again before the network, so that it sees what the plan holds. Where a plan
tells the network another time than that of its level, this is not the alpha of the level.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from diffast import schedules
from diffast.integrations.sigma_model import run
from diffast.lowering.evaluations import branch_columns, gradients_of
from diffast.model.fingerprint import fingerprint
from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import ERROR, X, Y

_INPUTS = ("x", "x2", "x3", "x4")


def plan_of(who: str, plan: Any) -> Plan:
    """Returns the plan, loaded if it is a path.

    Raises:
        ValueError: something else; what `Plan.load` raises.
    """
    if isinstance(plan, (str, PathLike)):
        plan = Plan.load(plan)
    if not isinstance(plan, Plan):
        raise ValueError(
            f"{who}: plan is a {type(plan).__name__}, but a df.Plan or the path of its file is "
            "needed"
        )
    check_plain_start(who, plan, "here the initial state is the caller's noise; use df.sample")
    return plan


# Where wrappers keep the network that they call.
_INNER = ("inner_model", "model", "net", "diffusion_model")


def check_network(who: str, plan: Plan, model: Any) -> None:
    """Compares a plan's `made_for` with the model that it is run on, see `df.Plan`.

    A model of other weights is warned of: the plan runs, but its measured error is not that of this
    model. The model may be a wrapper of the network that the plan was made for.

    Args:
        who: begins the messages.
        plan: as it was made, before `in_sigma_space`.
        model: returns the x0 estimate.

    Raises:
        ValueError: the plan was made for a network of the same noise levels, x0 + sigma eps, that
            predicts something else than x0.
    """
    made_for = plan.made_for or {}
    predicts, tuned = made_for.get("predicts"), made_for.get("network")
    ends = (*plan.schedule.domain, plan.start)
    plain = all(float(plan.schedule.alpha(t)) == 1.0 for t in ends)
    if predicts not in (None, "x0") and plain:
        raise ValueError(
            f"{who}: plan {plan.name} was made for a network that predicts {predicts!r}, but this "
            "model returns the x0 estimate"
        )
    found = []
    for _ in range(4):
        found.append(fingerprint(model))
        inner = (getattr(model, name, None) for name in _INNER)
        model = next((part for part in inner if isinstance(part, torch.nn.Module)), None)
        if model is None:
            break
    known = [one for one in found if one]
    if tuned and known and tuned not in known:
        warnings.warn(
            f"{who}: plan {plan.name} was made for a network with the fingerprint {tuned}, but "
            f"that of this model is {known[-1]}: its measured error is not that of this model",
            stacklevel=4,
        )


def in_sigma_space(who: str, plan: Plan) -> Plan:
    """Returns the plan on x = x0 + sigma eps, sigma being the model time: the same samples.

    Args:
        who: begins the messages.
        plan: of any schedule.

    Raises:
        ValueError: a plan that starts where alpha is 0, or weighs gradients.
    """
    schedule = plan.schedule
    if all(float(schedule.alpha(t)) == 1.0 for t in (*schedule.domain, plan.start, plan.end)):
        return plan
    if any(column[0] == "g" for column in plan.columns):
        raise ValueError(f"{who}: plan {plan.name} weighs gradients, which only df.sample runs")
    told = plan.times.reshape(plan.stages, -1)
    alpha = np.where(plan.called, schedule.alpha(np.where(plan.called, told, plan.end)), np.nan)
    ends = [float(schedule.alpha(t)) for t in (plan.start, plan.end)]
    if min(*ends, float(np.nanmin(alpha))) <= 0.0:
        raise ValueError(
            f"{who}: plan {plan.name} starts at alpha = 0, where x0 + sigma eps has no finite "
            "sigma: make it for a start where alpha is above 0"
        )
    factors = _factors(plan, alpha, ends)
    made = _scaled(plan, factors)
    sigmas = np.where(plan.called, _sigma(schedule, np.where(plan.called, told, plan.end)), np.nan)
    fields: dict[str, Any] = {
        "times": sigmas.reshape(plan.times.shape),
        "spans": _sigma(schedule, plan.spans),
        "guidance": plan.guidance,
        **made,
    }
    fields |= {end: float(_sigma(schedule, getattr(plan, end))) for end in ("start", "end")}
    if factors[X][0] != 1.0 / ends[0]:
        fields = _opened(plan, fields, factors[X][0] * ends[0], ends[0])
    levels = [*fields["times"][~np.isnan(fields["times"])].tolist(), fields["start"]]
    space = schedules.edm(min(level for level in levels if level > 0.0), max(levels))
    return replace(plan, schedule=space, made_for=None, **fields)


def _sigma(schedule: Any, times: Any) -> np.ndarray:
    return np.asarray(schedule.sigma(times)) / np.asarray(schedule.alpha(times))


def _factors(plan: Plan, alpha: np.ndarray, ends: Sequence[float]) -> dict[str, np.ndarray]:
    """Returns [S + 1] factors of each state register, before each stage and after the last."""
    count = plan.stages
    of_x = np.full(count + 1, 1.0 / ends[1])
    for i in reversed(range(count)):
        of_x[i] = of_x[i + 1] if np.isnan(alpha[i, 0]) else 1.0 / alpha[i, 0]
    factors = {X: of_x, Y: of_x, ERROR: of_x}
    for e, name in enumerate(_INPUTS[1 : alpha.shape[1]], start=1):
        own = np.append(1.0 / alpha[:, e], np.nan)
        factors[name] = np.where(np.isnan(own), of_x, own)
    return factors


def _scaled(plan: Plan, factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns matrix and levels with the registers multiplied by their factors."""
    one = np.ones(plan.stages + 1)
    after = np.stack([factors.get(row, one)[1:] for row in plan.rows], axis=1)
    before = np.stack([factors.get(column, one)[:-1] for column in plan.columns], axis=1)
    matrix = plan.matrix * after[:, :, None] / before[:, None, :]
    return {"matrix": matrix, "levels": plan.levels * after[:, :, None]}


def _opened(plan: Plan, fields: dict[str, Any], factor: float, alpha: float) -> dict[str, Any]:
    """Returns the fields with a first stage, without a call, that rescales the initial state."""
    matrix = np.zeros((1, *fields["matrix"].shape[1:]))
    levels = np.full((1, *fields["levels"].shape[1:]), np.nan)
    sigma = float(plan.schedule.sigma(plan.start)) / alpha
    column = plan.columns.index(X) if X in plan.columns else 0
    if X not in plan.columns:  # no stage weighs its input: nor does it need a factor
        return fields
    for row in [plan.rows.index(name) for name in (X, Y) if name in plan.rows]:
        matrix[0, row, column], levels[0, row] = factor, (factor, factor * sigma)
    if ERROR in plan.rows:
        levels[0, plan.rows.index(ERROR)] = 0.0
    added = dict(fields)
    silent = np.full((1, *fields["times"].shape[1:]), np.nan)
    added["times"] = np.concatenate([silent, fields["times"]])
    added["matrix"] = np.concatenate([matrix, fields["matrix"]])
    added["levels"] = np.concatenate([levels, fields["levels"]])
    added["spans"] = np.concatenate([[[fields["start"]] * 2], fields["spans"]])
    if fields["guidance"] is not None:
        added["guidance"] = np.concatenate([silent, fields["guidance"]])
    return added


def levels_before_calls(plan: Plan) -> tuple[float, ...]:
    """Returns the sigma / alpha of the state before each call and of the sample, [calls + 1]."""
    at = np.concatenate(
        [
            [[float(plan.schedule.alpha(plan.start)), float(plan.schedule.sigma(plan.start))]],
            plan.levels[:, plan.rows.index(X)],
        ]
    )
    alpha, sigma = at[[*plan.calls, -1]].T
    return tuple((sigma / alpha).tolist())


def run_plan(
    who: str,
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    plan: Plan,
    levels: tuple[float, ...],
    sigmas: torch.Tensor,
    extra_args: dict | None,
    callback: Callable[[dict], Any] | None,
    disable: bool | None,
    draw: Callable[[int], torch.Tensor] | None = None,
    seed: int = 0,
    guide: Callable[[float, dict], Any] | None = None,
) -> torch.Tensor:
    """Returns the samples of a plan made for a network; arguments as for `sigma_model.run`.

    Stages of two inputs call the model once an input. Where the plan has guidance scales,
    guide(scale, extra_args) is called before each call of the model.

    Raises:
        ValueError: guidance scales where the model takes none; a plan that weighs gradients, or the
            estimate of one branch alone.
    """
    for columns, what in (
        (gradients_of(plan), "gradients of guidance terms"),
        (branch_columns(plan), "the x0 estimate of one branch alone"),
    ):
        if columns:
            raise ValueError(
                f"{who}: plan {plan.name} weighs {', '.join(columns)}, {what}, but this model "
                "returns the guided estimate and nothing else: use df.sample"
            )
    scales = None
    if plan.guidance is not None:
        scales = plan.guidance.reshape(plan.stages, -1)[plan.calls]
        if guide is None:
            raise ValueError(
                f"{who}: plan {plan.name} has a guidance scale of its own for each call, but this "
                "model takes none: tune without the freedom 'guidance'"
            )
    parts = _Parts(model, len(x), scales, guide, dict(extra_args or {}))
    plain = replace(plan, guidance=None, made_for=None)
    return run(parts, x, plain, levels, sigmas, {}, callback, disable, draw, seed)


class _Parts:
    """A model of B rows, called once for each input of a stage."""

    def __init__(self, model, batch, scales, guide, extra_args):
        self.model, self.batch, self.scales = model, max(batch, 1), scales
        self.guide, self.extra_args, self.stage = guide, extra_args, 0

    def __call__(self, x, sigma):
        made = []
        for e, (part, level) in enumerate(
            zip(x.split(self.batch), sigma.split(self.batch), strict=True)
        ):
            if self.scales is not None:
                self.guide(float(self.scales[self.stage, e]), self.extra_args)
            made.append(self.model(part, level, **self.extra_args))
        self.stage += 1
        return made[0] if len(made) == 1 else torch.cat(made)
