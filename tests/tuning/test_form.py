"""The form of tuned plans: what is in it, and runs of it that can be differentiated."""

import numpy as np
import pytest
import torch
from tuning_problems import denoiser, labelled

import diffast as df
from diffast.tuning.form import form_of
from diffast.tuning.levenberg import Runner
from diffast.tuning.parameters import FREEDOMS, Parameters
from diffast.tuning.pilots import Pilots, ids_of
from diffast.tuning.run import Rows, run

SCHEDULES = {
    "edm": (df.schedules.edm(), df.grids.karras, "x0"),
    "vp": (df.schedules.vp_linear(), df.grids.uniform_logsnr, "epsilon"),
    "flow": (df.schedules.flow(), df.grids.uniform_time, "flow"),
    "cosine": (df.schedules.vp_cosine(), df.grids.uniform_time, "v"),
}
DETERMINISTIC = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "heun", "lms", "dpmpp_2s", "rk4")
STOCHASTIC = ("ddpm", "dpmpp_2m_sde", "er_sde", "sa_solver")
each_schedule = pytest.mark.parametrize("kind", SCHEDULES)


@each_schedule
@pytest.mark.parametrize("name", [*DETERMINISTIC, *STOCHASTIC])
def test_a_standard_plan_in_this_form_gives_its_samples(name, kind):
    schedule, grid, predicts = SCHEDULES[kind]
    plan = df.solvers.get(name)(schedule, grid(schedule, 5))
    same = form_of(plan).plan("same")
    network = denoiser(schedule, predicts)
    if kind == "flow":
        start = 1.0  # alpha is 0 there: the flow's network is asked all the same
        assert plan.start == start
    one, two = (df.sample(network, p, (6, 2), seed=3).x for p in (plan, same))
    torch.testing.assert_close(one, two, rtol=0, atol=2e-4)
    assert same.nfe == plan.nfe


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (df.solvers.churn(df.schedules.edm(), [70.0, 1.0, 0.0], s_churn=0.2, base="euler"), "sil"),
        (df.solvers.dpmpp_sde(df.schedules.edm(), [70.0, 5.0, 0.0]), "noise of an earlier stage"),
        (df.solvers.dpm_solver_2m_sde(df.schedules.edm(), [70.0, 5.0, 0.0]), "its noise level"),
    ],
)
def test_plans_of_another_structure_are_refused(plan, reason):
    with pytest.raises(ValueError, match=reason):
        form_of(plan)


def parameters_of(kind, freedom=("levels", "weights", "times", "scale", "start"), calls=5):
    schedule, grid, predicts = SCHEDULES[kind]
    network = denoiser(schedule, predicts)
    plan = df.solvers.deis(schedule, grid(schedule, calls))
    return network, Parameters(form_of(plan), network, freedom)


def moved(parameters, size=0.05):
    drawn = np.random.default_rng(1).standard_normal(parameters.size)
    return torch.from_numpy(size * drawn)


@each_schedule
def test_the_differentiable_run_is_that_of_the_finished_plan(kind):
    """Levels off the schedule, told times off the levels, all weights moved."""
    network, parameters = parameters_of(kind)
    vector = moved(parameters)
    plan = parameters.form_at(vector).plan("moved")
    x = df.ops.normal((6, 2), seed=2, scale=plan.initial_scale)
    found = run(Rows(network, x), parameters.numbers(vector))
    torch.testing.assert_close(found, df.sample(network, plan, x=x).x, rtol=0, atol=2e-5)
    off = plan.levels[:-1, plan.rows.index("x")] - np.stack(
        [plan.schedule.alpha(plan.times[1:]), plan.schedule.sigma(plan.times[1:])], axis=1
    )
    assert np.abs(off).max() > 1e-3


