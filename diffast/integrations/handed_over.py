"""The warning of a drop-in that lets the original's own code do a piece of work."""


class HandedOverWarning(UserWarning):
    """A drop-in cannot do what it was asked for, so the original's own code does it.

    The result is the original's. What is lost is the speed of the drop-in. The message says what
    the drop-in cannot do.
    """
