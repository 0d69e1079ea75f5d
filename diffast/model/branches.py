"""Guidance of a denoiser: a scale, or a rule, and the branches that the rule calls.

Rules of two branches of the denoiser's own network whose weights are numbers are scales: they
become a number or a function of the model time, and every executor runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffast.guidance.rule import COND, UNCOND, Branch, Rule, RuleAt, branch_names, joined_names
from diffast.model.sigma_model import SigmaModel
from diffast.model.velocity import Velocity


def settled(guidance: Any, schedule: Any) -> float | Callable[[float], float] | Rule:
    """Returns a denoiser's guidance: a number, a function of the model time, or a rule.

    Raises:
        ValueError: for a number that is not finite, or something else.
    """
    if isinstance(guidance, Rule):
        if not is_scale(guidance):
            return guidance
        if guidance.window is None:
            return guidance.scale
        return _Windowed(guidance, schedule)
    if callable(guidance):
        return guidance  # pyright: ignore
    try:
        number = None if isinstance(guidance, str) else float(guidance)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise ValueError(
            f"Denoiser: guidance is a {type(guidance).__name__} but must be a number, a function "
            "of the model time or a rule of df.guidance"
        )
    if not math.isfinite(number):
        raise ValueError(f"Denoiser: guidance is {guidance} but must be finite")
    return guidance  # pyright: ignore


def is_scale(rule: Rule) -> bool:
    """Returns whether a rule is classifier-free guidance with a scale and nothing else."""
    plain = type(rule).weights is Rule.weights and not rule.branches
    return plain and rule.rescaled == 0.0 and rule.threshold is None


class _Windowed:
    """The scale of a rule as a function of the model time: 1 outside of its interval."""

    def __init__(self, rule: Rule, schedule: Any):
        self.rule, self.schedule = rule, schedule

    def __call__(self, time: float) -> float:
        """Returns the scale at a model time."""
        times = np.array([time], dtype=np.float64)
        if self.rule.window is None or not self.rule.window.holds(self.schedule, times)[0]:
            return 1.0
        return float(self.rule.scales(times)[0])


def rules_at(
    rule: Rule, schedule: Any, times: np.ndarray, planned: np.ndarray | None, unconditional: bool
) -> list[RuleAt]:
    """Returns the rule at each model time.

    Args:
        rule: the rule.
        schedule: of the denoiser.
        times: [S] of network calls, in order.
        planned: [S] scales that a plan gives in place of the rule's.
        unconditional: whether there are conditions for the unconditional branch.

    Raises:
        ValueError: if a scale is not finite, or needs an unconditional branch that is not there.
    """
    scales = rule.scales(times) if planned is None else planned
    inside = np.ones(len(times), dtype=bool)
    if rule.window is not None:
        inside = rule.window.holds(schedule, times)
    found = [
        rule.at(float(t), float(w), bool(within), i)
        for i, (t, w, within) in enumerate(zip(times, scales, inside, strict=True))
    ]
    if not unconditional and UNCOND not in rule.branches:
        for at in found:
            if UNCOND in at.used:
                raise ValueError(
                    f"Denoiser: guidance is {rule.name} of scale {at.scale:g} but there are no "
                    "unconditional conditions"
                )
    return found


def branch_of(
    name: str,
    rule: Rule | None,
    network: Any,
    conditions: Mapping[str, Any],
    unconditional: Mapping[str, Any] | None,
) -> tuple[Any, Mapping[str, Any]]:
    """Returns the network and the conditions of a branch.

    Raises:
        ValueError: for the unconditional branch where there are no conditions for it.
    """
    own: Branch | None = rule.branches.get(name) if rule is not None else None
    if own is None:
        if name == UNCOND and unconditional is None:
            raise ValueError(
                "Denoiser: the unconditional branch is asked for, but there are no unconditional "
                "conditions"
            )
        return network, conditions if name == COND else unconditional or {}
    given = {**conditions, **(own.conditions or {})}
    if own.network is None:
        return network, given
    # The network of a branch is the caller's, with the conventions of the denoiser's.
    wrapped = isinstance(network, Velocity | SigmaModel)
    return network.like(own.network) if wrapped else own.network, given


def groups_of(branches: str, network_of: Callable[[str], Any]) -> list[tuple[Any, str]]:
    """Returns (network, branches) of the calls that a stage on these branches is made of.

    Args:
        branches: see `branch_names`.
        network_of: a branch's network, by its name.
    """
    found: list[tuple[Any, list[str]]] = []
    for name in branch_names(branches):
        network = network_of(name)
        if found and found[-1][0] is network:
            found[-1][1].append(name)
        else:
            found.append((network, [name]))
    return [(network, joined_names(names)) for network, names in found]
