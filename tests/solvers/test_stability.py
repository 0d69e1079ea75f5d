"""The warning of unstable plans: what it finds, what it says, and who is not warned."""

import warnings
from functools import partial

import numpy as np
import pytest
from numpy_executor import run
from test_solvers import ORDER_CASES, inner

import diffast as df
from diffast import grids, schedules, solvers
from diffast.integrations.sigma_model import sigma_plan
from diffast.plans import overshoot as probe
from diffast.plans.overshoot import PlanWarning, overshoot
from diffast.solvers.core import stability

EDM, FLOW = schedules.edm(), schedules.flow()
KINDS = {
    "edm": EDM,
    "ve": schedules.ve(),
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "flow": FLOW,
    "trig": schedules.trig(),
    "zero_snr": schedules.from_betas(schedules.zero_terminal_snr(np.linspace(1e-4, 0.02, 1000))),
}


@pytest.fixture(autouse=True)
def nobody_was_warned(monkeypatch):
    monkeypatch.setattr(stability, "_warned", set())


@pytest.fixture
def loud():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        yield


# Those of the table of losses: error 2.9, 25, 344 on a trained network.
UNSTABLE = {
    "heun": (solvers.heun, 3, 5),
    "rk4": (solvers.rk4, 2, 5),
    "tsit5": (solvers.tsit5, 2, 7),
    "dopri5": (solvers.dopri5, 2, 7),
    "dpm_2": (solvers.dpm_2, 3, 5),
    "unipc_noise": (partial(solvers.unipc, order=3, form="noise"), 4, 4),
    "churn": (solvers.churn, 3, 5),
}


@pytest.mark.parametrize(("build", "steps", "calls"), UNSTABLE.values(), ids=UNSTABLE)
def test_too_few_steps_warn_and_the_number_named_is_stable(build, steps, calls):
    said = f"{steps} steps .{calls} network calls. are unstable"
    with pytest.warns(PlanWarning, match=said) as w:
        plan = build(EDM, grids.karras(EDM, steps))
    assert plan.nfe == calls
    assert w[0].filename == __file__  # the caller's line
    enough = int(str(w[0].message).partition("divided into ")[2].split()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        build(EDM, grids.karras(EDM, enough))


def far_out(plan, denoise):
    start = np.linspace(-1.5, 1.5, 31) * plan.schedule.sigma(plan.start)
    return np.abs(run(plan, denoise, start)[-1]).max()


def test_what_is_warned_of_is_no_data():
    # data of our own, near 1 and -1: heun's samples with 5 calls lie at 4 and beyond
    def denoise(x, t):
        sigma = EDM.sigma(t)
        total = 0.1**2 + sigma**2
        mean = np.tanh(x / total)
        return mean + 0.1**2 / total * (x - mean)

    grid = grids.karras(EDM, 3)
    assert far_out(solvers.heun(EDM, grid), denoise) > 3.0
    assert far_out(solvers.heun(EDM, grids.karras(EDM, 10)), denoise) < 1.5
    assert far_out(solvers.adams(EDM, grids.default(EDM, 5)), denoise) < 1.5


@pytest.mark.parametrize("schedule", KINDS.values(), ids=KINDS)
def test_the_grid_to_start_with_is_stable(schedule, loud):
    for steps in range(1, 22):
        grid = grids.default(schedule, steps)
        for build in (solvers.euler, solvers.dpmpp_2m, solvers.adams, solvers.unipc, solvers.deis):
            build(schedule, grid)


@pytest.mark.parametrize("case", ORDER_CASES)
def test_many_steps_are_stable(case, loud):
    schedule, make = ORDER_CASES[case]
    for steps in (40, 63):
        grid = inner(make, schedule, steps)
        for build in (solvers.heun, solvers.bosh3, solvers.lms, solvers.dpm_solver_3m):
            build(schedule, grid)
        for clock in ("lam", "flow"):
            solvers.adams(schedule, grid, 4, clock=clock)


def test_the_probe_runs_a_plan_as_others_do():
    center, width = np.repeat(probe.CENTERS, 4), np.repeat(probe.WIDTHS, 4)
    start = np.tile(probe.STARTS, 3) * 80.0

    def denoise(x, t):
        total = width**2 + EDM.sigma(t) ** 2
        mean = center * np.tanh(center * x / total)
        return mean + width**2 / total * (x - mean)

    grid = grids.karras(EDM, 8)
    for name in (
        "heun",
        "deis",
        "unipc",
        "plms",
        "pec",
        "dpm_fast",
        "er_sde",
        "dpmpp_2s_ancestral",
    ):
        plan = solvers.get(name)(EDM, grid)
        want = run(plan, denoise, start)[-1]
        np.testing.assert_allclose(probe._run(plan, start, center, width**2), want, rtol=1e-9)


def test_no_number_is_no_small_one():
    plan = solvers.rk4(EDM, grids.karras(EDM, 2))
    wild = df.Plan(
        **{
            field: getattr(plan, field)
            for field in ("schedule", "times", "end", "rows", "columns", "levels", "start")
        },
        matrix=np.where(np.abs(plan.matrix) > 1.0, plan.matrix * 1e200, plan.matrix),
        check="finite",
    )
    assert overshoot(wild) == np.inf


def test_once_for_a_name_and_number_of_steps():
    grid = grids.karras(EDM, 3)
    with pytest.warns(PlanWarning):
        solvers.heun(EDM, grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solvers.heun(EDM, grid)
    with pytest.warns(PlanWarning):
        solvers.heun(EDM, grids.karras(EDM, 4))


def test_a_warning_made_an_error_is_one_each_time(loud):
    for _ in range(2):
        with pytest.raises(PlanWarning):
            solvers.heun(EDM, grids.karras(EDM, 3))


def test_other_tools_ask_for_what_they_ask(loud):
    with stability.unchecked():
        solvers.heun(EDM, grids.karras(EDM, 3))
    sigma_plan("heun", tuple(grids.karras(EDM, 3)))
    with pytest.raises(PlanWarning):  # and it ends there
        solvers.heun(EDM, grids.karras(EDM, 3))


def test_options_for_one_number_of_steps_name_no_other():
    build = partial(solvers.unipc, order=3, form="noise", orders=[1, 2, 3, 1])
    with pytest.warns(PlanWarning) as caught:
        build(EDM, grids.karras(EDM, 4))
    assert "divided into" not in str(caught[0].message)
