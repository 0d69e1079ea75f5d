"""Maps of other programs that differ from the published methods."""

from diffast.solvers.compat.diffusers import *  # noqa: F403
