"""Solvers: numpy functions (schedule, grid, options) -> Plan, and the table of their names."""

from __future__ import annotations

from diffast.solvers.few_step.consistency import lcm as lcm
from diffast.solvers.few_step.consistency import tcd as tcd
from diffast.solvers.ode.adams import gradient_estimation as gradient_estimation
from diffast.solvers.ode.adams import ipndm as ipndm
from diffast.solvers.ode.adams import ipndm_v as ipndm_v
from diffast.solvers.ode.adams import lms as lms
from diffast.solvers.ode.deis import deis as deis
from diffast.solvers.ode.dpm_multistep import dpm_solver_2m as dpm_solver_2m
from diffast.solvers.ode.dpm_multistep import dpm_solver_3m as dpm_solver_3m
from diffast.solvers.ode.dpmpp import dpmpp_2m as dpmpp_2m
from diffast.solvers.ode.dpmpp import dpmpp_3m as dpmpp_3m
from diffast.solvers.ode.euler import ddim as ddim
from diffast.solvers.ode.euler import euler as euler
from diffast.solvers.ode.euler import euler_ancestral as euler_ancestral
from diffast.solvers.ode.exponential import etdrk2 as etdrk2
from diffast.solvers.ode.exponential import etdrk3 as etdrk3
from diffast.solvers.ode.exponential import etdrk4 as etdrk4
from diffast.solvers.ode.exponential import krogstad4 as krogstad4
from diffast.solvers.ode.exponential import res_2s as res_2s
from diffast.solvers.ode.exponential import res_3s as res_3s
from diffast.solvers.ode.exponential_adams import exponential_adams as exponential_adams
from diffast.solvers.ode.exponential_adams import res_2m as res_2m
from diffast.solvers.ode.exponential_adams import res_3m as res_3m
from diffast.solvers.ode.heun import heun as heun
from diffast.solvers.ode.plms import plms as plms
from diffast.solvers.ode.runge_kutta import bosh3 as bosh3
from diffast.solvers.ode.runge_kutta import dopri5 as dopri5
from diffast.solvers.ode.runge_kutta import midpoint as midpoint
from diffast.solvers.ode.runge_kutta import ralston as ralston
from diffast.solvers.ode.runge_kutta import rk4 as rk4
from diffast.solvers.ode.runge_kutta import tsit5 as tsit5
from diffast.solvers.ode.singlestep import dpm_2 as dpm_2
from diffast.solvers.ode.singlestep import dpm_fast as dpm_fast
from diffast.solvers.ode.singlestep import dpm_solver_2s as dpm_solver_2s
from diffast.solvers.ode.singlestep import dpm_solver_3s as dpm_solver_3s
from diffast.solvers.ode.singlestep import dpmpp_2s as dpmpp_2s
from diffast.solvers.ode.singlestep import dpmpp_3s as dpmpp_3s
from diffast.solvers.ode.singlestep import singlestep as singlestep
from diffast.solvers.ode.unipc import unipc as unipc
from diffast.solvers.sde.ancestral import dpm_2_ancestral as dpm_2_ancestral
from diffast.solvers.sde.ancestral import dpmpp_2s_ancestral as dpmpp_2s_ancestral
from diffast.solvers.sde.ancestral import dpmpp_sde as dpmpp_sde
from diffast.solvers.sde.ancestral import flow_ancestral as flow_ancestral
from diffast.solvers.sde.ancestral import flow_sde as flow_sde
from diffast.solvers.sde.churn import churn as churn
from diffast.solvers.sde.churn import restart as restart
from diffast.solvers.sde.er_sde import er_sde as er_sde
from diffast.solvers.sde.exponential import ddpm as ddpm
from diffast.solvers.sde.exponential import dpm_solver_2m_sde as dpm_solver_2m_sde
from diffast.solvers.sde.exponential import dpmpp_2m_sde as dpmpp_2m_sde
from diffast.solvers.sde.exponential import dpmpp_3m_sde as dpmpp_3m_sde
from diffast.solvers.sde.pec import pec as pec
from diffast.solvers.sde.piadm import piadm_ode as piadm_ode
from diffast.solvers.sde.piadm import piadm_sde as piadm_sde
from diffast.solvers.sde.sa_solver import sa_solver as sa_solver
from diffast.solvers.sde.seeds import seeds_1 as seeds_1
from diffast.solvers.sde.seeds import seeds_2 as seeds_2
from diffast.solvers.sde.seeds import seeds_3 as seeds_3

SOLVERS = {
    build.__name__: build
    for build in (
        euler,
        ddim,
        euler_ancestral,
        heun,
        midpoint,
        ralston,
        bosh3,
        rk4,
        dopri5,
        tsit5,
        dpm_solver_2s,
        dpm_2,
        dpm_solver_3s,
        dpmpp_2s,
        dpmpp_3s,
        dpm_fast,
        singlestep,
        res_2s,
        res_3s,
        etdrk2,
        etdrk3,
        etdrk4,
        krogstad4,
        dpmpp_2m,
        dpmpp_3m,
        dpm_solver_2m,
        dpm_solver_3m,
        unipc,
        deis,
        lms,
        ipndm,
        gradient_estimation,
        ipndm_v,
        plms,
        exponential_adams,
        res_2m,
        res_3m,
        dpm_2_ancestral,
        dpmpp_2s_ancestral,
        dpmpp_sde,
        flow_ancestral,
        flow_sde,
        ddpm,
        dpmpp_2m_sde,
        dpmpp_3m_sde,
        dpm_solver_2m_sde,
        sa_solver,
        seeds_1,
        seeds_2,
        seeds_3,
        er_sde,
        pec,
        churn,
        restart,
        piadm_sde,
        piadm_ode,
        lcm,
        tcd,
    )
}


def get(name: str):
    """Returns the builder of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is not known, but these are: {', '.join(SOLVERS)}")
    return SOLVERS[name]
