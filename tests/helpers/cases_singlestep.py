"""One-step solvers for the shared tests: name, build, order, sense, and counts where not usual."""

from functools import partial

from diffast import solvers

# Multiples of 3: a rest of 1 or 2 intervals would be a block of lower order.
THREES = (162, 324, 648, 1296)
in_twos = partial(solvers.singlestep, orders=2)
in_threes = partial(solvers.singlestep, orders=3)

CASES = (
    ("midpoint", solvers.midpoint, 2, "strong"),
    ("midpoint_early", partial(solvers.midpoint, r=0.3), 2, "strong"),
    ("midpoint_end", partial(solvers.midpoint, r=1.0), 2, "strong"),
    ("ralston", solvers.ralston, 2, "strong"),
    ("ralston_rho", partial(solvers.ralston, clock="rho"), 2, "strong"),
    ("ralston_flow", partial(solvers.ralston, clock="flow"), 2, "strong"),
    ("bosh3", solvers.bosh3, 3, "strong"),
    ("rk4", solvers.rk4, 4, "strong"),
    ("rk4_flow", partial(solvers.rk4, clock="flow"), 4, "strong"),
    ("dpm_2", solvers.dpm_2, 2, "strong"),
    ("dpm_solver_2s", solvers.dpm_solver_2s, 2, "strong"),
    ("dpm_solver_3s", solvers.dpm_solver_3s, 3, "strong"),
    ("dpm_solver_3s_heun", partial(solvers.dpm_solver_3s, kind="heun"), 3, "strong"),
    ("dpmpp_2s", solvers.dpmpp_2s, 2, "strong"),
    ("dpmpp_2s_rho", partial(solvers.dpmpp_2s, clock="rho"), 2, "strong"),
    ("dpmpp_3s", solvers.dpmpp_3s, 3, "strong"),
    ("dpmpp_3s_heun", partial(solvers.dpmpp_3s, kind="heun"), 3, "strong"),
    ("dpmpp_3s_end", partial(solvers.dpmpp_3s, r1=0.5, r2=1.0), 2, "strong"),
    ("dpm_fast", solvers.dpm_fast, 2, "strong"),
    ("singlestep_2", in_twos, 2, "strong"),
    ("singlestep_2_heun", partial(in_twos, kind="heun"), 2, "strong"),
    ("singlestep_2_noise", partial(in_twos, form="noise"), 2, "strong"),
    ("singlestep_3", in_threes, 3, "strong", THREES),
    ("singlestep_3_heun", partial(in_threes, kind="heun"), 3, "strong", THREES),
    ("singlestep_3_noise", partial(in_threes, form="noise"), 3, "strong", THREES),
    ("singlestep_3_noise_heun", partial(in_threes, form="noise", kind="heun"), 3, "strong", THREES),
    ("res_2s", solvers.res_2s, 2, "strong"),
    ("res_2s_rho", partial(solvers.res_2s, clock="rho"), 2, "strong"),
    ("res_3s", solvers.res_3s, 3, "strong"),
    ("res_3s_end", partial(solvers.res_3s, c2=0.5, c3=1.0), 3, "strong"),
    ("etdrk2", solvers.etdrk2, 2, "strong"),
    ("etdrk3", solvers.etdrk3, 3, "strong"),
    ("etdrk4", solvers.etdrk4, 4, "strong"),
    ("krogstad4", solvers.krogstad4, 4, "strong"),
)
