"""`HandedOverWarning`: a drop-in could not do something itself, so the original's own code ran."""

from __future__ import annotations


class HandedOverWarning(UserWarning):
    """A drop-in handed a call over to the code of the program that it stands in for.

    The result is that program's. The message names what the drop-in could not do, and the call that
    ran in its place.
    """
