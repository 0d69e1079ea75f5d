"""Times that a network is told lie in the schedule's domain, in the dtype that it gets them in."""

import math

import pytest
import torch

import diffast as df
from diffast.model.input_watch import PLACES, InputWatch
from diffast.model.times import told_time, within

TRIG = df.schedules.trig()
BETAS = df.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).numpy())


def told(run, schedule, **options):
    """The times that a run tells its network, float64."""
    seen = []

    def network(x, t):
        seen.append(t.double().clone())
        return 0.5 * x

    run(df.Denoiser(network, schedule, "x0", **options))
    return torch.cat(seen)


def runs(schedule):
    plan = df.solvers.heun(schedule, df.grids.default(schedule, 4))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def stepper(denoiser, each):
        step = df.Stepper(plan, denoiser)
        state, given, t = step.start(x, each=each)
        for _ in range(plan.nfe):
            state, given, t = step.step(state, denoiser.network(given, t))

    return {
        "sample": lambda d: df.sample(d, plan, (2, 3)),
        "parallel": lambda d: df.sample_parallel(d, plan, (2, 3)),
        "together": lambda d: stepper(d, False),
        "each": lambda d: stepper(d, True),
        "adaptive": lambda d: df.sample_adaptive(d, "dpm_12", (2, 3)),
        "x0": lambda d: d.x0(x, schedule.t_start),
    }


@pytest.mark.parametrize("name", runs(TRIG))
def test_trig_in_float32_begins_inside(name):
    assert float(torch.tensor(math.pi / 2)) > math.pi / 2  # the nearest float32 is outside
    times = told(runs(TRIG)[name], TRIG)
    assert times.max() <= math.pi / 2 and times.min() >= 0.0
    if name != "adaptive":  # which begins where alpha is not 0
        assert times.max() > math.pi / 2 - 2e-7


def test_bfloat16_times_of_a_table_stay_in_it():
    plan = df.solvers.ddim(BETAS, df.grids.trailing(BETAS, 4))

    def run(denoiser):
        df.sample(denoiser, plan, (2, 3))

    assert float(torch.tensor(999.0).bfloat16()) == 1000.0
    times = told(run, BETAS, time_dtype=torch.bfloat16)
    assert times.max() == 996.0
    assert told_time(BETAS, 500.0, torch.bfloat16) == 500.0


def test_a_velocity_is_told_no_time_beyond_its_own():
    seen = []

    def field(x, t):
        seen.append(t.double().clone())
        return -x

    denoiser = df.Denoiser.from_velocity(field, times=(0.0, 0.7))
    plan = df.solvers.euler(denoiser.schedule, df.grids.default(denoiser.schedule, 5))
    df.sample(denoiser, plan, (2, 3))
    assert torch.cat(seen).max() <= 0.7 and torch.cat(seen).min() >= 0.0


def test_times_outside_are_kept_and_float64_is_exact():
    assert told_time(TRIG, 2.0, torch.float32) == 2.0
    assert told_time(TRIG, math.pi / 2, torch.float64) == math.pi / 2
    t = torch.tensor([0.3, math.pi / 2, 1.0], dtype=torch.float64)
    made = within(t, TRIG, torch.float32)
    assert made.dtype == torch.float32 and made.double().max() <= math.pi / 2


def test_what_a_watch_sees():
    x = torch.zeros(1, 4, 64, 64)
    watch = InputWatch(x)
    before, whole = watch.look(), watch.look(whole=True)
    x.data[0, 0, 0, 1] = 1.0  # not among the places that are looked at
    assert watch.look() == before and watch.look(whole=True) != whole
    x.data.mul_(0.5).add_(1.0)
    assert watch.look() != before
    assert len(before[1]) // 4 in range(PLACES - 2, PLACES + 2)
    before = watch.look()
    x[0, 0, 0, 1] = 2.0  # torch counts it
    assert watch.look() != before


def test_a_state_is_given_another_x_by_replace_alone():
    plan = df.solvers.ddim(TRIG, df.grids.default(TRIG, 3))
    stepper = df.Stepper(plan, df.Denoiser(lambda x, t: 0.5 * x, TRIG, "x0"))
    state, x, _ = stepper.start(torch.randn(2, 3))
    other = state._replace(x=state.x * 0.9)
    stepper.step(other, 0.5 * x)
    x.mul_(0.5)
    with pytest.raises(ValueError, match=r"^Stepper: the network wrote into its input .*_replace"):
        stepper.step(state, 0.5 * x)
