"""Maps of other programs that differ from the published methods."""

from diffast.solvers.compat.ancestral import *  # noqa: F403
from diffast.solvers.compat.diffusers import *  # noqa: F403
from diffast.solvers.compat.given import dpm_2m_sde as dpm_2m_sde
from diffast.solvers.compat.given import repaint as repaint
from diffast.solvers.compat.multistep import *  # noqa: F403
from diffast.solvers.compat.strides import consistency as consistency
from diffast.solvers.compat.strides import inverse_strides as inverse_strides
from diffast.solvers.compat.strides import posterior as posterior
from diffast.solvers.compat.strides import tcd as tcd
