"""Multistep solvers and the order each must show, for the tuple of `solver_cases`."""

from functools import partial

from diffast.solvers.aliases import res_2m, res_3m
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
from diffast.solvers.ode.dpm_multistep import dpm_solver_2m, dpm_solver_3m, dpmpp_3m
from diffast.solvers.ode.unipc import unipc
from diffast.solvers.splitting.heavy_ball import heavy_ball
from diffast.solvers.splitting.momentum import ghvb

# Slopes of some settle later: where steps in the clock vary fast, and where leading terms cancel.
LATER = (160, 320, 640, 1280)
LATE = LATER[1:]
LATEST = (320, 640, 1280, 2560)


single = {"start": "single"}
clean = {"start": "single", "final": "clean"}

CASES = (
    ("dpmpp_3m_exact", partial(dpmpp_3m, **single), 3, "strong"),
    ("dpm_solver_2m_midpoint", partial(dpm_solver_2m, kind="midpoint", **single), 2, "strong"),
    ("dpm_solver_2m_heun", partial(dpm_solver_2m, kind="heun", **single), 2, "strong"),
    ("dpm_solver_3m_exact", partial(dpm_solver_3m, **single), 3, "strong", LATE),
    ("unip_1", partial(unipc, order=1, corrector=False), 1, "strong"),
    ("unip_2", partial(unipc, order=2, corrector=False), 2, "strong"),
    ("unip_3", partial(unipc, order=3, corrector=False, **single), 3, "strong"),
    ("unip_2_bh1_noise", partial(unipc, variant="bh1", form="noise", corrector=False), 2, "strong"),
    ("unipc_1", partial(unipc, order=1), 2, "strong"),
    ("unipc_2", partial(unipc, order=2, **single), 3, "strong"),
    ("unipc_2_bh1", partial(unipc, order=2, variant="bh1", **single), 3, "strong"),
    ("unipc_2_noise", partial(unipc, order=2, form="noise", **single), 3, "strong"),
    ("unipc_3", partial(unipc, order=3, **single), 4, "strong", LATER),
    ("unipc_3_noise", partial(unipc, order=3, form="noise", **single), 4, "strong", LATER),
    ("deis_1", partial(deis, order=1), 1, "strong"),
    ("deis_2", partial(deis, order=2, **single), 2, "strong"),
    ("deis_3", partial(deis, order=3, **single), 3, "strong", LATE),
    ("deis_4", partial(deis, order=4, **single), 4, "strong", LATE),
    ("lms_2", partial(lms, order=2, **single), 2, "strong"),
    ("lms_3", partial(lms, order=3, **single), 3, "strong", LATER),
    ("lms_4", partial(lms, order=4, **single), 4, "strong", LATEST),
    ("ipndm_2", partial(ipndm, order=2), 2, "strong"),
    ("ipndm_v_3", partial(ipndm_v, order=3, **single), 3, "strong", LATER),
    ("gradient_estimation", gradient_estimation, 1, "strong"),
    ("gradient_estimation_half", partial(gradient_estimation, gamma=1.5), 2, "strong"),
    ("plms_2_repeat", partial(plms, order=2, start="repeat"), 2, "strong"),
    ("plms_2_prk", partial(plms, order=2, start="prk"), 2, "strong"),
    ("res_2m", res_2m, 2, "strong"),
    ("res_3m", partial(res_3m, **single), 3, "strong"),
    ("adams_2_full", partial(adams, order=2, **single), 2, "strong"),
    ("adams_3_full", partial(adams, **single), 3, "strong", LATE),
    ("adams_3_data", partial(adams, form="data", clock="arctan", **clean), 3, "strong", LATE),
    ("adams_3_noise", partial(adams, form="noise", clock="flow", **clean), 3, "strong", LATE),
    ("adams_4", partial(adams, order=4, **clean), 4, "strong", LATE),
    ("adams_4_lam", partial(adams, order=4, clock="lam", **clean), 4, "strong", LATE),
    ("ghvb_1", partial(ghvb, order=1), 1, "strong"),
    ("ghvb_2", partial(ghvb, order=2), 2, "strong"),
    ("heavy_ball", heavy_ball, 1, "strong"),
    ("heavy_ball_2m", partial(heavy_ball, inner="dpmpp_2m"), 1, "strong"),
    ("exponential_adams_1", partial(exponential_adams, order=1), 1, "strong"),
    ("exponential_adams_2", partial(exponential_adams, order=2), 2, "strong"),
    ("exponential_adams_3", partial(exponential_adams, order=3, **single), 3, "strong"),
    ("exponential_adams_4", partial(exponential_adams, order=4, **single), 4, "strong"),
)
