"""`audit`: sound samplers pass at the rate that is said, samplers broken on purpose are found."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import diffast as df
from diffast import ops
from diffast.thermo.jko.dynamics import denoiser_of_dynamics, plan_of_dynamics

ONE = df.thermo.GaussianMixture([0.3, 0.7], [-1.0, 1.0], 0.05)
EDM = df.schedules.edm(0.05, 10.0)
DENOISER = ONE.denoiser(EDM)
GRID = np.append(np.geomspace(10.0, 0.05, 41), 0.0)
PLAN = df.solvers.ddim(EDM, GRID, eta=1.0)


def louder(plan, factor):
    """Returns the plan with its noise times a factor."""
    weights = {("x", "z1"): plan.weights("x", "z1") * factor}
    return plan.with_weights(weights, check="x0")


def pushed(plan, factor):
    """Returns the plan with the score's share of each step times a factor."""
    alpha = plan.schedule.alpha(np.append(plan.times, plan.end))
    kept, x, d = alpha[1:] / alpha[:-1], plan.weights("x", "x"), plan.weights("x", "d")
    weights = {("x", "x"): kept + factor * (x - kept), ("x", "d"): factor * d}
    return plan.with_weights(weights, check="finite")


def late(plan, factor):
    """Returns the plan whose network is told noise levels times a factor."""
    return replace(plan, times=plan.times * factor)


