"""Maps of other programs that differ from the published methods."""

from diffast.solvers.compat.ancestral import *  # noqa: F403
from diffast.solvers.compat.diffusers import *  # noqa: F403
from diffast.solvers.compat.multistep import *  # noqa: F403
