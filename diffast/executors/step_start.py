"""The start of a stepwise run: which plans the samples follow, and noise before the first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffast import ops
from diffast.executors.initial import entries_of, origin_of
from diffast.lowering.program import Program
from diffast.plans import Plan


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
    numbers = plan if isinstance(plan, torch.Tensor) else torch.as_tensor(plan, device="cpu")
    if numbers.dim() not in (0, 1) or (numbers.dim() and tuple(numbers.shape) != (batch,)):
        raise ValueError(
            f"Stepper: plan has shape {list(numbers.shape)} but there are {batch} samples"
        )
    chosen = set(numbers.reshape(-1).tolist())
    if not chosen <= set(range(plans)):
        raise ValueError(f"Stepper: plan {sorted(chosen)} but there are {plans} plans, from 0")
    return numbers, chosen


def first_slots(
    pairs: Sequence[tuple[Plan, Any]],
    programs: Sequence[Program],
    chosen: set[int],
    x: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor | None, ...]:
    """Returns the slots of a state at the start: entries that a plan's law fills in, or None.

    Args:
        pairs: (plan, denoiser) of each plan.
        programs: of each plan.
        chosen: the plans that samples follow.
        x: initial states [B, ...].
        count: how many slots there are.

    Raises:
        ValueError: a plan with such entries beside others.
    """
    slots: list[torch.Tensor | None] = [None] * count
    filled = [p for p in sorted(chosen) if programs[p].given]
    if filled and len(chosen) > 1:
        raise ValueError(
            f"Stepper: {pairs[filled[0]][0].name} starts with entries of a Gaussian law, but the "
            "samples of one start follow several plans: start each plan by itself and join them"
        )
    for p in filled:
        plan, read = pairs[p]
        entries = entries_of("Stepper", x, origin_of(plan, getattr(read, "conditions", {})))
        for slot, entry in zip(programs[p].given, entries, strict=True):
            if slot >= 0:
                slots[slot] = entry
    return tuple(slots)


def openings_of(
    programs: Sequence[Program], numbers: torch.Tensor, chosen: set[int]
) -> torch.Tensor | None:
    """Returns weights (state, normal) of the first inputs, [2] or [B, 2] as the numbers are.

    None: the chosen plans begin without noise.
    """
    openings = [program.opening or (1.0, 0.0) for program in programs]
    if all(openings[p] == (1.0, 0.0) for p in chosen):
        return None
    return torch.tensor(openings, dtype=torch.float64, device="cpu")[numbers.cpu()]


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
