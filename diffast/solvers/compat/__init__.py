"""Maps as another program writes them, where they are none of the published methods."""

from diffast.solvers.compat.diffusers import *  # noqa: F403
