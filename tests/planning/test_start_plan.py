"""`df.plan`: a plan for every schedule, number of calls and guidance, never more calls."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast import schedules
from diffast.planning.kinds import kind_of
from diffast.planning.rows import whole_times
from diffast.planning.table import table

BETAS = np.linspace(1e-4, 0.02, 1000)
SCHEDULES = {
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "edm, few levels": schedules.edm(0.03, 14.6),
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "betas": schedules.from_betas(BETAS),
    "zero terminal": schedules.from_betas(schedules.zero_terminal_snr(BETAS)),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
}


def denoiser_of(schedule, **options):
    """A network of data N(0, 0.25): x0 is a multiple of x, told by the level."""

    def network(x, t):
        time = t.double().numpy()
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        share = torch.as_tensor(0.25 * alpha / (0.25 * alpha**2 + sigma**2))
        return share.to(x.dtype).reshape(-1, 1) * x

    return df.Denoiser(network, schedule, "x0", **options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_number_of_calls_has_a_plan_of_no_more_calls(name):
    schedule = SCHEDULES[name]
    for calls in [*range(1, 23), 40, 100, 1000]:
        for guidance in (1.0, 7.5):
            plan = df.plan(schedule, calls, guidance=guidance)
            assert plan.nfe <= calls
            assert plan.end == schedule.t_end
            assert plan.start == schedule.t_start


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_stochastic_plan_draws_noise(name):
    for calls in (2, 5, 10, 40):
        plan = df.plan(SCHEDULES[name], calls, stochastic=True)
        assert plan.nfe <= calls
        assert any(column.startswith("z") for column in plan.columns)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_flow_of_gaussian_data_is_followed_better_with_more_calls(name):
    schedule = SCHEDULES[name]
    denoiser = denoiser_of(schedule)
    first = np.float64(schedule.t_start)
    alpha, sigma = float(schedule.alpha(first)), float(schedule.sigma(first))
    x = sigma * torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1)
    exact = x * 0.5 / np.sqrt(0.25 * alpha**2 + sigma**2)
    errors = []
    for calls in (2, 5, 10, 20, 60):
        made = df.sample(denoiser, df.plan(denoiser, calls), x=x).x
        errors.append(float((made - exact).norm() / exact.norm()))
    assert errors[0] < 0.6
    assert errors[1] < 0.2
    assert max(errors[2:]) < 0.15
    assert errors[4] < 0.01


@pytest.mark.parametrize("kept", [1, 7, 20])
def test_times_are_whole_where_the_network_takes_whole_times(kept):
    schedule = SCHEDULES["betas"]
    denoiser = denoiser_of(schedule, time_dtype=torch.long)
    plan = df.plan(denoiser, kept)
    assert plan.nfe <= kept
    assert (plan.times == np.round(plan.times)).all()
    assert len(set(plan.times.tolist())) == plan.nfe
    assert df.sample(denoiser, plan, shape=(2, 3)).x.isfinite().all()


def test_a_network_that_rounds_times_keeps_the_levels_of_the_table():
    schedule = SCHEDULES["betas"]
    rounding = denoiser_of(schedule, time_dtype=torch.long, round_times=True)
    assert (df.plan(rounding, 10).times == df.plan(schedule, 10).times).all()


def test_more_calls_than_whole_times_are_refused():
    schedule = schedules.from_betas(np.linspace(1e-3, 0.2, 8))
    denoiser = denoiser_of(schedule, time_dtype=torch.long)
    assert df.plan(denoiser, 8, standard=True).times.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert df.plan(denoiser, 8).nfe <= 8
    with pytest.raises(ValueError, match=r"calls = 9, but .* has 8 of them"):
        df.plan(denoiser, 9)


def test_whole_times_stay_apart_at_both_ends():
    times = np.array([9.0, 8.9, 8.8, 1.2, 0.3, 0.2, -1.0])
    assert whole_times(times, 0.0).tolist() == [9, 8, 7, 2, 1, 0, -1]
    assert whole_times(times[:4], 8.0) is None


def test_kinds():
    kinds = {name: kind_of(schedule) for name, schedule in SCHEDULES.items()}
    assert {kinds[name] for name in ("ve", "edm", "edm, few levels")} == {"ve"}
    assert {kinds[name] for name in ("vp_linear", "sub_vp", "betas")} == {"vp"}
    names = ("flow", "trig", "zero terminal", "vp_cosine")
    assert {kinds[name] for name in names} == {"flow"}


@pytest.mark.parametrize("name", ["vp_cosine", "zero terminal"])
def test_a_start_without_signal_does_not_spoil_many_calls(name):
    """Grids of starts at sigma/alpha = 15 spend most calls above the data here: errors of 0.1."""
    schedule = SCHEDULES[name]
    denoiser = denoiser_of(schedule)
    sigma = float(schedule.sigma(schedule.t_start))
    x = sigma * torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(-1, 1)
    exact = x * 0.5 / np.hypot(0.5 * float(schedule.alpha(schedule.t_start)), sigma)
    for calls in (25, 30):
        made = df.sample(denoiser, df.plan(denoiser, calls), x=x).x
        assert float((made - exact).norm() / exact.norm()) < 0.01


def test_one_row_gives_the_same_run_on_every_schedule_of_a_kind():
    """In y = x / (alpha + sigma) the ODE is one for all schedules: levels are equal in tau."""
    plans = [df.plan(SCHEDULES[name], 8) for name in ("flow", "trig")]
    levels = [plan.schedule.sigma(plan.times) for plan in plans]
    alphas = [plan.schedule.alpha(plan.times) for plan in plans]
    taus = [s / (a + s) for s, a in zip(levels, alphas, strict=True)]
    np.testing.assert_allclose(*taus, rtol=1e-9)


def test_guidance_of_the_denoiser_chooses_the_guided_row():
    schedule = SCHEDULES["edm"]
    plain = df.plan(schedule, 8)
    guided = df.plan(schedule, 8, guidance=4.0)
    assert "guided" in guided.name
    assert "guided" not in plain.name
    assert not np.array_equal(guided.matrix, plain.matrix)

    def network(x, t, k):
        return 0.2 * x

    given = {"conditions": {"k": torch.ones(1, 1)}, "unconditional": {"k": torch.zeros(1, 1)}}
    for scale in (4.0, lambda t: 4.0 if t < 10 else 1.0):
        denoiser = df.Denoiser(network, schedule, "x0", guidance=scale, **given)
        assert np.array_equal(df.plan(denoiser, 8).matrix, guided.matrix)
        assert np.array_equal(df.plan(denoiser, 8, guidance=1.0).matrix, plain.matrix)


def test_standard_plans_are_of_solvers_alone():
    plan = df.plan(SCHEDULES["flow"], 8, standard=True)
    assert plan.nfe == 8
    assert "learned" not in plan.name


@pytest.mark.parametrize("calls", [0, -1, 1001, 2.5, "ten", True, None])
def test_numbers_of_calls_that_are_refused(calls):
    with pytest.raises(ValueError, match="it must be a whole number from 1 to 1000"):
        df.plan(SCHEDULES["flow"], calls)


def test_what_is_no_denoiser_is_refused():
    with pytest.raises(TypeError, match="is a function, but it must be a df.Denoiser"):
        df.plan(lambda x, t: x)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), "much"])
def test_guidance_that_is_refused(guidance):
    with pytest.raises(ValueError, match="it must be a finite number"):
        df.plan(SCHEDULES["flow"], guidance=guidance)


def test_weights_of_every_row_add_up_and_levels_fall():
    for rows in table()["rows"].values():
        for calls, row in rows.items():
            levels, weights = np.array(row["levels"]), row["weights"]
            assert len(levels) == len(weights) == int(calls)
            assert levels[0] == 1.0
            assert (np.diff(levels) < 0).all()
            assert levels[-1] > 0
            for n, given in enumerate(weights):
                assert len(given) == min(n + 1, 10)
                assert sum(given) == pytest.approx(1.0, abs=1e-4)


def test_a_saved_plan_is_the_same(tmp_path):
    plan = df.plan(SCHEDULES["betas"], 6)
    plan.save(tmp_path / "plan.json")
    held = df.Plan.load(tmp_path / "plan.json")
    assert np.array_equal(held.matrix, plan.matrix)
    assert held.name == plan.name
