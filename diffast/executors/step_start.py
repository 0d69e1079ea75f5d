"""The start of a stepwise run: which plans the samples follow, and noise before the first call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffast import ops
from diffast.lowering.program import Program


def chosen_plans(
    plan: int | Sequence[int] | torch.Tensor, plans: int, batch: int
) -> tuple[torch.Tensor, set[int]]:
    """Returns (plan numbers, [] or [B]; which plans are among them).

    Args:
        plan: one number, or one for each sample.
        plans: how many plans there are.
        batch: how many samples there are.

    Raises:
        ValueError: numbers that do not count the samples; a plan that there is not.
    """
    numbers = torch.as_tensor(plan)
    if numbers.dim() not in (0, 1) or (numbers.dim() and tuple(numbers.shape) != (batch,)):
        raise ValueError(
            f"Stepper: plan has shape {list(numbers.shape)} but there are {batch} samples"
        )
    chosen = set(numbers.reshape(-1).tolist())
    if not chosen <= set(range(plans)):
        raise ValueError(f"Stepper: plan {sorted(chosen)} but there are {plans} plans, from 0")
    return numbers, chosen


def openings_of(
    programs: Sequence[Program], numbers: torch.Tensor, chosen: set[int]
) -> torch.Tensor | None:
    """Returns weights (state, normal) of the first inputs, [2] or [B, 2] as the numbers are.

    None: the chosen plans begin without noise.
    """
    openings = [program.opening or (1.0, 0.0) for program in programs]
    if all(openings[p] == (1.0, 0.0) for p in chosen):
        return None
    return torch.tensor(openings, dtype=torch.float64)[numbers.cpu()]


def opened(
    x: torch.Tensor,
    openings: torch.Tensor,
    seed: int,
    ids: torch.Tensor,
    z: torch.Tensor | None,
    given: bool,
) -> torch.Tensor:
    """Returns the first model inputs [B, ...] of plans that begin with noise.

    Args:
        x: initial states [B, ...].
        openings: weights (state, normal), [2] or [B, 2], on the device.
        seed: of the noise.
        ids: [B] int64.
        z: normals [B, ...]; None where none are given.
        given: whether the noise is given.

    Raises:
        ValueError: noise that should be given and is not.
    """
    table = openings.expand(len(x), 2)
    keep, fresh = table[:, None, :1].contiguous(), table[:, None, 1:].contiguous()
    if given:
        if z is None:
            raise ValueError("Stepper: the plan begins with noise, but no z is given")
        weights = torch.cat([keep, fresh], 2)
        return ops.combine_table([x, z.contiguous()], weights, None, None, [])[0]
    words = torch.full_like(ids, ops.OPENING_NOISE)
    streams = torch.stack([torch.full_like(ids, seed), ids, words], 1)
    return ops.combine_table([x], keep, fresh, streams, [])[0]
