"""Cases of the stochastic solvers: name, build, order, sense, step counts where not the default."""

from functools import partial

from diffast.solvers.few_step.consistency import lcm
from diffast.solvers.sde.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    flow_ancestral,
    flow_sde,
)
from diffast.solvers.sde.churn import churn
from diffast.solvers.sde.er_sde import er_sde
from diffast.solvers.sde.exponential import ddpm, dpmpp_2m_sde, dpmpp_3m_sde
from diffast.solvers.sde.pec import pec
from diffast.solvers.sde.sa_solver import sa_solver
from diffast.solvers.sde.seeds import seeds_1, seeds_2, seeds_3


def ode_scale(rho):
    return rho


def sde_scale(rho):
    return rho**2


# Errors of the next order are the larger ones at few steps here.
MANY = (160, 320, 640, 1280)

CASES = (
    ("ddpm_small", ddpm, 1, "weak"),
    ("dpmpp_2m_sde_midpoint", dpmpp_2m_sde, 2, "weak"),
    ("dpmpp_2m_sde_heun", partial(dpmpp_2m_sde, kind="heun"), 2, "weak"),
    ("dpmpp_2m_sde_half", partial(dpmpp_2m_sde, eta=0.5), 2, "weak"),
    ("dpmpp_2m_sde_none", partial(dpmpp_2m_sde, eta=0.0), 2, "strong"),
    ("dpmpp_3m_sde", dpmpp_3m_sde, 2, "weak"),
    ("dpmpp_3m_sde_exact", partial(dpmpp_3m_sde, form="exact"), 2, "weak"),
    ("pec", pec, 2, "weak"),
    ("dpmpp_sde", dpmpp_sde, 1, "weak"),
    ("dpmpp_sde_none", partial(dpmpp_sde, eta=0.0), 2, "strong"),
    ("dpm_2_ancestral", dpm_2_ancestral, 2, "weak"),
    ("dpm_2_ancestral_none", partial(dpm_2_ancestral, eta=0.0), 2, "strong"),
    ("dpmpp_2s_ancestral", dpmpp_2s_ancestral, 2, "weak"),
    ("dpmpp_2s_ancestral_half", partial(dpmpp_2s_ancestral, eta=0.5), 2, "weak"),
    ("dpmpp_2s_ancestral_none", partial(dpmpp_2s_ancestral, eta=0.0), 2, "strong"),
    ("flow_ancestral", flow_ancestral, 1, "weak"),
    ("flow_sde", flow_sde, 1, "weak"),
    ("churn_none_dpm_2", partial(churn, base="dpm_2"), 2, "strong"),
    ("seeds_1", seeds_1, 1, "weak"),
    ("seeds_2", seeds_2, 2, "weak"),
    ("seeds_2_phi_2", partial(seeds_2, kind="phi_2"), 2, "weak"),
    ("seeds_2_none", partial(seeds_2, eta=0.0), 2, "strong"),
    ("seeds_3", seeds_3, 2, "weak", MANY),
    ("sa_solver_2_0", partial(sa_solver, corrector_order=0), 2, "weak"),
    ("sa_solver_1_0", partial(sa_solver, predictor_order=1, corrector_order=0), 1, "weak"),
    ("sa_solver_3_0", partial(sa_solver, predictor_order=3, corrector_order=0), 2, "weak"),
    ("sa_solver_2_0_none", partial(sa_solver, corrector_order=0, tau=0.0), 2, "strong"),
    ("er_sde_1", partial(er_sde, order=1), 1, "weak"),
    ("er_sde_2", partial(er_sde, order=2), 2, "weak"),
    ("er_sde_3", er_sde, 2, "weak"),
    ("er_sde_2_ode", partial(er_sde, order=2, noise_scale=ode_scale), 2, "strong", MANY),
    ("er_sde_2_sde", partial(er_sde, order=2, noise_scale=sde_scale), 2, "weak"),
    ("lcm", lcm, 0, "weak"),
)
