"""The time tensor of a network call: its dtype, and whole numbers for networks that index."""

from __future__ import annotations

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


def given_times(t: torch.Tensor, wanted: torch.dtype, round_times: bool) -> torch.Tensor:
    """Returns the times in the dtype that the network wants.

    On the CPU a fractional time is also refused here. On a device this check would wait for the
    queue, so only `check_whole` checks there, before the run.

    Args:
        t: model times [B].
        wanted: an integer or floating-point dtype.
        round_times: whether fractional times go to the nearest whole number.

    Raises:
        ValueError: for a fractional time on the CPU, unless round_times is true.
    """
    if wanted.is_floating_point:
        return t.to(wanted)
    whole = t.round()
    if not round_times and t.device.type == "cpu" and not torch.equal(whole, t):
        check_whole(t.numpy().astype(np.float64), wanted)
    return whole.to(wanted)
