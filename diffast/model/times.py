"""The time tensor of a network call: its dtype, its rounding, and whole numbers for an index.

A time is rounded to the dtype that the network is given it in. Where the nearest number lies
outside of the schedule's domain (float32(pi/2) is above pi/2), the network is told the nearest
number inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

# How far a plan's float64 time may lie from the whole number that it stands for.
ROUNDING = 1e-6


def time_dtype(state: torch.dtype) -> torch.dtype:
    """Returns the dtype of the time tensor that goes with a state of that dtype."""
    return torch.float64 if state == torch.float64 else torch.float32


def check_time_dtype(wanted: torch.dtype | None, round_times: bool) -> None:
    """Raises ValueError for a time dtype that no network takes, or rounding without an integer."""
    if wanted is not None:
        is_dtype = isinstance(wanted, torch.dtype)
        if not is_dtype or wanted == torch.bool or wanted.is_complex:
            raise ValueError(
                f"Denoiser: time_dtype is {wanted!r} but must be an integer or floating-point "
                "dtype, as torch.long"
            )
    if round_times and (wanted is None or wanted.is_floating_point):
        raise ValueError(
            f"Denoiser: round_times is true but time_dtype is {wanted}, which is no integer dtype"
        )


def check_whole(times: np.ndarray, wanted: torch.dtype) -> None:
    """Raises ValueError that names the first fractional time, where an integer dtype is wanted."""
    broken = np.abs(times - np.round(times)) > ROUNDING
    if broken.any():
        raise ValueError(
            f"Denoiser: time_dtype is {wanted}, but the network would be called at "
            f"t = {times[broken].flat[0]:.6g}, which is no whole number: take a grid of whole "
            "times (df.grids.trailing, leading or linspace) or set round_times=True"
        )


@cache
def _ends(low: float, high: float, dtype: torch.dtype) -> tuple[float, float] | None:
    """Returns the ends of [low, high] rounded towards its inside; None: the nearest are inside."""
    nearest = torch.tensor([low, high], dtype=torch.float64, device="cpu").to(dtype)
    found = nearest.double().tolist()
    if low <= found[0] and found[1] <= high:
        return None
    if found[0] < low:
        found[0] = float(torch.nextafter(nearest[0], torch.full_like(nearest[0], torch.inf)))
    if found[1] > high:
        found[1] = float(torch.nextafter(nearest[1], torch.full_like(nearest[1], -torch.inf)))
    return found[0], found[1]


def ends_of(schedule: Any, dtype: torch.dtype) -> tuple[float, float] | None:
    """Returns the least and the largest time of a schedule's domain that a dtype has.

    None: the nearest number of every time of the domain is inside of it.
    """
    return None if dtype == torch.float64 else _ends(*schedule.domain, dtype)


def told_times(schedule: Any, times: Sequence[float], dtype: torch.dtype) -> Sequence[float]:
    """Returns model times whose nearest numbers in the dtype lie in the schedule's domain.

    A time that is itself outside, as a tuned plan may have it, is kept.
    """
    ends = ends_of(schedule, dtype)
    if ends is None:
        return times
    low, high = schedule.domain
    return [min(max(t, ends[0]), ends[1]) if low <= t <= high else t for t in times]


def told_time(schedule: Any, time: float, dtype: torch.dtype) -> float:
    """Returns one such model time."""
    return told_times(schedule, (time,), dtype)[0]


def given_times(
    t: torch.Tensor, wanted: torch.dtype, round_times: bool, schedule: Any
) -> torch.Tensor:
    """Returns the times in the dtype that the network wants.

    On the CPU a fractional time is also refused here. On a device this check would wait for the
    queue, so only `check_whole` checks there, before the run.

    Args:
        t: model times [B].
        wanted: an integer or floating-point dtype.
        round_times: whether fractional times go to the nearest whole number.
        schedule: whose domain the times stay in.

    Raises:
        ValueError: for a fractional time on the CPU, unless round_times is true.
    """
    if wanted.is_floating_point:
        ends = ends_of(schedule, wanted)
        return t.to(wanted) if ends is None else within(t, schedule, wanted)
    whole = t.round()
    if not round_times and t.device.type == "cpu" and not torch.equal(whole, t):
        check_whole(t.numpy().astype(np.float64), wanted)
    return whole.to(wanted)


def within(t: torch.Tensor, schedule: Any, dtype: torch.dtype) -> torch.Tensor:
    """Returns times in a dtype, those of the schedule's domain inside of it; reads no number."""
    ends, rounded = ends_of(schedule, dtype), t.to(dtype)
    if ends is None:
        return rounded
    low, high = schedule.domain
    return torch.where((t < low) | (t > high), rounded, rounded.clamp(*ends))
