"""Guidance rules whose weights are numbers: they are multiplied into the plan and cost no pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffast.guidance.rule import (
    COND,
    EXTRA,
    UNCOND,
    Branch,
    Rule,
    Scale,
    Window,
    check_scale,
    rule_of,
    scales_of,
)


def cfg(scale: Scale) -> Rule:
    """Returns classifier-free guidance: u + w (c - u) (Ho and Salimans 2022, in Imagen's form).

    The paper's c + w' (c - u) is the scale w = 1 + w'. `Denoiser(guidance=w)` is the same.

    Args:
        scale: w, or a function of the model time.

    Raises:
        ValueError: for a scale that is not finite.
    """
    return Rule(scale=scale)


def interval(rule: Rule | Scale, low: float, high: float, *, by: str = "sigma") -> Rule:
    """Returns a rule that acts for noise levels in (low, high] alone.

    Elsewhere the output is the conditional one, and the network is called on B rows
    (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval").

    Args:
        rule: a rule, or the scale of classifier-free guidance.
        low: the noise level below which guidance ends.
        high: the noise level at which guidance begins; inf: from the start.
        by: "sigma": the levels are sigma / alpha, which is EDM's sigma; "time": model times.

    Raises:
        ValueError: for an interval out of order, or a rule that has one already.
    """
    who = "guidance.interval"
    if by not in ("sigma", "time"):
        raise ValueError(f"{who}: by is {by!r} but must be sigma or time")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, str):
            raise ValueError(f"{who}: {name} is {value!r} but must be a number")
    low, high = float(low), float(high)
    if not low < high or math.isinf(low):
        raise ValueError(f"{who}: from {low:g} to {high:g} but must be in ascending order")
    rule = rule_of(rule)
    if rule.window is not None:
        raise ValueError(f"{who}: {rule.name} has an interval already")
    return rule.with_options(window=Window(low, high, by))


@dataclass(frozen=True, kw_only=True, eq=False)
class Auto(Rule):
    """Autoguidance; see `autoguidance`."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # pyright: ignore  (may hold tensors)

    name = "guidance.autoguidance"

    weak: Branch = Branch()

    @property
    def branches(self) -> dict[str, Branch]:
        """Returns the weak network's branch."""
        return {UNCOND: self.weak}


def autoguidance(
    weak: Callable[..., Any], scale: Scale, *, conditions: Mapping[str, Any] | None = None
) -> Rule:
    """Returns guidance by a weaker network: weak + w (strong - weak) (Karras et al. 2024).

    The two networks are called one after the other, and their outputs stay where they are.

    Args:
        weak: the weak network, called as the denoiser's and of the same prediction type.
        scale: w, or a function of the model time.
        conditions: of the weak network, where they differ from the denoiser's, by name.

    Raises:
        ValueError: for a network that cannot be called, or a scale that is not finite.
    """
    if not callable(weak):
        raise ValueError(
            f"{Auto.name}: weak is a {type(weak).__name__} but must be a network that can be called"
        )
    return Auto(scale=scale, weak=Branch(weak, dict(conditions or {})))


@dataclass(frozen=True, kw_only=True, eq=False)
class Perturbed(Rule):
    """Guidance away from a perturbed branch; see `perturbed`."""

    __eq__, __hash__ = object.__eq__, object.__hash__  # pyright: ignore  (may hold tensors)

    name = "guidance.perturbed"
    columns = (COND, UNCOND, EXTRA)

    extra_scale: Scale = 0.0
    branch: Branch = field(default_factory=Branch)

    def __post_init__(self) -> None:
        """Checks the second scale, too."""
        super().__post_init__()
        check_scale(self.name, "extra_scale", self.extra_scale)

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns c + (w - 1) (c - u) + w_p (c - p)."""
        away = float(scales_of(self.name, self.extra_scale, np.array([time]))[0])
        return {COND: scale + away, UNCOND: 1.0 - scale, EXTRA: -away}

    @property
    def branches(self) -> dict[str, Branch]:
        """Returns the perturbed branch."""
        return {EXTRA: self.branch}


def perturbed(
    extra_scale: Scale,
    *,
    network: Callable[..., Any] | None = None,
    conditions: Mapping[str, Any] | None = None,
    scale: Scale = 1.0,
) -> Rule:
    """Returns c + w_p (c - p) + (w - 1) (c - u), p the output of a perturbed third branch.

    The branch is the same network with its attention maps replaced by the identity (PAG, Ahn et al.
    2024), smoothed (SEG, Hong 2024) or with layers left out (SLG). What perturbs it is the
    caller's: a condition that the network reads, or a callable that runs the network so. With a
    condition all branches are one batched call.

    diffusers' PAG, SLG and SEG without classifier-free guidance are p + s (c - p), that is
    w_p = s - 1.

    Args:
        extra_scale: w_p, or a function of the model time.
        network: calls the perturbed network; None: the denoiser's.
        conditions: of the perturbed branch, where they differ from the conditional one's, by name.
        scale: w of classifier-free guidance, or a function of the model time; 1: none.

    Raises:
        ValueError: for a scale that is not finite, or a branch that does not differ.
    """
    if network is None and not conditions:
        raise ValueError(
            f"{Perturbed.name}: neither a network nor conditions, so the third branch would be the "
            "conditional one"
        )
    if network is not None and not callable(network):
        raise ValueError(
            f"{Perturbed.name}: network is a {type(network).__name__} but must be callable"
        )
    branch = Branch(network, dict(conditions or {}))
    return Perturbed(scale=scale, extra_scale=extra_scale, branch=branch)
