"""What each stage of a plan evaluates, in numbers: network outputs, branches, gradients.

The x0 estimate is a x + b (sum of branch weights times outputs), so guidance by several branches
of the network is linear. A gradient of a guidance term joins the estimate with a weight of its
own, unless the plan weighs gradients itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from diffast.guidance.rule import BRANCHES, COND, UNCOND, RuleAt, joined_names, rule_name
from diffast.guidance.rule import branch_names as branch_names
from diffast.plans import Plan
from diffast.plans.registers import input_register

# Names of the outputs by input (x, x2 ..) and branch: cond, uncond, extra, cond2 ..
OUTPUTS = tuple(f"{name}{e or ''}" for e in (0, 2, 3, 4) for name in BRANCHES)


class Evaluation(NamedTuple):
    """What one stage evaluates.

    Attributes:
        times: model times that the network is told, one for each input that it is called on.
        affine: (a, b) for each of these inputs.
        weights: weights of the branches' outputs, for each of these inputs.
        inputs: the numbers of these inputs.
        gradient_time: model time that the guidance terms are told; NaN: none is evaluated.
        scales: the terms' own scales, for plans that weigh gradients themselves.
        in_estimate: the weights of the gradients in the x0 estimate of x, for all other plans.
        rule: the guidance rule, where its weights are functions of the sample's outputs, or where
            it weighs a low-passed difference. The branches' weights then only say which are used.
    """

    times: tuple[float, ...]
    affine: tuple[tuple[float, float], ...]
    weights: tuple[tuple[float, ...], ...]
    inputs: tuple[int, ...]
    gradient_time: float
    scales: tuple[float, ...]
    in_estimate: tuple[float, ...]
    rule: RuleAt | None = None


class Evaluations(NamedTuple):
    """What the stages of a plan evaluate, as arrays: n stages that are not silent, E inputs.

    Runs of a plan that was lowered before need the key alone.

    Attributes:
        plan: the plan.
        told: [n, E] model times of the network calls.
        numbers: [E, n, 2 + branches] of a, b and the branches' weights.
        rules: the guidance rule at each stage that calls the network, by number; empty: none.
        at: [n] model times of the gradients.
        scales: [terms, n], see `Evaluation`.
        weights: [terms, n], in the x0 estimate.
    """

    plan: Plan
    told: np.ndarray
    numbers: np.ndarray
    rules: dict[int, RuleAt]
    at: np.ndarray
    scales: np.ndarray
    weights: np.ndarray

    @property
    def key(self) -> tuple:
        """Returns what tells it from others of the same plan; hashable."""
        arrays = (self.told, self.numbers, self.at, self.scales, self.weights)
        rules = tuple([(i, rule) for i, rule in self.rules.items() if rule.reduces or rule.low])
        return b"".join([array.tobytes() for array in arrays]), rules

    def each(self) -> list[Evaluation]:
        """Returns the evaluation of each stage."""
        told, numbers = self.told.tolist(), self.numbers.swapaxes(0, 1).tolist()
        made = []
        for i, at in enumerate(self.at.tolist()):
            found = _evaluation(self.plan, told[i], numbers[i], self.rules.get(i))
            made.append(
                found._replace(
                    gradient_time=at if at == at else found.gradient_time,
                    scales=tuple(self.scales[:, i].tolist()),
                    in_estimate=tuple(self.weights[:, i].tolist()),
                )
            )
        return made


def evaluations_of(plan: Plan, outputs: Any) -> Evaluations:
    """Returns what the plan's stages evaluate, silent stages left out.

    Raises:
        ValueError: guidance terms, or rules that reduce, where the plan calls the network on
            several inputs at once; a plan that weighs other gradients than there are guidance
            terms; what `outputs` raises.
    """
    kept = plan.evaluations
    count = len(kept)
    told = plan.times.reshape(plan.stages, -1)[kept]  # [n, E]
    planned = None
    if plan.guidance is not None:
        planned = plan.guidance.reshape(plan.stages, -1)[kept]
    numbers = np.full((told.shape[1], count, 2 + len(BRANCHES)), np.nan)
    rules: dict[int, RuleAt] = {}
    for e in range(told.shape[1]):
        called = ~np.isnan(told[:, e])
        times = told[called, e]
        a, b = outputs.affine(times)
        numbers[e, called, 0], numbers[e, called, 1] = a, b
        weights, found = _weights(outputs, times, None if planned is None else planned[called, e])
        numbers[e, called, 2:] = weights
        rules |= dict(zip(np.flatnonzero(called).tolist(), found, strict=True)) if found else {}
        _check_inputs(plan, told.shape[1], found)
    at, scales, weights = _gradients(plan, outputs, told, kept)
    return Evaluations(plan, told, numbers, rules, at, scales, weights)


def _evaluation(
    plan: Plan, told: list[float], numbers: list[list[float]], rule: RuleAt | None
) -> Evaluation:
    """Returns what one stage evaluates, without its gradients."""
    inputs = tuple(e for e, t in enumerate(told) if t == t)
    times = tuple(told[e] for e in inputs)
    affine = tuple((numbers[e][0], numbers[e][1]) for e in inputs)
    weights = tuple(tuple(numbers[e][2:]) for e in inputs)
    time = np.nan
    if rule is not None and rule.weights == () and len(told) == 1 and not branch_columns(plan):
        time, times = times[0], ()  # an output of 0 needs no call
    kept = rule if rule is not None and (rule.reduces or rule.low) else None
    return Evaluation(times, affine, weights, inputs, time, (), (), kept)


def branch_columns(plan: Plan) -> list[str]:
    """Returns the columns of a plan that are the x0 estimate of one branch alone: d_cond .."""
    return [column for column in plan.columns if column.partition("_")[2] in (COND, UNCOND)]


def check_joined(plan: Plan, outputs: Any, kept: bool) -> None:
    """Raises ValueError where a plan would leave out what joins the guided estimate.

    A plan of branches' estimates alone sees no guidance terms, rule, clamp or hook (`kept`).
    """
    own = branch_columns(plan)
    if not own or any(column[0] == "d" and column not in own for column in plan.columns):
        return
    rule = getattr(outputs, "rule", None)
    lost = ""
    if getattr(outputs, "guides", ()) and plan.gradients is None:
        lost = f"the denoiser has {len(outputs.guides)} guidance term(s), which join"
    elif rule is not None and not (rule.summed and set(rule.columns) <= {COND, UNCOND}):
        lost = f"the denoiser's guidance is {rule_name(rule)}, which makes"
    elif kept:
        lost = "a clamp or an on_x0 is given, which changes"
    if lost:
        raise ValueError(
            f"plan {plan.name} steps by the estimates {', '.join(own)} of single branches, but "
            f"{lost} the guided x0 estimate: take another plan, or leave it out"
        )


def _weights(
    outputs: Any, times: np.ndarray, planned: np.ndarray | None
) -> tuple[np.ndarray, list[RuleAt] | None]:
    """Returns the weights of the branches, [S, branches], and the guidance rule if there is one."""
    rules_at = getattr(outputs, "rules_at", None)
    rules = None if rules_at is None else rules_at(times, planned)
    if rules is not None:
        return np.array([_branch_weights(at) for at in rules]).reshape(-1, len(BRANCHES)), rules
    scales = outputs.scales(times) if planned is None else outputs.planned_scales(planned)
    scales = np.asarray(scales, dtype=np.float64)
    return np.stack([scales, 1.0 - scales, np.zeros_like(scales)], axis=1), None


def _branch_weights(at: RuleAt) -> list[float]:
    """Returns a rule's weights of the branches; 1 for those that a reducing rule uses."""
    if at.weights is None or at.rescaled:
        return [float(name in at.used) for name in BRANCHES]
    weights = dict(at.weights)
    # A low-passed difference is made of both branches.
    found = [weights.get(name, 0.0) for name in BRANCHES]
    return [w or 1.0 for w in found[:2]] + found[2:] if at.low else found


