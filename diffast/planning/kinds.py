"""Kinds of schedules that the table tells apart, and a denoiser's demands on a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffast.schedules import Schedule

# Guidance scales from here on take the rows that were learned for guided mixtures.
GUIDED_FROM = 1.5
# From this sigma / alpha at the start on a schedule has no signal left there, as one of alpha = 0:
# cosine betas start at 20,000. Rows for starts with signal were learned up to about 15.
NO_SIGNAL = 1000.0


def kind_of(schedule: Schedule) -> str:
    """Returns the kind of a schedule by its two ends.

    "flow": alpha is 0 or nearly 0 at the start, as on `flow`, `trig`, betas of zero terminal SNR
    and cosine betas.
    "ve": alpha is the same at both ends (`ve`, `edm`). "vp": all others.
    """
    ends = np.array([schedule.t_start, schedule.t_end], dtype=np.float64)
    first, last = np.asarray(schedule.alpha(ends), dtype=np.float64).tolist()
    if first == last:
        return "ve"
    return "flow" if float(schedule.sigma(ends[0])) >= NO_SIGNAL * first else "vp"


@dataclass(frozen=True)
class Wanted:
    """What a plan is asked for.

    Attributes:
        schedule: the noise schedule.
        kind: see `kind_of`.
        guidance: the largest scale of classifier-free guidance.
        whole: whether the network takes whole numbers alone as times.
    """

    schedule: Any
    kind: str
    guidance: float
    whole: bool

    @property
    def guided(self) -> bool:
        """Returns whether the rows of guided networks are taken."""
        return self.guidance >= GUIDED_FROM


def wanted_of(denoiser: Any, guidance: float | None) -> Wanted:
    """Returns what a denoiser, or a schedule alone, asks of a plan.

    Args:
        denoiser: a `df.Denoiser` or a schedule.
        guidance: the scale; None: that of the denoiser, 1 for a schedule.

    Raises:
        TypeError: for anything else.
        ValueError: for a scale that is not finite.
    """
    schedule = getattr(denoiser, "schedule", denoiser)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"plan: the first argument is a {type(denoiser).__name__}, but it must be a "
            "df.Denoiser or a schedule of df.schedules"
        )
    scale = _scale_of(denoiser, schedule) if guidance is None else guidance
    if not isinstance(scale, int | float | np.number) or not np.isfinite(scale):
        raise ValueError(f"plan: guidance is {scale!r}, but it must be a finite number")
    whole = getattr(denoiser, "whole_times", False)  # a schedule has no such attribute
    return Wanted(schedule, kind_of(schedule), float(scale), whole)


def _scale_of(denoiser: Any, schedule: Schedule) -> Any:
    """Returns the denoiser's scale; of a function of the model time the largest of 33 values."""
    scale = getattr(denoiser, "guidance", 1.0)
    scale = getattr(scale, "scale", scale)  # of a guidance rule
    if not callable(scale):
        return scale
    times = np.linspace(float(schedule.t_start), float(schedule.t_min), 33)
    return max((float(scale(t)) for t in times.tolist()), key=abs)  # pyright: ignore
