"""The model times of a run's network calls, as tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from diffast.executors.device import on_host, sent
from diffast.lowering.program import Stage
from diffast.model.times import told_times
from diffast.plans import Plan

# Model times on devices by plan: a run that a user captures as a graph must not copy them.
_times: WeakKeyDictionary = WeakKeyDictionary()


@torch.inference_mode(False)
def _on_device(
    plan: Plan, told: list[float], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Returns the model times of all calls of a plan, in order."""
    times = torch.tensor(told_times(plan.schedule, told, dtype), dtype=dtype, device="cpu")
    if on_host(device):
        return times
    kept = _times.setdefault(plan, {})
    if (dtype, device) not in kept:
        (kept[dtype, device],) = sent(device, times.numpy())
    return kept[dtype, device]


def times_of(
    plan: Plan,
    stages: Sequence[Stage],
    rows: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> list[torch.Tensor | None]:
    """Returns the times of each stage's network batch; None for a stage without a network call.

    Args:
        plan: whose times they are.
        stages: of the lowered plan.
        rows: of each stage's network batch.
        dtype: of the times.
        device: where they are needed.
    """
    told = [time for stage in stages for time in stage.times]
    times = _on_device(plan, told, dtype, device)
    if len(told) == len(stages) and len(set(rows)) == 1:  # one view serves all
        return list(times[:, None].expand(-1, rows[0]).unbind())
    each, found = iter(times), []
    for stage, count in zip(stages, rows, strict=True):
        parts = [next(each).expand(count // len(stage.times)) for _ in stage.times]
        found.append(parts[0] if len(parts) == 1 else torch.cat(parts) if parts else None)
    return found
