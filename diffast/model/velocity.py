"""Velocity fields as networks: their time, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch

from diffast.model.outputs import tensor_of
from diffast.model.times import told_times

# How a field takes x and its time.
CALLS: dict[str, Callable[..., Any]] = {
    "x=, t=": lambda field, x, t, more: field(x=x, t=t, **more),
    "x, t": lambda field, x, t, more: field(x, t, **more),
    "t, x": lambda field, x, t, more: field(t, x, **more),
}

# What the time is made of [B] times that are all the same, or of any.
SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "batch": lambda t: t,
    "column": lambda t: t[:, None],
    "scalar": lambda t: t[0],
    "one": lambda t: t[:1],
}
# Shapes that hold one time for all samples.
SHARED = ("scalar", "one")


def prediction_of(
    schedule: Any, times: tuple[float, float] | None
) -> tuple[tuple[float, float], str, float]:
    """Returns (times, prediction type, factor of the output) of a field dx/ds.

    The model time t runs from the schedule's t_start to t_end while s runs from times[0] to
    times[1], so dx/dt = (ds/dt) dx/ds with a constant ds/dt. Its sign is in the prediction type.

    Args:
        schedule: of the path.
        times: s at noise and at data; None: (0, 1), for schedules that run from 1 to 0.

    Raises:
        ValueError: for times that are equal or not finite; None for another schedule.
    """
    start, end = float(schedule.t_start), float(schedule.t_end)
    if times is None:
        if (start, end) != (1.0, 0.0):
            raise ValueError(
                f"Denoiser: from_velocity needs a schedule whose time runs from 1 to 0, but that "
                f"of {schedule} runs from {start:g} to {end:g}: or say which times the field has "
                "at noise and at data, times=(noise, data)"
            )
        times = (0.0, 1.0)
    noise, data = (float(time) for time in times)
    rate = (data - noise) / (end - start)
    if not 0 < abs(rate) < float("inf"):
        raise ValueError(
            f"Denoiser: times = ({noise:g}, {data:g}), but the field's times at noise and at data "
            "must be finite and different"
        )
    return (noise, data), ("flow" if rate > 0 else "reverse_flow"), abs(rate)


class Velocity:
    """A field dx/ds of a time s, as a network of the model time t.

    Args:
        field: the caller's.
        schedule: of the path; s is linear in its time.
        times: s at noise and at data.
        time_scale: factor of what the field is told.
        call: one of CALLS.
        time_shape: one of SHAPES.
        factor: |ds/dt|, by which the output is multiplied.

    Raises:
        ValueError: for a call or a time_shape that is not known, or a time_scale of 0.
    """

    def __init__(
        self,
        field: Callable[..., Any],
        schedule: Any,
        times: tuple[float, float],
        time_scale: float,
        call: str,
        time_shape: str,
        factor: float,
    ):
        """Checks the options."""
        for name, given, known in (("call", call, CALLS), ("time_shape", time_shape, SHAPES)):
            if given not in known:
                listed = ", ".join(map(repr, known))
                raise ValueError(f"Denoiser: {name} is {given!r} but must be one of {listed}")
        if not 0 < abs(time_scale) < float("inf"):
            raise ValueError(f"Denoiser: time_scale is {time_scale} but must be finite and not 0")
        self.field, self.factor = field, factor
        self.parameters = getattr(field, "parameters", None)
        self.call, self.shape = CALLS[call], SHAPES[time_shape]
        # executors that give each sample its own time ask this
        self.one_time = time_shape in SHARED
        slope = (times[1] - times[0]) / (schedule.t_end - schedule.t_start)
        self.slope = time_scale * slope
        self.offset = time_scale * (times[1] - slope * schedule.t_end)
        low, high = sorted(time_scale * time for time in times)
        self.domain = (low, high)
        self.model_times = (float(schedule.t_end), float(schedule.t_start))
        self._ends: dict[torch.dtype, tuple[float, float] | None] = {}

    def like(self, field: Callable[..., Any]) -> Velocity:
        """Returns another field of the same conventions, such as a weaker one."""
        made = copy(self)
        made.field, made.parameters = field, getattr(field, "parameters", None)
        return made

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> Any:
        """Returns the field's answer, dx/ds times |ds/dt|."""
        if self.one_time and t.device.type == "cpu" and not torch.equal(t, t[:1].expand_as(t)):
            raise ValueError(
                "Denoiser: the field takes one time for all samples, but this run gives each "
                "sample its own: use df.sample, or a field with time_shape='batch'"
            )
        told = self._told(t)
        if told is not t and t.is_floating_point() and (ends := self._ends_in(t.dtype)) is not None:
            told = told.clamp(*ends)
        answer = self.call(self.field, x, self.shape(told), conditions)
        if self.factor == 1.0:
            return answer
        answer = tensor_of(answer)
        return self.factor * answer if answer.is_floating_point() else answer  # which is refused

    def _told(self, t: torch.Tensor) -> torch.Tensor:
        told = t if self.slope == 1.0 else self.slope * t
        return told if self.offset == 0.0 else self.offset + told

    def _ends_in(self, dtype: torch.dtype) -> tuple[float, float] | None:
        """Returns the field's first and last time in a dtype; None: no rounding leads beyond."""
        if dtype not in self._ends:
            reached = self._told(torch.tensor(self.model_times, dtype=dtype, device="cpu"))
            inside = told_times(self, self.domain, dtype)
            beyond = not inside[0] <= reached.min() <= reached.max() <= inside[1]
            self._ends[dtype] = (inside[0], inside[1]) if beyond else None
        return self._ends[dtype]