def _check_inputs(plan: Plan, inputs: int, rules: list[RuleAt] | None) -> None:
    """Refuses rules that need a sample's outputs where several inputs are called at once."""
    for at in rules or ():
        if inputs > 1 and (at.reduces or at.low):
            raise ValueError(
                f"plan {plan.name} calls the network on {inputs} inputs at once, but "
                f"{at.rule.name} needs numbers of the outputs for one input"
            )


def _gradients(plan: Plan, outputs: Any, told: np.ndarray, kept: np.ndarray):
    """Returns (told times [n], scales [G, n], weights in the estimate [G, n]) of the gradients."""
    guides = getattr(outputs, "guides", ())
    none = np.full(len(kept), np.nan), *np.zeros((2, 0, len(kept)))
    if plan.gradients is not None:
        _check_guides(plan, len(guides))
        at = plan.gradients[kept]
        scales = np.zeros((len(guides), len(kept)))
        timed = ~np.isnan(at)
        scales[:, timed] = outputs.gradient_scales(at[timed])
        return at, scales, np.zeros_like(scales)
    if not guides:
        return none
    if told.shape[1] > 1:
        raise ValueError(
            f"plan {plan.name} calls the network on {told.shape[1]} inputs at once, but the "
            f"denoiser has {len(guides)} guidance term(s), whose gradients are taken at x alone"
        )
    weights = outputs.gradient_weights(told[:, 0])
    at = np.where(weights.any(axis=0), told[:, 0], np.nan)
    return at, np.zeros_like(weights), weights


