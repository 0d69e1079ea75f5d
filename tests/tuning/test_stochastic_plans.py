"""Stochastic plans: the law of their samples is what is compared and learned."""

import pytest
import torch
from tuning_problems import denoiser, labelled

import diffast as df
from diffast.tuning.form import form_of
from diffast.tuning.law import LawJudge
from diffast.tuning.levenberg import Runner
from diffast.tuning.parameters import Parameters
from diffast.tuning.pilots import Pilots, ids_of

OPTIONS = {"progress": False, "rows": 4096, "compare": (), "iterations": 3, "stochastic": True}


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde"])
def test_a_run_of_learning_is_that_of_the_plan(name):
    network = labelled()
    plan = df.solvers.get(name)(network.schedule, df.grids.karras(network.schedule, 5))
    parameters = Parameters(form_of(plan), network, ("levels", "weights", "noise"))
    vector = 0.05 * torch.ones(parameters.size, dtype=torch.float64)
    numbers = parameters.numbers(vector)
    ids = ids_of(6)
    pilots = Pilots(network, (5,), 3, torch.device("cpu"))
    found = Runner(parameters, pilots, 64).trace(ids, numbers)
    made = parameters.form_at(vector).plan("moved")
    assert made.stochastic
    wanted = df.sample(pilots.rows(ids), made, (6, 5), seed=3).x
    torch.testing.assert_close(found.states[-1], wanted, rtol=0, atol=2e-5)


def test_the_sliced_distance_is_that_of_sorted_samples():
    drawn = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=drawn)

    one, two = normal(400, 1), 1.5 * normal(400, 1) + 0.3
    wanted = (one.sort(0).values - two.sort(0).values).square().mean().sqrt() / two.std()
    assert LawJudge(two).error(one) == pytest.approx(float(wanted), rel=2e-3)
    judge = LawJudge(normal(5000, 3))
    assert judge.error(normal(5000, 3)) < 0.05
    # A shift by 1 in each of three dimensions, seen along the judge's directions.
    shift = float(judge.directions.sum(0).square().mean().sqrt())
    assert judge.error(normal(4000, 3) + 1.0) == pytest.approx(shift, abs=0.05)
    assert judge.error(normal(300, 3) * torch.nan) == float("inf")


@pytest.mark.slow
def test_a_tuned_stochastic_plan_has_a_nearer_law():
    result = df.tune(denoiser(), 6, (1024, 2), **OPTIONS)
    assert result.plan.stochastic
    assert result.error < 0.8 * result.best_standard.error
    fine = df.solvers.dpmpp_2m(df.schedules.edm(), df.grids.karras(df.schedules.edm(), 100))
    wanted = df.sample(denoiser(), fine, (4000, 2), seed=8).x
    made = df.sample(denoiser(), result.plan, (4000, 2), seed=9).x
    assert LawJudge(wanted).error(made) < 1.5 * result.error


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"polish": 5}, "polish is given, but it is for deterministic plans"),
        ({"stochastic": False, "freedom": ("noise",)}, "'noise', but stochastic is False"),
    ],
)
def test_what_does_not_fit_is_refused(options, facts):
    with pytest.raises(ValueError, match=facts):
        df.tune(denoiser(), 5, (32, 2), **(OPTIONS | options))
