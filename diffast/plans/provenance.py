"""What a plan was made for: a network, its guidance, and the measurements that chose it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from diffast.plans.initial import arrays_of

if TYPE_CHECKING:
    from diffast.plans.plan import Plan

# The numbers that a run depends on. Names, spans and blocks are left out: they are annotations.
_NUMBERS = ("times", "matrix", "levels", "guidance", "gradients")


def digest(plan: Plan) -> str:
    """Returns 16 hexadecimal digits that change with any number of a plan."""
    found = hashlib.sha256()
    for field in _NUMBERS:
        array = getattr(plan, field)
        if array is not None:
            found.update(f"{field}{array.shape}".encode())
            # NaN has many bit patterns, of which a file keeps one
            found.update(np.where(np.isnan(array), np.nan, array).astype("<f8").tobytes())
    if plan.initial is not None:
        for array in arrays_of(plan.initial):
            found.update(f"initial{array.shape}".encode())
            found.update(array.astype("<f8").tobytes())
    found.update(repr((plan.rows, plan.columns, plan.start, plan.end, plan.check)).encode())
    return found.hexdigest()[:16]


def checked(plan: Plan) -> dict[str, Any] | None:
    """Returns a copy of `made_for` with the plan's digest; None for None.

    Raises:
        ValueError: what JSON cannot hold; a digest that is not that of the plan's numbers.
    """
    if plan.made_for is None:
        return None
    if not isinstance(plan.made_for, Mapping):
        raise ValueError(
            f"Plan {plan.name}: made_for is a {type(plan.made_for).__name__}, but it must be a "
            "mapping of names to what JSON holds"
        )
    try:
        kept = json.loads(json.dumps(dict(plan.made_for), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Plan {plan.name}: made_for must be what JSON holds, but {error}"
        ) from None
    own = digest(plan)
    told = kept.setdefault("digest", own)
    if told != own:
        raise ValueError(
            f"Plan {plan.name}: made_for was written for numbers with the digest {told}, but the "
            f"digest of these numbers is {own}: they were changed, and the measurements are not "
            "theirs. Remove made_for to keep the numbers as a plan without measurements"
        )
    return kept
