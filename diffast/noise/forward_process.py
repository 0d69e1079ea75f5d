"""The forward process: noise on clean data, for runs that start part-way (image to image)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast import ops


def add_noise(
    schedule,
    x0: torch.Tensor,
    time: float | torch.Tensor,
    *,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns alpha x0 + sigma eps at a model time, [B, ...]: the `x=` of `df.sample`.

    The eps of sample b is the initial noise of a run with (seed, ids[b]).

        grid = df.grids.part_by_strength(schedule, grid, 0.6)
        plan = df.solvers.dpmpp_2m(schedule, grid)
        start = df.add_noise(schedule, image, grid[0], seed=1)
        out = df.sample(denoiser, plan, x=start, seed=1)

    Args:
        schedule: any schedule.
        x0: clean data [B, ...].
        time: model time, or [B], one a sample.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        noise: normals [B, ...] in place of the package's.

    Raises:
        ValueError: times that do not count the samples; noise of another shape.
    """
    who = "add_noise"
    batch = len(_data(who, "x0", x0))
    if not hasattr(schedule, "alpha"):
        raise TypeError(f"{who}: schedule is {arguments.shown(schedule)} but one is needed")
    try:
        times = torch.as_tensor(time, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        said = arguments.shown(time)
        raise TypeError(f"{who}: time is {said} but must be a number, or one a sample") from None
    if times.dim() > 1 or (times.dim() and tuple(times.shape) != (batch,)):
        raise ValueError(f"add_noise: time is {list(times.shape)} but there are {batch} samples")
    if noise is not None and _data(who, "noise", noise).shape != x0.shape:
        raise ValueError(f"add_noise: noise is {list(noise.shape)} but x0 is {list(x0.shape)}")
    values = times.expand(batch).cpu().numpy()
    low, high = schedule.domain
    outside = values[~((values >= low) & (values <= high))]
    if len(outside):
        raise ValueError(
            f"{who}: time is {outside[0]:g}, which lies outside of [{low:g}, {high:g}], the times "
            f"of {schedule}"
        )
    alpha, sigma = (
        torch.from_numpy(np.asarray(level(values), dtype=np.float64).reshape(batch, 1, 1)).to(
            x0.device
        )
        for level in (schedule.alpha, schedule.sigma)
    )
    x0 = x0.contiguous()
    if noise is not None:
        table = torch.cat([alpha, sigma], 2)
        return ops.combine_table([x0, noise.contiguous()], table, None, None, [])[0]
    known = torch.arange(batch, device="cpu") if ids is None else arguments.ids(who, ids, batch)
    known = known.to(x0.device)
    try:
        seed = ops.fold_seed(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from None
    seeds, words = (torch.full_like(known, n) for n in (seed, ops.INITIAL_NOISE))
    streams = torch.stack([seeds, known, words], 1)
    return ops.combine_table([x0], alpha, sigma, streams, [])[0]


def _data(who: str, name: str, x: Any) -> torch.Tensor:
    """Returns a tensor [B, ...] of floating-point numbers; ValueError for anything else."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{who}: {name} is {arguments.shown(x)} but a tensor is needed")
    if x.dtype not in arguments.FLOATS or x.dim() < 1 or x.layout is not torch.strided:
        raise ValueError(
            f"{who}: {name} is {arguments.shown(x)}, but a dense tensor [B, ...] of floating-point "
            "numbers is needed"
        )
    return x
