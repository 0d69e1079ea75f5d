"""`Rule`: how the outputs of the network's branches become one output.

A rule is data and one function, `weights`. The guided output is a weighted sum of tensors:

    cond, uncond    outputs of the network for the two branches of classifier-free guidance
    extra           the output of a third branch
    momentum        m' = cond - uncond + beta m, remembered from one network call to the next
    low             a low-passed difference cond - uncond, made by `low_pass`

Weights of a linear rule are numbers, which are multiplied into the plan. Weights of other rules are
functions of dot products and sums of these tensors, of each sample for itself. The function is
written for any array module; it is recorded once as a float64 program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

Scale = float | Callable[[float], float]

COND, UNCOND, EXTRA, MOMENTUM, LOW = "cond", "uncond", "extra", "momentum", "low"

# The branches of the network in the order of a batched call, and the name of cond with uncond.
BRANCHES = (COND, UNCOND, EXTRA)
BOTH = "both"

# What numbers a rule sees: those of the outputs as they are, or of the x0 estimates.
SPACES = ("output", "x0")


class Numbers(Protocol):
    """Numbers of one sample's tensors, each rounded to float64 once.

    Attributes:
        names: of the tensors that there are. "momentum" is there from the second call on; before
            it is cond - uncond.
        count: elements of a sample.
    """

    names: tuple[str, ...]
    count: int

    def dot(self, p: Mapping[str, Any], q: Mapping[str, Any]) -> Any:
        """Returns the dot product of two weighted sums of tensors."""
        ...

    def total(self, p: Mapping[str, Any]) -> Any:
        """Returns the sum of the elements of a weighted sum of tensors."""
        ...


class Window(NamedTuple):
    """Where guidance acts: in (low, high] of sigma / alpha (by="sigma") or of the model time."""

    low: float
    high: float
    by: str = "sigma"

    def holds(self, schedule: Any, times: np.ndarray) -> np.ndarray:
        """Returns whether each model time is inside, [S] bool."""
        times = np.asarray(times, dtype=np.float64)
        if self.by == "time":
            return (times > self.low) & (times <= self.high)
        alpha = np.asarray(schedule.alpha(times), dtype=np.float64)
        sigma = np.asarray(schedule.sigma(times), dtype=np.float64)
        return (sigma > self.low * alpha) & (sigma <= self.high * alpha)


class Branch(NamedTuple):
    """What a branch of the network is called with, where that is not the usual.

    Attributes:
        network: a network of its own; None: the denoiser's.
        conditions: conditions in place of the conditional branch's, by name; None: the branch's
            usual ones.
    """

    network: Callable[..., Any] | None = None
    conditions: Mapping[str, Any] | None = None


class Threshold(NamedTuple):
    """Dynamic thresholding: the quantile p of |x0|, at most `maximum`, becomes 1."""

    p: float
    maximum: float


class RuleAt(NamedTuple):
    """A rule at one network call.

    Attributes:
        rule: the rule.
        time: model time of the call.
        scale: the guidance scale there.
        weights: pairs (tensor, weight) of the guided output, where they are numbers; none at all:
            the output is 0. None: they are functions of the sample's numbers.
        rescaled: whether the output's standard deviation is brought back to that of cond.
        threshold: of the x0 estimate.
        low: whether `rule.low_pass` is called.
    """

    rule: Rule
    time: float
    scale: float
    weights: tuple[tuple[str, float], ...] | None
    rescaled: bool
    threshold: Threshold | None
    low: bool

    @property
    def reduces(self) -> bool:
        """Returns whether the weights need numbers of each sample."""
        return self.weights is None or self.rescaled or self.threshold is not None

    @property
    def used(self) -> tuple[str, ...]:
        """Returns the tensors that the output is made of."""
        if self.weights is None:
            return self.rule.columns
        names = tuple(name for name, _ in self.weights)
        return names if not self.rescaled or COND in names else (COND, *names)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A guidance rule; this one is classifier-free guidance, u + w (c - u).

    Another rule is a subclass with a `name`, `linear`, `columns` and `weights`.

    Args:
        scale: w, or a function of the model time that returns it.
        window: where the rule acts; elsewhere the output is cond.
        rescaled: phi of `rescale`.
        threshold: of `dynamic_threshold`.
        space: whose numbers the rule sees, "output" or "x0".

    Raises:
        ValueError: for numbers that are not finite or out of range.
    """

    name: ClassVar[str] = "guidance.cfg"
    linear: ClassVar[bool] = True  # weights that are numbers, in any space
    columns: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    zeroed: ClassVar[int] = 0
    momentum_factor: ClassVar[float | None] = None

    scale: Scale = 1.0
    window: Window | None = None
    rescaled: float = 0.0
    threshold: Threshold | None = None
    space: str = "output"

    def __post_init__(self) -> None:
        """Checks what all rules have."""
        check_scale(self.name, "scale", self.scale)
        if self.space not in SPACES:
            raise ValueError(f"{self.name}: space is {self.space!r} but must be output or x0")

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns the weights of the tensors in the guided output.

        Args:
            xp: numpy's functions, which also record.
            numbers: see `Numbers`; not read by linear rules.
            scale: the guidance scale.
            time: model time.
        """
        return {COND: scale, UNCOND: 1.0 - scale}

    def measured(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Returns those of the tensors that `weights` and its factor of `rescale` ask about."""
        return names

    def low_pass(self, difference: Any) -> Any:
        """Returns the tensor "low" [B, ...] of cond - uncond; rules that weigh it define it."""
        raise NotImplementedError(self.name)

    @property
    def summed(self) -> bool:
        """Returns whether the output is a weighted sum of the branches' outputs, and no more."""
        reduces = not self.linear or self.rescaled != 0.0 or self.threshold is not None
        return not reduces and LOW not in self.columns and not self.zeroed

    @property
    def plain(self) -> bool:
        """Returns whether that sum is of the outputs of one batched call."""
        own = any(branch.network is not None for branch in self.branches.values())
        return self.summed and not own

    @property
    def branches(self) -> dict[str, Branch]:
        """Returns the branches that have a network or conditions of their own."""
        return {}

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the scale at each model time, without the window, [S] float64.

        Raises:
            ValueError: if one is not finite.
        """
        return scales_of(self.name, self.scale, times)

    def __float__(self) -> float:
        """Raises ValueError: a rule is no scale."""
        raise ValueError(
            f"guidance is {self.name}, a rule over the outputs of the network's branches, but only "
            "a scale or a function of the time can be taken here: df.sample runs rules"
        )

    def acts(self, scale: float) -> bool:
        """Returns whether a rule that is not linear changes anything at this scale."""
        return scale != 1.0

    def at(self, time: float, scale: float, inside: bool, number: int) -> RuleAt:
        """Returns the rule at one network call.

        Args:
            time: its model time.
            scale: the guidance scale.
            inside: whether the window holds it.
            number: of the call, from 0.
        """
        weights: dict[str, float] | None = {COND: 1.0}
        if number < self.zeroed:
            weights = {}
        elif inside and self.linear:
            weights = {k: w for k, w in self.weights(np, None, scale, time).items() if w != 0.0}
        elif inside and self.acts(scale):
            weights = None
        acts = weights != {COND: 1.0} and weights != {}
        pairs = None if weights is None else tuple(weights.items())
        low = acts and LOW in (self.columns if weights is None else weights)
        return RuleAt(self, time, scale, pairs, acts and self.rescaled != 0.0, self.threshold, low)

    def with_options(self, **changes: Any) -> Self:
        """Returns the rule with other fields."""
        return replace(self, **changes)


@cache
def branch_names(branches: str) -> tuple[str, ...]:
    """Returns the branches of one network call, in their order in its batch.

    Args:
        branches: "cond", "uncond", "extra", "both" for cond and uncond, or names joined by +.
    """
    if branches == BOTH:
        return COND, UNCOND
    return tuple(branches.split("+")) if branches else ()


def joined_names(names: Iterable[str]) -> str:
    """Returns the name of a call on these branches; see `branch_names`."""
    names = tuple(names)
    return BOTH if names == (COND, UNCOND) else "+".join(names)


def check_scale(who: str, what: str, scale: Any) -> None:
    """Raises ValueError for a scale that is neither a function nor a finite number."""
    if callable(scale):
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.number):
        raise ValueError(f"{who}: {what} is a {type(scale).__name__} but must be a number or f(t)")
    if not math.isfinite(scale):
        raise ValueError(f"{who}: {what} is {scale} but must be finite")


def number_at(who: str, what: str, scale: Callable[[float], Any], time: float) -> float:
    """Returns a scale function's number at a model time.

    Raises:
        ValueError: if the function returns something else, such as a tensor of several numbers.
    """
    made = scale(time)
    try:
        return float(made)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(made, "shape", None)
        form = f"a {type(made).__name__}" + ("" if shape is None else f" of shape {list(shape)}")
        raise ValueError(
            f"{who}: {what} returned {form} at t = {time:g}, but one number is needed"
        ) from None


def scales_of(who: str, scale: Scale, times: np.ndarray) -> np.ndarray:
    """Returns a scale at each model time, [S] float64.

    Raises:
        ValueError: if one is not finite.
    """
    if not callable(scale):
        return np.full(len(times), float(scale))
    found = np.array([number_at(who, "scale", scale, float(t)) for t in times])
    if not np.isfinite(found).all():
        i = int(np.argmin(np.isfinite(found)))
        raise ValueError(f"{who}: scale is {found[i]} at t = {times[i]:g} but must be finite")
    return found


def rule_of(rule: Any) -> Rule:
    """Returns a rule: itself, or classifier-free guidance of a scale."""
    return rule if isinstance(rule, Rule) else Rule(scale=rule)


def rule_name(rule: Rule) -> str:
    """Returns what messages call a guidance rule, with what is done to its output."""
    name = rule.name
    name += " with guidance.rescale" if rule.rescaled else ""
    return name + (" with guidance.dynamic_threshold" if rule.threshold is not None else "")


class Measured:
    """`Numbers` from the sums that the op `gram` makes: products of pairs, then sums.

    Args:
        names: of the tensors, in the order of the op's rows.
        values: J (J + 1) / 2 products (0, 0), (0, 1), ..., (1, 1), ... and J sums: arrays [B], or
            recorded numbers.
        count: elements of a sample.
    """

    def __init__(self, names: tuple[str, ...], values: Any, count: int):
        """Keeps the numbers."""
        self.names, self.values, self.count = names, values, count

    def dot(self, p: Mapping[str, Any], q: Mapping[str, Any]) -> Any:
        """Returns the dot product of two weighted sums of tensors."""
        found: Any = 0.0
        for first, a in p.items():
            for second, b in q.items():
                found = found + a * b * self.values[self._place(first, second)]
        return found

    def total(self, p: Mapping[str, Any]) -> Any:
        """Returns the sum of the elements of a weighted sum of tensors."""
        start = len(self.names) * (len(self.names) + 1) // 2
        found: Any = 0.0
        for name, weight in p.items():
            found = found + weight * self.values[start + self.names.index(name)]
        return found

    def _place(self, first: str, second: str) -> int:
        i, j = sorted((self.names.index(first), self.names.index(second)))
        return i * len(self.names) - i * (i - 1) // 2 + j - i


def width(rows: int) -> int:
    """Returns how many numbers `Measured` has for so many tensors."""
    return rows * (rows + 1) // 2 + rows
