"""Classifier-free guidance: its scale at each time, and the conditions of its branches.

A network call is made on the branch "cond" (B rows), on the branch "uncond" (B rows), on "both"
(2B rows, the conditional ones first), or with a third branch "extra" (3B rows).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffast.guidance.rule import number_at


def scales_at(
    guidance: float | Callable[[float], float], times: np.ndarray, unconditional: bool
) -> np.ndarray:
    """Returns the guidance scale at each model time, [S] float64.

    Args:
        guidance: the scale, or a function of the model time that returns it.
        times: [S] model times.
        unconditional: whether there are conditions for the unconditional branch.

    Raises:
        ValueError: if a scale is not finite, or needs an unconditional branch that is not there.
    """
    if callable(guidance):
        scales = np.array([number_at("Denoiser", "guidance", guidance, float(t)) for t in times])
    else:
        scales = np.full(len(times), float(guidance))
    if not np.isfinite(scales).all():
        i = int(np.argmin(np.isfinite(scales)))
        raise ValueError(f"Denoiser: guidance is {scales[i]} at t = {times[i]:g}")
    if not unconditional and (scales != 1.0).any():
        scale = scales[scales != 1.0][0]
        raise ValueError(
            f"Denoiser: guidance is {scale:g} but there are no unconditional conditions"
        )
    return scales


def arguments_of(
    branches: Sequence[Mapping[str, Any]], batch: int, device: torch.device
) -> dict[str, Any]:
    """Returns the conditions as one network call on these branches takes them.

    Args:
        branches: the named arguments of each branch; a tensor has B rows, or 1 that is repeated.
        batch: number of samples B.
        device: where the state is.

    Raises:
        ValueError: for a tensor whose first axis is neither the batch nor 1, a condition that only
            some branches of the call have, or one that is no tensor and differs between them.
    """
    first, *others = ({k: _rows(k, v, batch, device) for k, v in b.items()} for b in branches)
    for other in others:
        for name in set(first) ^ set(other):
            raise ValueError(
                f"Denoiser: condition {name!r} is given for some branches of one batched call, but "
                "the network takes the same conditions for all of its rows"
            )
    if not others:
        return first
    return {name: _joined(name, value, [o[name] for o in others]) for name, value in first.items()}


def _joined(name: str, value: Any, others: list[Any]) -> Any:
    """Returns a condition of several branches, in the rows of one batch."""
    if all(_has_rows(v) for v in (value, *others)):
        for other in others:
            if value.shape[1:] != other.shape[1:]:
                raise ValueError(
                    f"Denoiser: condition {name!r} has shape {list(value.shape)} but "
                    f"{list(other.shape)} for the unconditional branch"
                )
        return torch.cat([value, *(other.to(value.dtype) for other in others)])
    if all(_same(value, other) for other in others):
        return value
    raise ValueError(
        f"Denoiser: condition {name!r} differs between the cfg branches of one batched "
        f"call but is a {type(value).__name__}, no tensor with rows: tensors inside of it "
        "have to be conditions of their own, put together in a function around the network"
    )


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _same(value: Any, other: Any) -> bool:
    try:
        return value is other or (type(value) is type(other) and bool(value == other))
    except (RuntimeError, ValueError):  # tensors or arrays in it, which have no one truth
        return False


def _rows(name: str, value: Any, batch: int, device: torch.device) -> Any:
    if not _has_rows(value):
        return value
    if value.shape[0] not in (1, batch):
        raise ValueError(
            f"Denoiser: condition {name!r} has {value.shape[0]} rows but there are {batch} samples"
        )
    return value.to(device).expand(batch, *value.shape[1:])
