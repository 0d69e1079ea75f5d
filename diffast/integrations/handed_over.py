"""The warning of an integration that lets the original's own code take over."""

from __future__ import annotations

import sys
import warnings
from typing import Any


class HandedOverWarning(UserWarning):
    """The original's own code runs instead of a fused step: the same result, not faster.

    Its public name is `df.HandedOverWarning`. `warnings.simplefilter("ignore",
    df.HandedOverWarning)` hides it; "error" in place of "ignore" raises it.
    """


class AnotherPictureWarning(UserWarning):
    """A drop-in differs from its original on purpose, where the original errs."""


def say_once(owner: Any, message: str, kind: type[Warning] = HandedOverWarning) -> None:
    """Warns once for each owner and message.

    Args:
        owner: the object whose work it is about; it remembers what was said.
        message: the sentence.
        kind: the warning's class.
    """
    said = vars(owner).setdefault("_said", set())
    if message in said:
        return
    said.add(message)
    say(message, kind)


def say(message: str, kind: type[Warning] = HandedOverWarning) -> None:
    """Warns with the line of the caller, outside of this package."""
    frame, depth = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").startswith("diffast."):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, kind, stacklevel=depth)
