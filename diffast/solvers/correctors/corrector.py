"""What a corrector is: the rows of its network calls at one noise level, as float64 numbers.

A corrector moves the state x at a fixed time t by a discrete Langevin dynamics whose law is p_t,
the law of alpha x0 + sigma eps. It sees p_t through its score alone,

    score(x) = (alpha d - x) / sigma^2,     d the x0 estimate for x at t,

in the space of x itself, whatever alpha is. The Hessian of -log p_t is nowhere above 1/sigma^2,
which limits the steps that are stable. So steps are measured in the unit that this gives: sigma for
underdamped dynamics, sigma^2 for overdamped ones.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import hypot
from typing import Any

from diffast.solvers.correctors.exact_step import ScoreRow

# A number, or a function of the model time.
Value = float | Callable[[float], float]


@dataclass(frozen=True)
class Corrector:
    """A Langevin corrector. Build one with the functions of `df.correctors`.

    Args:
        name: what people call it.
        step: its step, in units of sigma^`power`; a number or a function of the model time.
        friction: of underdamped dynamics, in units of 1/sigma; a number or a function of the model
            time. None for overdamped ones.
        length: how long one visit lasts, in the unit of `step`. It is divided into as many steps as
            the visit has calls, and takes the place of `step`. None: by `step`.
        power: 1 or 2, the unit of the step.
    """

    name: str
    step: Value
    friction: Value | None = None
    length: Value | None = None
    power: int = 2

    def visit(
        self,
        t: float,
        alpha: float,
        sigma: float,
        n: int,
        *,
        unit: float | None = None,
        guided: bool = False,
    ) -> list[dict[str, dict[str, float]]]:
        """Returns the rows {register: {column: weight}} of the n network calls of one visit.

        All calls are made at the model time t, where x stands at (alpha, sigma). x is written by
        every call. v is written where a later call of the visit reads it.

        Args:
            t: model time.
            alpha: signal level.
            sigma: noise level, positive.
            n: network calls, 1 or more.
            unit: what steps are measured in, in place of sigma: 1/sqrt(L) for a score with the
                Lipschitz constant L.
            guided: whether the gradients g1 of the denoiser's guidance terms are part of the score.

        Raises:
            ValueError: a step, length or friction that is not positive and finite.
        """
        unit = sigma if unit is None else unit
        if self.length is None:
            h = self._at("step", self.step, t)
        else:
            h = self._at("length", self.length, t) / n
        g = None if self.friction is None else self._at("friction", self.friction, t) / unit
        rows = []
        for k, (x, v) in enumerate(self.steps(h * unit**self.power, g, n)):
            if k + 1 == n:
                rows.append({"x": over_estimate(_one_normal(x), alpha, sigma, guided)})
            else:
                made = {"x": x, "v": v} if v else {"x": x}
                rows.append(
                    {name: over_estimate(row, alpha, sigma, guided) for name, row in made.items()}
                )
        return rows

    def steps(self, h: float, g: float | None, n: int) -> list[tuple[ScoreRow, ScoreRow | None]]:
        """Returns the rows of x and v of n steps over x, v, the score s and two normals.

        Args:
            h: the step.
            g: the friction; None for overdamped dynamics.
            n: how many steps, 1 or more.
        """
        raise NotImplementedError

    def _at(self, what: str, value: Value, t: float) -> float:
        return positive(f"{self.name}: {what}", value, t)

    def __repr__(self) -> str:
        """Returns the name with its options."""
        options = {"step": self.step} if self.length is None else {"length": self.length}
        options |= {} if self.friction is None else {"friction": self.friction}
        shown = ", ".join(f"{k}={'f(t)' if callable(v) else f'{v:g}'}" for k, v in options.items())
        return f"{self.name}({shown})"


def over_estimate(
    row: ScoreRow, alpha: float, sigma: float, guided: bool = False
) -> dict[str, float]:
    """Returns the row with the score s written out over x and the x0 estimate d, and g1."""
    row = dict(row)
    whole_score = row.pop("s", 0.0)
    share = whole_score / sigma**2
    if guided and whole_score:
        row["g1"] = whole_score
    if share:
        row["x"] = row.get("x", 0.0) - share
        row["d"] = alpha * share
    return row


def _one_normal(row: ScoreRow) -> ScoreRow:
    """Returns the row with one normal in place of two: alone, it has the same law."""
    if not row.get("z2"):
        return row
    rest = {name: weight for name, weight in row.items() if name not in ("z1", "z2")}
    return rest | {"z1": hypot(row.get("z1", 0.0), row["z2"])}


def positive(what: str, value: Value, t: float) -> float:
    """Returns the number, or what the function says at t.

    Raises:
        ValueError: it is not positive and finite.
    """
    number = float(value(t)) if callable(value) else float(value)
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{what} = {number} at t = {t:g}, but it must be positive and finite")
    return number


def checked_option(name: str, option: str, value: Any) -> Any:
    """Returns an option that is a positive number or a function.

    Raises:
        ValueError: it is neither.
    """
    if callable(value):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise ValueError(
            f"{name}: {option} = {value!r}, but it must be a positive finite number or a function "
            "of the model time"
        )
    return number


def whole(who: str, n: Any) -> int:
    """Returns n as an int.

    Raises:
        ValueError: it is no whole number of 0 or more.
    """
    try:
        count = operator.index(n)
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"{who}: n = {n!r}, but it must be a whole number, 0 or more")
    return count
