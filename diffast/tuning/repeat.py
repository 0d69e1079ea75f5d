"""Whether the network answers the same twice, and as it did in the run that is gone on with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from diffast.planning.choose import plan as start_plan
from diffast.tuning.judge import Features, features_of, samples_of
from diffast.tuning.memo import Memo
from diffast.tuning.pilots import Pilots

# Answers that differ by less of their size are the same. Networks in bfloat16 round to 0.4 percent,
# and other kernels for other batches round elsewhere.
_SAME = 0.03
# Calls that are looked at: at the highest level alone conditions change an answer little.
_CALLS = 4


def check_repeats(
    denoiser: Any,
    pilots: Pilots,
    ids: torch.Tensor,
    features: Features | None,
    memo: Memo,
    say: Callable[[str], None],
) -> None:
    """Warns of a network whose answer is another each time, or depends on the rest of the batch.

    Both are what dropout and batch norms do in train mode.

    Args:
        denoiser: the network.
        pilots: the noises.
        ids: [B] of a few of them.
        features: what is compared, see `df.tune`.
        memo: holds the answer of the run that is gone on with.
        say: keeps a note.

    Raises:
        ValueError: if the answer is not that of the run before, where the network repeats itself.
    """
    try:
        plan = start_plan(denoiser, _CALLS)
    except ValueError:  # fewer whole times than that
        plan = start_plan(denoiser, 1)
    made = samples_of(plan, pilots, ids, len(ids))
    again = samples_of(plan, pilots, ids, max(1, len(ids) // 2))
    gap = _gap(made, again)
    if gap > _SAME:
        training = getattr(denoiser.network, "training", False)
        why = (
            "it is in train mode"
            if training
            else "as with dropout, or conditions that are others for the same ids"
        )
        note = (
            f"the network's answer to the same inputs in two batches differs by {gap:.2g} of its "
            f"size ({why}): errors below that mean nothing, and a run that is resumed is another "
            "one; networks are tuned in eval mode"
        )
        say(note)
        warnings.warn(f"tune: {note}", stacklevel=5)
        return
    seen = made if features is None else features_of(features, made.to(pilots.device))
    seen = torch.cat([made.reshape(-1), seen.detach().cpu().reshape(-1).to(made.dtype)])
    before = memo.tensor("answer", lambda: seen)
    if before.shape != seen.shape or _gap(before, seen) > _SAME:
        raise ValueError(
            f"tune: {memo.path} is of a run whose network, conditions or features gave other "
            "numbers for the same noises: give another file"
        )


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the rms difference over the rms size; infinity where only one is finite."""
    fine = one.isfinite()
    if not torch.equal(fine, other.isfinite()):
        return float("inf")
    if not fine.any():
        return 0.0
    a, b = one[fine].double(), other[fine].double()
    size = float(a.square().mean().sqrt())
    return float((a - b).square().mean().sqrt()) / size if size > 0.0 else 0.0
