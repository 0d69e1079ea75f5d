"""Checks of a schedule's times, log-SNRs and t_min."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.protocol import Schedule


def check_times(schedule: Schedule, t: ArrayLike) -> np.ndarray:
    """Returns t as float64; a time outside the schedule's domain raises ValueError."""
    t = np.asarray(t, dtype=np.float64)
    low, high = schedule.domain
    if not ((t >= low) & (t <= high)).all():
        worst = t[~((t >= low) & (t <= high))].flat[0]
        raise ValueError(f"{type(schedule).__name__}: t = {worst} lies outside [{low}, {high}]")
    return t


def check_lams(schedule: Schedule, lam: ArrayLike) -> np.ndarray:
    """Returns lam as float64, put on lam(t_start) where rounding left it below."""
    lam = np.asarray(lam, dtype=np.float64)
    least = schedule.lam(schedule.t_start)
    if not (lam >= least - 1e-9).all():
        worst = lam[~(lam >= least - 1e-9)].flat[0]
        raise ValueError(
            f"{type(schedule).__name__}: lam = {worst} lies below lam(t_start) = {least}"
        )
    return np.maximum(lam, least)


def check_t_min(name: str, t_min: float) -> None:
    """Raises ValueError unless t_min lies in (0, 1)."""
    if not 0 < t_min < 1:
        raise ValueError(f"{name}: t_min = {t_min}, but it must lie in (0, 1)")
