"""Parts of a plan that are run again: numbers, marginals, refusals."""

import numpy as np
import pytest

import diffast as df
from diffast.solvers import resampled

EDM, FLOW = df.schedules.edm(), df.schedules.flow()


def ddim(schedule, steps, eta=1.0, to_zero=True):
    grid = df.grids.default(schedule, steps)
    return df.solvers.ddim(schedule, grid if to_zero else grid[:-1], eta=eta)


def final_variance(plan, variance):
    """Of the sample of a one-call-a-stage plan, for Gaussian data and their exact denoiser."""
    schedule = plan.schedule
    alpha, sigma = schedule.alpha(plan.start), schedule.sigma(plan.start)
    held = alpha**2 * variance + sigma**2
    for i, t in enumerate(plan.times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        slope = alpha * variance / (alpha**2 * variance + sigma**2)  # d = slope x
        keep = plan.weights("x", "x")[i] + plan.weights("x", "y")[i]
        held = (keep + plan.weights("x", "d")[i] * slope) ** 2 * held
        held += plan.weights("x", "z1")[i] ** 2
    return held


@pytest.mark.parametrize("schedule", [EDM, FLOW, df.schedules.vp_linear()], ids=str)
@pytest.mark.parametrize(("jump", "times"), [(1, 2), (1, 5), (3, 3), (8, 2)])
def test_marginals_are_those_of_the_data(schedule, jump, times):
    """More repeats of the same steps converge to the same law; the plan's own check is exact."""
    errors = []
    for steps in (64, 256):
        plan = resampled(ddim(schedule, steps), jump, times)
        errors.append(abs(final_variance(plan, 0.3) / 0.3 - 1))
    assert errors[1] < 0.06 and errors[1] < 0.6 * errors[0]


def test_times_and_weights_of_two_parts():
    grid = np.array([8.0, 4.0, 2.0, 1.0])
    plan = resampled(df.solvers.euler(EDM, grid), jump=2, times=2)
    assert plan.times.tolist() == [8.0, 4.0, 2.0, 4.0, 2.0]
    assert plan.weights("x", "z1").tolist() == [0, 0, np.sqrt(16.0 - 1.0), 0, 0]
    assert plan.steps == 5 and plan.nfe == 5 and plan.end == 1.0
    assert plan.spans[2].tolist() == [1.0, 4.0]


def test_fresh_noise_is_joined_with_the_noise_that_is_put_back():
    once = ddim(FLOW, 6)
    plan = resampled(once, jump=1, times=2, where=(0.1, 1.0))
    lifted = np.flatnonzero(np.diff(plan.times) == 0)
    assert len(lifted) == plan.nfe - once.nfe > 0
    ends = np.append(once.times, once.end)
    for i in lifted:
        k = np.flatnonzero(once.times == plan.times[i])[0]
        grow = FLOW.alpha(ends[k]) / FLOW.alpha(ends[k + 1])
        own = once.weights("x", "z1")[k] * grow
        added = FLOW.sigma(ends[k]) ** 2 - (grow * FLOW.sigma(ends[k + 1])) ** 2
        np.testing.assert_allclose(plan.weights("x", "z1")[i], np.sqrt(own**2 + added), rtol=1e-12)
        assert 0.1 <= FLOW.sigma(ends[k + 1]) / FLOW.alpha(ends[k + 1]) <= 1.0


@pytest.mark.parametrize("name", ["heun", "rk4", "dpmpp_sde", "churn", "dpm_2_ancestral"])
def test_steps_of_several_calls_are_repeated_whole(name):
    options = {"s_churn": 3.0} if name == "churn" else {}
    plan = df.solvers.get(name)(EDM, df.grids.karras(EDM, 12), **options)
    again = resampled(plan, jump=3, times=2)  # the plan checks its levels itself
    assert again.nfe == 2 * plan.nfe
    assert sorted(again.call_times) == sorted([*plan.call_times] * 2)


def test_once_is_the_plan_itself():
    plan = ddim(EDM, 4)
    assert resampled(plan, 2, 1) is plan


def test_guidance_of_the_calls_goes_with_them():
    plan = ddim(EDM, 4)
    plan = df.Plan(
        **{f: getattr(plan, f) for f in ("schedule", "times", "end", "rows", "columns", "matrix")},
        levels=plan.levels,
        guidance=np.array([1.0, 2.0, 3.0, 1.5]),
    )
    assert resampled(plan, 2, 2).guidance.tolist() == [1, 2, 1, 2, 3, 1.5, 3, 1.5]


WRONG = {
    "multistep": (
        lambda: resampled(df.solvers.dpmpp_2m(EDM, df.grids.karras(EDM, 6))),
        "remembers estimates of earlier steps at stage 1",
    ),
    "jump": (lambda: resampled(ddim(EDM, 4), jump=0), "jump = 0, but it must be a whole number"),
    "times": (lambda: resampled(ddim(EDM, 4), times=1.5), "times = 1.5, but it must be a whole"),
    "a long jump": (
        lambda: resampled(ddim(EDM, 4), jump=5),
        "jump = 5, but plan ddim.* has 4 steps",
    ),
    "range": (lambda: resampled(ddim(EDM, 4), where=(2, 1)), r"where = \(2, 1\), but 0 <= low"),
    "nothing in range": (
        lambda: resampled(ddim(EDM, 4), where=(1e5, 1e6)),
        r"where = \(100000, 1e\+06\), but no part of plan",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_in_words(name):
    act, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        act()
