"""The plan to start with for a network and a number of calls, from a table of measurements."""

from diffast.planning.choose import plan as plan

__all__ = ["plan"]
