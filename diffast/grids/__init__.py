"""Time grids: float64 model times [N+1], strictly from noisy to clean, both ends included.

Sampling starts at grid[0], and the sample stands at grid[-1]. The network is called at all times
but the last one. Two-stage solvers call it there too, unless sigma is 0.

    uniform_time trailing leading linspace                     even in model time or indices
    even uniform_flow                                          even in a time variable
    default                                                    the grid to start with
    karras uniform_logsnr exponential lu polyexponential
      laplace kl_optimal beta_sigmas ou_early ou_stages        a function of sigma/alpha
    simple normal sgm_uniform ddim_uniform beta                a table of training noise levels
    flow_sigmas flow_match linear_quadratic                    the time of a flow
    ays vp from_times from_sigmas                              numbers that are given
    shifted shifted_exponential stretched_to_terminal          a grid, moved
    part part_by_strength part_by_denoise                      a grid, cut
"""

from typing import TYPE_CHECKING

from diffast._namespace import attributes, listing
from diffast.grids.checks import check_grid
from diffast.grids.clocks import even, uniform_flow
from diffast.grids.cuts import part, part_by_denoise, part_by_strength
from diffast.grids.flows import flow_match, flow_sigmas, linear_quadratic
from diffast.grids.given import ays, from_sigmas, from_times, vp
from diffast.grids.indices import leading, linspace, trailing, uniform_time
from diffast.grids.levels import (
    beta_sigmas,
    exponential,
    karras,
    kl_optimal,
    laplace,
    lu,
    ou_early,
    polyexponential,
    uniform_logsnr,
)
from diffast.grids.shifts import (
    dynamic_shift,
    shifted,
    shifted_exponential,
    stretched_to_terminal,
)
from diffast.grids.stages import ou_stages
from diffast.grids.starting import default
from diffast.grids.table import beta, ddim_uniform, normal, sgm_uniform, simple

__all__ = ["uniform_time", "trailing", "leading", "linspace", "check_grid"]
__all__ += ["default", "even", "uniform_flow"]
__all__ += ["karras", "uniform_logsnr", "exponential", "lu", "polyexponential"]
__all__ += ["laplace", "kl_optimal", "beta_sigmas", "ou_early", "ou_stages"]
__all__ += ["simple", "normal", "sgm_uniform", "ddim_uniform", "beta"]
__all__ += ["flow_sigmas", "flow_match", "linear_quadratic"]
__all__ += ["ays", "vp", "from_times", "from_sigmas"]
__all__ += ["shifted", "shifted_exponential", "dynamic_shift", "stretched_to_terminal"]
__all__ += ["part", "part_by_strength", "part_by_denoise"]

__doc__ = f"{__doc__}{listing('df.grids', {name: globals()[name] for name in sorted(__all__)})}"
if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__, __dir__ = attributes(__name__, __all__)
