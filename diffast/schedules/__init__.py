"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, as frozen dataclasses of plain numbers.

Every schedule has, for a float64 scalar or array of its model time t:

    alpha(t), sigma(t)      signal and noise level, sigma in the unit of the data
    derivatives(t)          (dalpha/dt, dsigma/dt), analytic
    lam(t)                  log(alpha / sigma), half the log-SNR: inf where sigma = 0
    time(lam)               the inverse of lam, in closed form (`from_functions`: by iteration)
    domain                  (lowest t, highest t) at which the formulas hold
    t_start                 the noisiest time, where sampling starts
    t_end                   the clean end: alpha = 1 and sigma = 0 in every schedule of this package
                            (`from_functions` allows sigma > 0)
    t_min                   the least noisy time at which grids in log-SNR call the network
    kinks                   times at which a derivative jumps, where there are any
    to_dict()               its name and numbers; `from_dict` returns an equal schedule

A time outside `domain`, or a lam of no time in the domain, raises ValueError.
"""

from typing import TYPE_CHECKING

from diffast._namespace import attributes, listing
from diffast.schedules.cosine import VPCosine, vp_cosine
from diffast.schedules.discrete import FromBetas, from_betas, zero_terminal_snr
from diffast.schedules.functions import FromFunctions, from_functions, from_table
from diffast.schedules.interpolants import Flow, Trig, flow, trig
from diffast.schedules.protocol import Schedule
from diffast.schedules.saved import from_dict
from diffast.schedules.sigma_space import SigmaSpace, edm, ve
from diffast.schedules.vp import SubVP, VPLinear, sub_vp, vp_linear

__all__ = ["Schedule", "Flow", "FromBetas", "SigmaSpace", "SubVP", "Trig", "VPCosine", "VPLinear"]
__all__ += ["vp_linear", "vp_cosine", "sub_vp", "ve", "edm", "flow", "trig"]
__all__ += ["from_betas", "zero_terminal_snr", "from_dict"]
__all__ += ["FromFunctions", "from_functions", "from_table"]

__doc__ = f"{__doc__}{listing('df.schedules', {name: globals()[name] for name in sorted(__all__)})}"
if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__, __dir__ = attributes(__name__, __all__)
