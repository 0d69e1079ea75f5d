"""Shifts of a grid towards noise or data, as flow models for large images use them.

A shift by s multiplies sigma/alpha by s: lam -> lam - log(s), on any schedule. On `flow` that is
u -> s u / (1 + (s - 1) u). A shift belongs to the grid and is applied once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids.checks import check_grid, check_positive
from diffast.schedules import Flow, Schedule
from diffast.schedules.domain import check_inside


def shifted(schedule: Schedule, grid: ArrayLike, shift: float) -> np.ndarray:
    """Returns the grid with every sigma/alpha multiplied by shift; [N+1] float64.

    On `flow` u -> shift u / (1 + (shift - 1) u) (Esser et al. 2024, "Scaling rectified flow
    transformers", eq. 23); pure noise and the clean end stay where they are.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        shift: positive; above 1 towards noise (3 for Stable Diffusion 3, 8 for Wan 14B).

    Raises:
        ValueError: shift not positive; a shift past the schedule's start; a grid that `check_grid`
            refuses.
    """
    check_positive("shifted", shift=shift)
    return _moved("shifted", schedule, grid, 1.0, float(np.log(shift)))


def shifted_exponential(
    schedule: Schedule, grid: ArrayLike, mu: float, sigma: float = 1.0
) -> np.ndarray:
    """Returns the grid with lam -> sigma lam - mu; [N+1] float64.

    On `flow` u -> exp(mu) / (exp(mu) + (1/u - 1)^sigma), the dynamic shift of Flux. With sigma = 1
    it is `shifted` by exp(mu); diffusers' "linear" time_shift_type is `shifted` by mu itself.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        mu: see `dynamic_shift`.
        sigma: positive power of sigma/alpha.

    Raises:
        ValueError: mu not finite; sigma not positive; a shift past the schedule's start; a grid
            that `check_grid` refuses.
    """
    if not np.isfinite(mu):
        raise ValueError(f"shifted_exponential: mu = {mu}, but it must be finite")
    check_positive("shifted_exponential", sigma=sigma)
    return _moved("shifted_exponential", schedule, grid, float(sigma), float(mu))


def dynamic_shift(
    image_tokens: float,
    base_tokens: float = 256,
    max_tokens: float = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """Returns mu of `shifted_exponential` for an image of that many tokens.

    The line through (base_tokens, base_shift) and (max_tokens, max_shift), going on beyond both
    (Flux; for 16 x 16 pixels a token, 256 tokens are 256 x 256 pixels and 4096 are 1024 x 1024).

    Args:
        image_tokens: number of tokens the image is made of.
        base_tokens: tokens at which mu is base_shift.
        max_tokens: tokens at which mu is max_shift.
        base_shift: mu of a small image.
        max_shift: mu of a large one.

    Raises:
        ValueError: a number of tokens that is not positive; base_tokens = max_tokens; a shift that
            is not finite.
    """
    check_positive(
        "dynamic_shift", image_tokens=image_tokens, base_tokens=base_tokens, max_tokens=max_tokens
    )
    if base_tokens == max_tokens:
        raise ValueError(
            f"dynamic_shift: max_tokens = {max_tokens}, but it must differ from base_tokens"
        )
    if not (np.isfinite(base_shift) and np.isfinite(max_shift)):
        raise ValueError(
            f"dynamic_shift: base_shift = {base_shift} and max_shift = {max_shift}, but both must "
            "be finite"
        )
    share = (image_tokens - base_tokens) / (max_tokens - base_tokens)
    return float(base_shift + share * (max_shift - base_shift))


def stretched_to_terminal(schedule: Schedule, grid: ArrayLike, shift_terminal: float) -> np.ndarray:
    """Returns a flow grid stretched so that its last noisy time is shift_terminal; [N+1] float64.

    u -> 1 - (1 - u) (1 - shift_terminal) / (1 - u_last): the signal level of every point is
    multiplied by one number (LTX-Video; diffusers' shift_terminal). The clean end stays.

    Args:
        schedule: made by `flow`.
        grid: [N+1] model times; u_last is the last one above 0.
        shift_terminal: the time to end at, in (0, 1).

    Raises:
        ValueError: another schedule; shift_terminal outside (0, 1); a grid whose only noisy time is
            pure noise, or that `check_grid` refuses.
    """
    if not isinstance(schedule, Flow):
        raise ValueError(f"stretched_to_terminal: schedule = {schedule}, but it must be flow")
    check_inside("stretched_to_terminal", "shift_terminal", shift_terminal)
    grid = check_grid(schedule, grid)
    noisy = grid > 0
    last = grid[noisy][-1]
    if last == 1.0:
        raise ValueError(
            "stretched_to_terminal: the grid's only noisy time is 1.0, but it needs one below"
        )
    gain = (1.0 - shift_terminal) / (1.0 - last)
    times = np.where(noisy, 1.0 - (1.0 - grid) * gain, grid)
    times[np.flatnonzero(noisy)[-1]] = shift_terminal
    return check_grid(schedule, times)


def _moved(name, schedule, grid, power, move):
    grid = check_grid(schedule, grid)
    lam = power * schedule.lam(grid) - move
    least = float(schedule.lam(schedule.t_start))
    if not (lam >= least - 1e-9).all():
        raise ValueError(
            f"{name}: moves the first sigma/alpha to {np.exp(-lam[0]):.6g}, but that of the "
            f"schedule starts at {np.exp(-least):.6g}"
        )
    times = schedule.time(np.maximum(lam, least))
    times[np.isposinf(lam)] = schedule.t_end
    return check_grid(schedule, times)
