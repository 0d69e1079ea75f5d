"""What schedules share: checks of times, log-SNRs and t_min, and methods of all families."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import ArrayLike

from diffast.schedules.protocol import Schedule


def float64(numbers: ArrayLike) -> np.ndarray:
    """Returns numbers as a float64 array; an array that records numpy's operations stays itself."""
    if isinstance(numbers, NDArrayOperatorsMixin):
        return numbers  # type: ignore[return-value]
    return np.asarray(numbers, dtype=np.float64)


def check_times(schedule: Schedule, t: ArrayLike) -> np.ndarray:
    """Returns t as float64; a time outside the schedule's domain raises ValueError."""
    t = float64(t)
    low, high = schedule.domain
    if not ((t >= low) & (t <= high)).all():
        worst = t[~((t >= low) & (t <= high))].flat[0]
        raise ValueError(f"{type(schedule).__name__}: t = {worst} lies outside [{low}, {high}]")
    return t


def check_lams(schedule: Schedule, lam: ArrayLike) -> np.ndarray:
    """Returns lam as float64, put on lam(t_start) where rounding left it below."""
    lam = float64(lam)
    least = schedule.lam(schedule.t_start)
    if not (lam >= least - 1e-9).all():
        worst = lam[~(lam >= least - 1e-9)].flat[0]
        raise ValueError(
            f"{type(schedule).__name__}: lam = {worst} lies below lam(t_start) = {least}"
        )
    return np.maximum(lam, least)


def check_inside(name: str, option: str, value: float) -> float:
    """Returns value as a float; ValueError unless it lies in (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: {option} = {value}, but it must lie in (0, 1)")
    return float(value)


class Family:
    """The base of schedules: dataclasses of the arguments of the builder of that name."""

    builder: str

    def lam(self: Schedule, t: ArrayLike) -> np.ndarray:
        """Returns log(alpha / sigma)."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def to_dict(self: Any) -> dict:
        """Returns the schedule as a dict that JSON can hold; `from_dict` reads it."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": self.builder, **numbers}


class UnitTime(Family):
    """Those whose time runs from 1 (noise) to 0 (data)."""

    t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)