@pytest.mark.parametrize("saves", [False, True])
def test_the_gradient_is_that_of_differences(saves):
    network = labelled()
    schedule = network.schedule
    plan = df.solvers.deis(schedule, df.grids.karras(schedule, 4))
    parameters = Parameters(form_of(plan), network, ("levels", "weights", "times", "scale"))
    x = df.ops.normal((4, 5), dtype=torch.float64, scale=plan.initial_scale)
    rows = Rows(network, x, saves)
    rows.denoiser.network.double()

    def loss(vector):
        return run(rows, parameters.numbers(vector)).square().mean()

    vector = moved(parameters).requires_grad_()
    (found,) = torch.autograd.grad(loss(vector), vector)
    units = 1e-5 * torch.eye(parameters.size, dtype=torch.float64)
    with torch.no_grad():
        told = torch.stack([(loss(vector + u) - loss(vector - u)) / 2e-5 for u in units])
    # model times are told as float32
    torch.testing.assert_close(found, told, rtol=5e-3, atol=5e-3 * float(told.abs().max()))


def test_a_number_of_each_freedom_changes_what_it_is_named_for():
    network = labelled(guidance=2.0)
    plan = df.solvers.ddim(network.schedule, df.grids.karras(network.schedule, 4), eta=0.5)
    assert plan.stochastic
    fields = {
        "levels": "levels",
        "weights": "weights",
        "times": "told",
        "scale": "levels",
        "start": "levels",
        "guidance": "scales",
        "noise": "fresh",
    }
    assert {*fields, "directions"} == {*FREEDOMS}
    for freedom, field in fields.items():
        parameters = Parameters(form_of(plan), network, (freedom,))
        same, other = (
            parameters.numbers(torch.full((parameters.size,), value, dtype=torch.float64))
            for value in (0.0, 0.05)
        )
        assert not torch.equal(getattr(same, field), getattr(other, field)), freedom
        sums = other.weights.sum(1) + other.keep * other.levels[:-1, 0]
        torch.testing.assert_close(sums, other.levels[1:, 0], rtol=1e-12, atol=1e-12)
        noise = (other.keep * other.levels[:-1, 1]) ** 2 + other.fresh**2
        torch.testing.assert_close(noise, other.levels[1:, 1] ** 2, rtol=1e-12, atol=1e-12)


@each_schedule
def test_runs_that_begin_where_a_number_changed_are_whole_runs(kind):
    """Every parameter moved by itself: restarted runs equal those from the first call."""
    network, parameters = parameters_of(kind)
    pilots = Pilots(network, (2,), 0, torch.device("cpu"))
    runner, ids = Runner(parameters, pilots, 20), ids_of(6)
    vector = moved(parameters)
    base = parameters.numbers(vector)
    units = 0.01 * torch.eye(parameters.size, dtype=torch.float64)
    others = [parameters.numbers(vector + unit) for unit in units]
    trace = runner.trace(ids, base)
    whole = runner.calls * (len(others) + 1)
    runner.calls = 0
    made = runner.changed(ids, trace, base, others)
    assert runner.calls < 0.6 * whole
    for other, found in zip(others, made, strict=True):
        x = pilots.noise(ids, float(other.levels[0, 1]))
        wanted = run(Rows(network, x), other)
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)


def test_levels_that_do_not_rise_are_refused():
    schedule = df.schedules.edm()
    form = form_of(df.solvers.heun(schedule, df.grids.karras(schedule, 4)))
    with pytest.raises(ValueError, match="do not rise"):
        Parameters(form, denoiser(), ("weights",))


def test_a_network_of_whole_times_is_told_whole_times():
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = df.schedules.from_betas(betas)
    network = df.Denoiser(lambda x, t: 0.1 * x, schedule, predicts="epsilon", time_dtype=torch.long)
    plan = df.solvers.ddim(schedule, [999.0, 700.0, 300.0, 0.0])
    parameters = Parameters(form_of(plan), network, ("levels", "weights"))
    made = parameters.form_at(moved(parameters, 0.3)).plan("moved")
    assert (made.times == np.round(made.times)).all()
    assert (made.times[1:] != plan.times[1:]).any()
    df.sample(network, made, (2, 3))
