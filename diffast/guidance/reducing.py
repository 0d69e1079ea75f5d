"""Guidance rules whose weights are functions of dot products of each sample's tensors.

All of them are c + (w - 1) times some update, so w = 1 is no guidance, as in `guidance.cfg`. A
sample's dot products come from one pass over the outputs; the output is then one weighted sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diffast.guidance.rule import (
    COND,
    MOMENTUM,
    UNCOND,
    Rule,
    RuleAt,
    Scale,
    Threshold,
    check_scale,
    rule_of,
)


def _difference(numbers: Any) -> dict[str, float]:
    """Returns cond - uncond, or what remembers it from call to call."""
    return {MOMENTUM: 1.0} if MOMENTUM in numbers.names else {COND: 1.0, UNCOND: -1.0}


def _length(xp: Any, numbers: Any, p: dict[str, Any]) -> Any:
    """Returns the norm of a weighted sum; a square below 0 is rounding."""
    return xp.sqrt(xp.maximum(numbers.dot(p, p), 0.0))


def _ratio(xp: Any, a: Any, b: Any, otherwise: float) -> Any:
    """Returns a / b, or what is said where b is 0."""
    zero = xp.equal(b, 0.0)
    return xp.where(zero, otherwise, a / xp.where(zero, 1.0, b))


def rescale(phi: float, rule: Rule | Scale) -> Rule:
    """Returns a rule whose output g becomes phi std(c) / std(g) g + (1 - phi) g.

    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", section 3.4.
    The standard deviations are those of each sample, c the conditional output. A sample whose
    output is constant stays as it is.

    Args:
        phi: 0 (nothing) to 1; the paper has 0.7.
        rule: a rule, or the scale of classifier-free guidance.

    Raises:
        ValueError: for a phi outside of [0, 1].
    """
    if not 0.0 <= float(phi) <= 1.0:
        raise ValueError(f"guidance.rescale: phi is {phi} but must be in [0, 1]")
    return rule_of(rule).with_options(rescaled=float(phi))


def rescaling(xp: Any, numbers: Any, weights: dict[str, Any], phi: float) -> Any:
    """Returns the factor of the guided output of those weights, see `rescale`."""

    def variance(p: dict[str, Any]) -> Any:
        total = numbers.total(p)
        return xp.maximum(numbers.dot(p, p) - total * total / numbers.count, 0.0)

    before, after = variance({COND: 1.0}), variance(weights)
    return phi * xp.sqrt(_ratio(xp, before, after, 1.0)) + (1.0 - phi)


def dynamic_threshold(p: float = 0.995, maximum: float = 1.0, rule: Rule | Scale = 1.0) -> Rule:
    """Returns a rule with dynamic thresholding of the x0 estimate.

    The quantile p of |x0| of each sample is s, at least 1 and at most `maximum`; x0 is clamped to
    [-s, s] and divided by s (Saharia et al. 2022, "Imagen", section 2.3). The quantile is exact:
    that of torch.quantile, without a sort.

    Args:
        p: of the quantile, in (0, 1].
        maximum: the largest s, at least 1; inf: none. With 1 it is a clamp to [-1, 1].
        rule: a rule, or the scale of classifier-free guidance.

    Raises:
        ValueError: for p or maximum outside of these.
    """
    who = "guidance.dynamic_threshold"
    if not 0.0 < float(p) <= 1.0:
        raise ValueError(f"{who}: p is {p} but must be in (0, 1]")
    if not float(maximum) >= 1.0:
        raise ValueError(f"{who}: maximum is {maximum} but must be at least 1")
    return rule_of(rule).with_options(threshold=Threshold(float(p), float(maximum)))


@dataclass(frozen=True, kw_only=True)
class Projected(Rule):
    """Adaptive projected guidance; see `apg`."""

    name = "guidance.apg"
    linear = False
    columns = (COND, UNCOND)

    eta: float = 0.0
    norm_threshold: float = 0.0
    momentum: float = 0.0
    base: str = COND

    def __post_init__(self) -> None:
        """Checks the numbers."""
        super().__post_init__()
        for what in ("eta", "norm_threshold", "momentum"):
            value = getattr(self, what)
            if callable(value):
                raise ValueError(f"{self.name}: {what} is a function but must be a number")
            check_scale(self.name, what, value)
        if self.norm_threshold < 0.0:
            raise ValueError(
                f"{self.name}: norm_threshold is {self.norm_threshold} but must be 0 (none) or more"
            )
        if self.base not in (COND, UNCOND):
            raise ValueError(f"{self.name}: base is {self.base!r} but must be cond or uncond")

    @property
    def momentum_factor(self) -> float | None:  # type: ignore[override]
        """Returns beta of m' = d + beta m; None: nothing is remembered."""
        return self.momentum if self.momentum != 0.0 else None

    def measured(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns c and the remembered difference, which is all that they are asked of."""
        if MOMENTUM not in names or (self.rescaled != 0.0 and self.base == UNCOND):
            return names
        return COND, MOMENTUM

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns c + (w - 1) f (d + (eta - 1) <d, c> / <c, c> c)."""
        d, c = _difference(numbers), {COND: 1.0}
        share = 1.0
        if self.norm_threshold > 0.0:
            length = _length(xp, numbers, d)
            share = xp.minimum(1.0, _ratio(xp, self.norm_threshold, length, 1.0))
        along = (self.eta - 1.0) * _ratio(xp, numbers.dot(d, c), numbers.dot(c, c), 0.0)
        factor = (scale if self.base == UNCOND else scale - 1.0) * share
        row = {name: factor * weight for name, weight in d.items()}
        row[COND] = row.get(COND, 0.0) + factor * along
        row[self.base] = row.get(self.base, 0.0) + 1.0
        return row


def apg(
    scale: Scale,
    *,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: float = 0.0,
    base: str = COND,
    space: str = "output",
) -> Rule:
    """Returns adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416).

    d = c - u, from call to call d' = d + momentum d'_before; at most norm_threshold long; of the
    part along c only eta is kept. The output is c + (w - 1) d'.

    diffusers' guider has eta 1 and norm_threshold 15 as defaults and adds w d' to u: that is
    base="uncond", where a threshold also weakens the conditional part. The momentum costs one more
    tensor of the state's size.

    Args:
        scale: w, or a function of the model time.
        eta: share of the part along the conditional output.
        norm_threshold: largest norm of the difference; 0: none.
        momentum: factor of the remembered difference; the paper has -0.5 to -0.75. 0: none.
        base: "cond" or "uncond", what the update is added to.
        space: "output", as diffusers has it, or "x0", the paper's.

    Raises:
        ValueError: for numbers that are not finite, or another base or space.
    """
    return Projected(
        scale=scale,
        eta=eta,
        norm_threshold=norm_threshold,
        momentum=momentum,
        base=base,
        space=space,
    )


@dataclass(frozen=True, kw_only=True)
class ZeroStar(Rule):
    """CFG-Zero*; see `cfg_zero_star`."""

    name = "guidance.cfg_zero_star"
    linear = False

    zero_init_steps: int = 1

    @property
    def zeroed(self) -> int:  # type: ignore[override]
        """Returns how many network calls are left out at the start."""
        return self.zero_init_steps

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns c + (w - 1) (c - s u), s = <c, u> / <u, u>."""
        u = {UNCOND: 1.0}
        share = numbers.dot({COND: 1.0}, u) / (numbers.dot(u, u) + 1e-8)
        return {COND: scale, UNCOND: (1.0 - scale) * share}


def cfg_zero_star(scale: Scale, *, zero_init_steps: int = 1, space: str = "output") -> Rule:
    """Returns CFG-Zero*: s u + w (c - s u), s = <c, u> / <u, u> (Fan et al. 2025, 2503.18886).

    The first network calls of a run are left out, and their output is 0. That is meant for flow
    models, where a velocity of 0 leaves the state as it is.

    Args:
        scale: w, or a function of the model time.
        zero_init_steps: how many calls are left out; 0: none.
        space: "output", as diffusers has it, or "x0".

    Raises:
        ValueError: for a scale that is not finite, or a negative number of steps.
    """
    if int(zero_init_steps) != zero_init_steps or zero_init_steps < 0:
        raise ValueError(
            f"{ZeroStar.name}: zero_init_steps is {zero_init_steps} but must be 0 or more"
        )
    return ZeroStar(scale=scale, zero_init_steps=int(zero_init_steps), space=space)


@dataclass(frozen=True, kw_only=True)
class Tangential(Rule):
    """Tangential damping of the unconditional output; see `tcfg`."""

    name = "guidance.tcfg"
    linear = False

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns u' + w (c - u'), u' the part of u along the first singular direction."""
        c, u = {COND: 1.0}, {UNCOND: 1.0}
        cc, cu, uu = numbers.dot(c, c), numbers.dot(c, u), numbers.dot(u, u)
        # The Gram matrix's first eigenvector is (cos, sin) of this angle, its eigenvalue `top`.
        angle = 0.5 * xp.arctan2(2.0 * cu, cc - uu)
        p, q = xp.cos(angle), xp.sin(angle)
        top = cc * p * p + 2.0 * cu * p * q + uu * q * q
        part = _ratio(xp, p * cu + q * uu, top, 0.0)
        rest = (1.0 - scale) * part
        return {COND: scale + rest * p, UNCOND: rest * q}


def tcfg(scale: Scale, *, space: str = "output") -> Rule:
    """Returns tangential damping guidance (Kwon et al. 2025, arXiv 2503.18137).

    Of the unconditional output only the part along the first right-singular vector of the pair
    (c, u) is kept. It follows from the 2 x 2 matrix of their dot products.

    Args:
        scale: w, or a function of the model time.
        space: "output", as diffusers has it, or "x0".

    Raises:
        ValueError: for a scale that is not finite.
    """
    return Tangential(scale=scale, space=space)


@dataclass(frozen=True, kw_only=True)
class Mambo(Rule):
    """Magnitude-aware guidance; see `mambo`."""

    name = "guidance.mambo"
    linear = False

    alpha: float = 8.0

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns c + (w - 1) exp(-alpha |d| / |u|) d; c where u is 0, unless alpha is 0."""
        d, u = _difference(numbers), {UNCOND: 1.0}
        long, base = _length(xp, numbers, d), _length(xp, numbers, u)
        share = _ratio(xp, long, base, math.inf if self.alpha else 0.0)  # 0 inf is no number
        factor = (scale - 1.0) * xp.exp(-self.alpha * share)
        return {COND: 1.0 + factor, UNCOND: -factor}


def mambo(scale: Scale, alpha: float = 8.0, *, space: str = "output") -> Rule:
    """Returns magnitude-aware guidance (arXiv 2508.03442): a scale that falls with |c - u|.

    u + (1 + (w - 1) exp(-alpha |c - u| / |u|)) (c - u), norms of each sample.

    Args:
        scale: w, or a function of the model time.
        alpha: how fast the scale falls, 0 or more.
        space: "output", as diffusers has it, or "x0".

    Raises:
        ValueError: for a scale that is not finite, or a negative alpha.
    """
    if not 0.0 <= float(alpha) < math.inf:
        raise ValueError(f"{Mambo.name}: alpha is {alpha} but must be finite and 0 or more")
    return Mambo(scale=scale, alpha=float(alpha), space=space)


def guided(xp: Any, at: RuleAt, numbers: Any) -> dict[str, Any]:
    """Returns the weights of the tensors in a rule's output, at one network call.

    Args:
        xp: numpy's functions, which also record.
        at: the rule there.
        numbers: see `Numbers`.
    """
    row = dict(at.weights or ())
    if at.weights is None:
        row = at.rule.weights(xp, numbers, at.scale, at.time)
    if at.rescaled:
        factor = rescaling(xp, numbers, row, at.rule.rescaled)
        row = {name: factor * weight for name, weight in row.items()}
    return row
