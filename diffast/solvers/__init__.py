"""Solvers: numpy functions (schedule, grid, options) -> Plan, and the table of their names.

`get(name)` returns a builder by its name, `SOLVERS` is the table. The families are in the folders
`ode`, `sde`, `few_step` and `splitting`. `correctors` holds Langevin correctors, which
`predictor_corrector` puts between the steps of any plan. `embedded` holds the methods with an error
estimate, for `df.sample_adaptive`. `aliases` holds second names of solvers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffast._namespace import attributes, listing, lookup
from diffast.plans import Plan
from diffast.solvers.aliases import dpm_2, etdrk2, euler_ancestral, ralston, res_2m, res_3m
from diffast.solvers.correctors.compose import predictor_corrector
from diffast.solvers.correctors.dpum import dpom, dpum
from diffast.solvers.few_step.consistency import lcm, tcd
from diffast.solvers.guided.cfg_plus_plus import cfg_plus_plus
from diffast.solvers.guided.on_state import on_state
from diffast.solvers.guided.rectified_cfg import rectified_cfg
from diffast.solvers.guided.renoised import renoised
from diffast.solvers.ode.adams import (
    deis,
    exponential_adams,
    gradient_estimation,
    ipndm,
    ipndm_v,
    lms,
    plms,
)
from diffast.solvers.ode.adams_clocks import adams
from diffast.solvers.ode.dpm_multistep import dpm_solver_2m, dpm_solver_3m, dpmpp_2m, dpmpp_3m
from diffast.solvers.ode.euler import ddim, euler, heun
from diffast.solvers.ode.exponential import etdrk3, etdrk4, krogstad4, res_2s, res_3s
from diffast.solvers.ode.runge_kutta import bosh3, dopri5, midpoint, rk4, tsit5
from diffast.solvers.ode.singlestep import (
    dpm_fast,
    dpm_solver_2s,
    dpm_solver_3s,
    dpmpp_2s,
    dpmpp_3s,
    singlestep,
)
from diffast.solvers.ode.unipc import unipc
from diffast.solvers.sde.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    flow_ancestral,
    flow_sde,
)
from diffast.solvers.sde.churn import churn, restart
from diffast.solvers.sde.er_sde import er_sde
from diffast.solvers.sde.exponential import ddpm, dpm_solver_2m_sde, dpmpp_2m_sde, dpmpp_3m_sde
from diffast.solvers.sde.pec import pec
from diffast.solvers.sde.piadm import piadm_ode, piadm_sde
from diffast.solvers.sde.resampled import resampled
from diffast.solvers.sde.sa_solver import sa_solver
from diffast.solvers.sde.seeds import seeds_1, seeds_2, seeds_3
from diffast.solvers.splitting.additive import additive_multistep
from diffast.solvers.splitting.heavy_ball import heavy_ball
from diffast.solvers.splitting.lie_strang import ltsp, stsp
from diffast.solvers.splitting.momentum import ghvb

__all__ = ["euler", "ddim", "euler_ancestral", "heun", "midpoint", "ralston"]
__all__ += ["bosh3", "rk4", "dopri5", "tsit5"]
__all__ += ["dpm_solver_2s", "dpm_2", "dpm_solver_3s", "dpmpp_2s", "dpmpp_3s"]
__all__ += ["dpm_fast", "singlestep"]
__all__ += ["res_2s", "res_3s", "etdrk2", "etdrk3", "etdrk4", "krogstad4"]
__all__ += ["dpmpp_2m", "dpmpp_3m", "dpm_solver_2m", "dpm_solver_3m", "unipc", "deis"]
__all__ += ["adams", "lms", "ipndm", "gradient_estimation", "ipndm_v", "plms"]
__all__ += ["exponential_adams", "res_2m", "res_3m"]
__all__ += ["dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "flow_ancestral", "flow_sde"]
__all__ += ["ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_solver_2m_sde", "sa_solver"]
__all__ += ["seeds_1", "seeds_2", "seeds_3", "er_sde", "pec", "churn", "restart"]
__all__ += ["piadm_sde", "piadm_ode", "dpom", "dpum", "lcm", "tcd"]
__all__ += ["ghvb", "heavy_ball", "ltsp", "stsp", "additive_multistep"]

SOLVERS: dict[str, Callable[..., Plan]] = {name: globals()[name] for name in __all__}

# A plan from a plan: no builder of (schedule, grid).
__all__ += ["predictor_corrector", "resampled"]
# For guided runs: no solvers of the network's own distribution.
__all__ += ["on_state", "renoised", "cfg_plus_plus", "rectified_cfg"]


def get(name: str) -> Callable[..., Plan]:
    """Returns the builder of that name.

    Raises:
        ValueError: an unknown name; the message gives the nearest ones, and all of them.
    """
    return lookup("solver", SOLVERS, name)


__doc__ = f"{__doc__}{listing('df.solvers', SOLVERS)}"
if not TYPE_CHECKING:  # a checker is to tell misspelt names itself
    __getattr__, __dir__ = attributes(__name__, __all__)
