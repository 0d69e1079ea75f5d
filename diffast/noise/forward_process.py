"""The forward process: noise on clean data, for runs that start part-way (image to image)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
    batch = x0.shape[0]
    times = torch.as_tensor(time, dtype=torch.float64)
    if times.dim() > 1 or (times.dim() and tuple(times.shape) != (batch,)):
        raise ValueError(f"add_noise: time is {list(times.shape)} but there are {batch} samples")
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"add_noise: noise is {list(noise.shape)} but x0 is {list(x0.shape)}")
    values = times.expand(batch).cpu().numpy()
    alpha, sigma = (
        torch.as_tensor(level(values), dtype=torch.float64).to(x0.device).reshape(batch, 1, 1)
        for level in (schedule.alpha, schedule.sigma)
    )
    x0 = x0.contiguous()
    if noise is not None:
        table = torch.cat([alpha, sigma], 2)
        return ops.combine_table([x0, noise.contiguous()], table, None, None, [])[0]
    known = torch.arange(batch) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
    known = known.to(x0.device)
    seeds, words = (torch.full_like(known, n) for n in (ops.fold_seed(seed), ops.INITIAL_NOISE))
    streams = torch.stack([seeds, known, words], 1)
    return ops.combine_table([x0], alpha, sigma, streams, [])[0]