def _check_guides(plan: Plan, count: int) -> None:
    """Refuses a plan that weighs other gradients than the denoiser has guidance terms."""
    weighed = gradients_of(plan)
    if not count:
        raise ValueError(
            f"plan {plan.name} weighs {', '.join(weighed)}, gradients of guidance terms, but the "
            "denoiser has none: Denoiser(guides=[...])"
        )
    if weighed != ["g1"] and int(weighed[-1][1:]) != count:
        raise ValueError(
            f"plan {plan.name} weighs {', '.join(weighed)}, but the denoiser has {count} guidance "
            "term(s)"
        )


def gradients_of(plan: Plan) -> list[str]:
    """Returns the columns of a plan that are gradients of guidance terms."""
    return [column for column in plan.columns if column[0] == "g"]


def in_estimate(evaluation: Evaluation) -> dict[str, float]:
    """Returns the row of the gradients in the x0 estimate of x."""
    return {f"g{k}": w for k, w in enumerate(evaluation.in_estimate, 1) if w != 0.0}


def gradient_row(plan: Plan, evaluation: Evaluation, column: str) -> dict[str, float]:
    """Returns a plan's column g1 .. over the terms' gradients; g1 alone stands for all of them."""
    scales = evaluation.scales
    if gradients_of(plan) == ["g1"]:
        return {f"g{k}": scale for k, scale in enumerate(scales, 1)}
    return {column: scales[int(column[1:]) - 1]}


def estimate(number: int, affine: tuple[float, float], weights: Iterable[float]) -> dict:
    """Returns the x0 estimate for an input, over that input and the outputs for it."""
    a, b = affine
    row = {input_register(number): a}
    for name, weight in zip(output_names(number), weights, strict=True):
        if weight != 0.0:
            row[name] = b * weight
    return row


def branch_estimate(number: int, affine: tuple[float, float], column: str) -> dict[str, float]:
    """Returns the estimate by one branch alone: that of a column d_cond, d_uncond, d2_cond .."""
    branch = BRANCHES.index(column.partition("_")[2])
    return estimate(number, affine, [float(k == branch) for k in range(len(BRANCHES))])


def branches_of(evaluation: Evaluation, columns: Iterable[str]) -> str:
    """Returns what a stage calls the network on, "" for nothing: see `branch_names`.

    Args:
        evaluation: gives the branches' weights.
        columns: what the stage's rows weigh: d_cond and d_uncond need a branch, too.
    """
    if not evaluation.times:
        return ""
    found = {k for weights in evaluation.weights for k, w in enumerate(weights) if w != 0.0}
    asked = {column.partition("_")[2] for column in columns if column[0] == "d"}
    found |= {k for k, name in enumerate(BRANCHES) if name in asked}
    return joined_names(BRANCHES[k] for k in sorted(found or {0}))


def output_names(number: int) -> tuple[str, ...]:
    """Returns the names of the network's outputs (cond, uncond, extra) for an input."""
    return OUTPUTS[len(BRANCHES) * number : len(BRANCHES) * (number + 1)]