BROKEN = {
    "noise 1.1": (louder(PLAN, 1.1), "temperature", 1.21),
    "sqrt 2 missing": (louder(PLAN, 0.5**0.5), "temperature", 0.5),
    "drift 1.15": (pushed(PLAN, 1.15), "drift", 1.15),
    "wrong time": (late(PLAN, 1.25), "shift", -np.log(1.25)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sampler_is_found_and_its_fault_named(name):
    plan, what, size = BROKEN[name]
    found = df.thermo.audit(DENOISER, plan, (1500, 1), seed=1)
    assert not found.sound
    assert found.findings[0].startswith(f"{what} is")
    value, error, count = getattr(found, what)
    assert abs(value - size) < 4 * error + 0.02 and count == 1500
    assert "NOT sound" in str(found)


@pytest.mark.parametrize("schedule", [df.schedules.edm(0.05, 10.0), df.schedules.flow()])
@pytest.mark.parametrize("solver", ["euler_ancestral", "ddpm"])
def test_sound_samplers_pass_on_every_schedule(schedule, solver):
    grid = df.grids.default(schedule, 30)  # of a flow from pure noise
    plan = getattr(df.solvers, solver)(schedule, grid)
    found = df.thermo.audit(ONE.denoiser(schedule), plan, (800, 1), seed=2)
    assert found.sound, str(found)
    for estimate, designed in ((found.drift, 1.0), (found.temperature, 1.0), (found.shift, 0.0)):
        assert abs(estimate.value - designed) < 3.5 * estimate.error
        assert estimate.error < 0.1


@pytest.mark.slow
def test_errors_and_false_alarms_are_what_is_said():
    plan = df.solvers.ddim(EDM, GRID[20:], eta=1.0)
    start = ONE.sample(4000, 1) + GRID[20] * ops.normal((4000, 1), dtype=torch.float64)
    runs = [
        df.thermo.audit(DENOISER, plan, x=start[100 * s : 100 * s + 100], seed=s, level=0.1)
        for s in range(40)
    ]
    # 4 are expected; 10 or more have a probability of 0.5 %
    assert sum(not run.sound for run in runs) < 10
    away = np.array([(run.whole.value - [1.0, 1.0, 0.0]) / run.whole.null for run in runs])
    assert np.std(away, 0) == pytest.approx([1.0, 1.0, 1.0], abs=0.35)
    assert np.abs(np.mean(away, 0)).max() < 3.5 / np.sqrt(40)
    said = np.mean([run.whole.error / run.whole.null for run in runs], 0)
    assert said == pytest.approx([1.0, 1.0, 1.0], abs=0.1)


def test_the_power_that_is_said_is_there():
    pilot = df.thermo.audit(DENOISER, PLAN, (400, 1))
    # A pooled temperature of 40 Gaussian steps has a relative error of sqrt(2 / (40 n)).
    assert pilot.temperature.error == pytest.approx(np.sqrt(2.0 / (40 * 400)), rel=0.2)
    count = pilot.samples_for(1.05**2 - 1.0, power=0.9)
    assert 70 <= count <= 140
    loud = louder(PLAN, 1.05)
    hits = [not df.thermo.audit(DENOISER, loud, (count, 1), seed=s).sound for s in range(20)]
    assert sum(hits) >= 14


def test_methods_of_higher_order_have_an_allowance():
    plan = df.solvers.dpmpp_2m_sde(EDM, GRID)
    found = df.thermo.audit(DENOISER, plan, (1500, 1))
    assert found.sound and found.whole.allowance.min() > 0
    h = np.log(GRID[0] / GRID[1])
    # It extrapolates the estimate by half a step, which is a shift of half a step.
    assert found.shift.value == pytest.approx(0.5 * h, abs=4 * found.shift.error)
    strict = df.thermo.audit(DENOISER, plan, (1500, 1), allow=False)
    assert not strict.sound
    assert not df.thermo.audit(DENOISER, louder(plan, 1.2), (1500, 1)).sound
    with pytest.raises(ValueError, match="allowance .* take more steps"):
        found.samples_for(1e-3)
    with pytest.raises(ValueError, match="none of drift"):
        found.samples_for(0.1, "noise")


def test_stored_batches_directions_and_conditions():
    held = {}
    labels = torch.arange(300) % 2

    def network(x, t, labels):
        return ONE.x0(x[:, :1], 1.0, t.double()).to(x.dtype) * torch.ones(3) + labels[:, None]

    denoiser = df.Denoiser(network, EDM, predicts="x0", conditions={"labels": labels})

    def keep(progress):
        held[progress.stage] = progress.x.clone()

    df.sample(denoiser, PLAN, (300, 3), callback=keep)
    batches = [held[k] for k in range(40)]
    axes = [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    found = df.thermo.audit(
        denoiser, batches=batches, times=GRID[1:41], directions=axes, allow=False
    )
    assert found.sound and found.numbers == 2 and len(found.steps) == 39
    one = df.thermo.audit(denoiser, batches=batches, times=GRID[1:41], directions=axes[0])
    assert one.numbers == 1 and one.to_dict()["samples"] == 300
    whole = df.thermo.audit(
        denoiser, batches=torch.stack(batches), times=GRID[1:41], directions=axes[0]
    )
    assert whole.to_dict() == one.to_dict()
    wrong = [batches[0], *(x + 0.3 * (k % 2) for k, x in enumerate(batches[1:]))]
    assert not df.thermo.audit(denoiser, batches=wrong, times=GRID[1:41]).sound


def test_langevin_steps_and_a_forward_process():
    score = lambda x, t: ONE.score(torch.as_tensor(x), 1.0, 0.5).numpy()  # noqa: E731
    plan = plan_of_dynamics(0.0, 1.0, lambda t: 1.0, 20)
    denoiser = denoiser_of_dynamics(score, 0.0, 1.0)
    x = ONE.sample(800) + 0.5 * torch.randn(800, 1, generator=torch.Generator().manual_seed(1))
    for factor in (1.0, 0.5**0.5):
        held = [x]
        keep = partial(lambda states, progress: states.append(progress.x.clone()), held)
        df.sample(denoiser, louder(plan, factor), x=x, callback=keep)
        found = df.thermo.audit_batches(
            held, 0.05 * np.arange(21), lambda x, t: ONE.score(x, 1.0, 0.5), 1.0, allow=False
        )
        assert found.sound == (factor == 1.0), str(found)
        assert found.temperature.value == pytest.approx(factor**2, abs=0.05)
    # Ornstein-Uhlenbeck, stored at times that no Euler step makes: the allowance covers it.
    drawn, tau = np.random.default_rng(0), 0.05
    states = [drawn.standard_normal((2000, 1)) * 2.0]
    for _ in range(20):
        noise = drawn.standard_normal((2000, 1)) * np.sqrt(-np.expm1(-2.0 * tau))
        states.append(np.exp(-tau) * states[-1] + noise)
    found = df.thermo.audit_batches(states, tau * np.arange(21), lambda x, t: -x, lambda t: 1.0)
    assert found.sound and np.isnan(found.shift.value)
    doubled = df.thermo.audit_batches(states, tau * np.arange(21), lambda x, t: -x, 2.0)
    assert doubled.temperature.value == pytest.approx(0.5, abs=0.05) and not doubled.sound


def test_a_visit_of_a_langevin_corrector():
    place, held = 20, {}
    plan = df.solvers.predictor_corrector(
        PLAN, df.correctors.overdamped(step=0.1), n=10, where=[place]
    )
    df.sample(
        DENOISER, plan, (800, 1), callback=lambda p: held.__setitem__(p.stage + 1, p.x.clone())
    )
    sigma = GRID[place]
    states = [held[k] for k in range(place, place + 11)]
    for step in (0.1, 0.13):
        found = df.thermo.audit_batches(
            states,
            step * sigma**2 * np.arange(11),
            lambda x, t: ONE.score(x, 1.0, sigma),
            1.0,
            allow=False,
        )
        assert found.sound == (step == 0.1), str(found)
    # The audit of the whole run leaves the visit out, and finds nothing.
    whole = df.thermo.audit(DENOISER, plan, (800, 1))
    assert whole.sound and len(whole.steps) == len(PLAN.times) - 1


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_sets_without_pairs_show_the_temperature(factor):
    grid = np.append(np.geomspace(4.0, 0.15, 21), 0.0)
    plan = louder(df.solvers.ddim(EDM, grid, eta=1.0), factor)
    found = df.thermo.audit_marginals(DENOISER, plan, (400, 1))
    assert found.sound == (factor == 1.0), str(found)
    assert abs(found.temperature.value - factor**2) < 4 * found.temperature.error + 0.2


def test_sets_on_a_grid_with_a_long_last_step():
    schedule = df.schedules.vp_linear()
    denoiser = ONE.denoiser(schedule)
    plan = df.solvers.ddpm(schedule, df.grids.default(schedule, 30))
    found = df.thermo.audit_marginals(denoiser, plan, (1000, 1))
    assert found.sound, str(found)
    # at low noise x stands still, and the trapezoid makes 2 tanh(h / 2) / h of x / sigma's growth
    assert 0.02 < found.whole.allowance[0] < 0.05
    assert found.drift.value == pytest.approx(1.0 - found.whole.allowance[0], abs=0.01)
    assert not df.thermo.audit_marginals(denoiser, louder(plan, 1.3), (1000, 1)).sound


def test_euler_maruyama_steps_are_those_of_audit_batches():
    schedule = df.schedules.vp_linear()
    times = np.linspace(0.6, 0.02, 41)
    dynamics = df.thermo.sampling_dynamics(schedule, ONE.score)
    draw = torch.Generator().manual_seed(0)

    def drift(x, t):
        return sum(part(x, times[0] - t) for part in dynamics.drift.values())

    def heat(t):
        return dynamics.temperature(times[0] - t)

    spent, verdicts = times[0] - times, []
    for factor in (1.0, 1.1):
        x = float(schedule.alpha(0.6)) * ONE.sample(500)
        x = x + float(schedule.sigma(0.6)) * torch.randn(x.shape, generator=draw).double()
        states = [x]
        for t, tau in zip(spent[:-1], np.diff(spent), strict=True):
            fresh = torch.randn(x.shape, generator=draw).double()
            x = x + tau * drift(x, t) + factor * np.sqrt(2.0 * heat(t) * tau) * fresh
            states.append(x)
        found = df.thermo.audit_batches(states, spent, drift, heat, allow=False)
        assert found.temperature.value == pytest.approx(factor**2, abs=0.04)
        verdicts.append(found.sound)
    assert verdicts == [True, False]


RUN = [torch.zeros(60, 2) + k for k in range(3)]
TIMES = [3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({}, TypeError, "a plan, or batches"),
        ({"plan": PLAN, "batches": RUN}, TypeError, "a plan, or batches"),
        ({"plan": PLAN}, ValueError, "needs the shape"),
        ({"plan": PLAN, "shape": (20, 1)}, ValueError, "20 samples, but 50"),
        ({"plan": df.solvers.euler(EDM, GRID), "shape": (60, 1)}, ValueError, "draws no noise"),
        ({"plan": PLAN, "shape": (60, 1), "eta": 0.0}, ValueError, "eta = 0"),
        ({"plan": PLAN, "shape": (60, 1), "level": 2.0}, ValueError, "level = 2"),
        ({"plan": PLAN, "shape": (60, 1), "directions": [[1.0, 2.0]]}, ValueError, "directions"),
        ({"batches": RUN}, TypeError, "not their times"),
        ({"batches": RUN, "times": [1.0, 2.0, 3.0]}, ValueError, "falling"),
        ({"batches": RUN[:2], "times": TIMES}, ValueError, "2 batches"),
        ({"batches": [*RUN[:2], RUN[0][:55]], "times": TIMES}, ValueError, "same particles"),
        ({"batches": [RUN[0], RUN[0] / 0, RUN[0]], "times": TIMES}, ValueError, "not finite"),
    ],
)
def test_bad_input_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        df.thermo.audit(DENOISER, **options)


def test_batches_may_be_one_tensor():
    whole = torch.stack(
        [torch.randn(60, 1, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    )
    made = df.thermo.audit(DENOISER, batches=whole, times=[3.0, 2.0, 1.0])
    again = df.thermo.audit(DENOISER, batches=list(whole), times=[3.0, 2.0, 1.0])
    assert str(made) == str(again)


def test_noise_that_is_put_back_within_a_stage_is_refused():
    schedule = df.schedules.vp_linear()
    plan = df.solvers.churn(schedule, df.grids.default(schedule, 6), 5.0)
    with pytest.raises(ValueError, match="puts noise back between its steps"):
        df.thermo.audit(df.Denoiser(lambda x, t: x, schedule, "x0"), plan, (60, 1))


def test_bad_input_of_the_other_audits():
    wide = df.thermo.GaussianMixture(None, np.zeros((1, 5)), 1.0)
    with pytest.raises(ValueError, match="5 elements"):
        df.thermo.audit_marginals(wide.denoiser(EDM), PLAN, (60, 5))
    with pytest.raises(ValueError, match="drift returned"):
        df.thermo.audit_batches(RUN, [0.0, 1.0, 2.0], lambda x, t: x[:, :1], 1.0)
    with pytest.raises(ValueError, match="temperature = 0"):
        df.thermo.audit_batches(RUN, [0.0, 1.0, 2.0], lambda x, t: x, 0.0)
