"""Executors that are given a number of calls in place of a plan."""

import pytest
import torch

import diffast as df

SCHEDULE = df.schedules.edm()
DENOISER = df.Denoiser(lambda x, t: 0.2 * x, SCHEDULE, "x0")


def test_sample_takes_the_plan_to_start_with():
    plan = df.plan(DENOISER, 5)
    made = df.sample(DENOISER, calls=5, shape=(2, 3), seed=4)
    assert torch.equal(made.x, df.sample(DENOISER, plan, (2, 3), seed=4).x)
    assert made.nfe.tolist() == [plan.nfe] * 2


def test_sample_parallel_takes_the_plan_to_start_with():
    plan = df.plan(DENOISER, 6)
    made = df.sample_parallel(DENOISER, calls=6, shape=(2, 3), tol=0.0)
    assert torch.equal(made.x, df.sample(DENOISER, plan, (2, 3)).x)


@pytest.mark.parametrize("run", [df.sample, df.sample_parallel])
def test_a_plan_and_calls_together_are_refused(run):
    plan = df.solvers.euler(SCHEDULE, df.grids.karras(SCHEDULE, 4))
    with pytest.raises(TypeError, match=r"plan euler.* and calls = 5 are given"):
        run(DENOISER, plan, shape=(2, 3), calls=5)


@pytest.mark.parametrize("run", [df.sample, df.sample_parallel, df.GraphSampler])
def test_neither_plan_nor_calls_is_refused(run):
    with pytest.raises(TypeError, match="neither plan nor calls is given"):
        run(DENOISER, shape=(2, 3))
    with pytest.raises(TypeError, match="neither plan nor calls is given"):
        run(DENOISER, None, (2, 3))


def test_runs_of_one_denoiser_share_a_plan():
    """CUDA graphs are kept for a plan as an object."""
    from diffast.executors.context import plan_of

    first = plan_of("sample", DENOISER, None, 7)
    assert plan_of("sample", DENOISER, None, 7) is first
    assert plan_of("sample", DENOISER, None, 8) is not first


@pytest.mark.parametrize("calls", [True, 1.0, 2.5, 0, "8", [3], float("nan")])
def test_calls_that_are_no_number_of_calls_are_refused(calls):
    """Also after 1 was asked for, which equals True and 1.0."""
    df.sample(DENOISER, calls=1, shape=(2, 3))
    with pytest.raises(ValueError, match=r"sample: calls = .* must be a whole number from 1"):
        df.sample(DENOISER, calls=calls, shape=(2, 3))
