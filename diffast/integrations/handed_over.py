"""The warning of an integration that lets the original's own code take over."""

from __future__ import annotations

import warnings
from typing import Any


class HandedOverWarning(UserWarning):
    """The original's own code runs instead of a fused step: the same result, not faster."""


def say_once(owner: Any, message: str, stacklevel: int = 3) -> None:
    """Warns with a `HandedOverWarning`, once for each owner and message.

    Args:
        owner: the object whose work is handed over; it remembers what was said.
        message: the sentence.
        stacklevel: as of `warnings.warn`.
    """
    said = vars(owner).setdefault("_said", set())
    if message in said:
        return
    said.add(message)
    warnings.warn(message, HandedOverWarning, stacklevel=stacklevel + 1)
