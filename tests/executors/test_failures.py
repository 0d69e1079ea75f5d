"""Samples that are not finite: the others go on as if nothing had been, in every executor."""

import pytest
import torch
from op_cases import assert_same_bits
from test_face import DETERMINISTIC, STOCHASTIC, VP, denoiser_of, each_run, initial, network, run

import diffast as df
from diffast.executors.results import FINE

ONE = ("sample", "together", "each")  # all samples at one stage in a call
BAD = (float("nan"), float("inf"))


class Breaking:
    """The network, but sample `row`'s output is spoilt at network call `stage` of a plan."""

    def __init__(self, rows, stage, value=BAD[0], plan=DETERMINISTIC):
        self.rows, self.stage, self.value = rows, stage, value
        self.time, self.calls, self.plan = float(plan.call_times[stage]), 0, plan

    def __call__(self, x, t, **conditions):
        self.calls += 1
        y = network(x, t)
        for row in self.rows:
            for branch in range(len(x) // 3):
                if self.calls == self.stage + 1:
                    y[3 * branch + row, 1] = self.value
        return y


def both(name, call, x=None, **options):
    """The result with throw=False, and the error with throw=True."""
    x = initial() if x is None else x
    quiet = run(name, x, denoiser_of(call()), throw=False, **options)
    with pytest.raises(df.NonFiniteError) as caught:
        run(name, x, denoiser_of(call()), **options)
    return quiet, caught.value


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("stage", [0, 3, DETERMINISTIC.nfe - 1])
@pytest.mark.parametrize("name", ONE)
def test_one_bad_sample_leaves_the_others_alone(name, stage, value):
    wanted = run(name, initial(), ids=[4, 5, 6])
    quiet, error = both(name, lambda: Breaking([1], stage, value), ids=[4, 5, 6])
    assert isinstance(error, FloatingPointError)
    assert "1 of 3 samples failed: 1 (id 5): " in str(error)
    assert f"not finite at stage {stage}" in str(error)
    for result in (quiet, error.result):
        assert result.status.tolist() == [FINE, stage, FINE]
        assert result.fine.tolist() == [True, False, True]
        assert result.completed
        assert result.x[1].isnan().all()
        assert_same_bits(result.x[[0, 2]], wanted.x[[0, 2]])
    assert_same_bits(error.status, error.result.status)
    assert_same_bits(error.result.nfe, quiet.nfe)


def spoiling(since, **options):
    """A denoiser whose network answers NaN where c is 1, from a time on."""

    def call(x, t, c):
        bad = (c[:, 0] == 1) & (t <= since)
        return torch.where(bad[:, None], torch.full_like(x, float("nan")), network(x, t))

    return denoiser_of(call, conditions={"c": torch.tensor([[0.0], [1.0], [0.0]])}, **options)


@pytest.mark.parametrize("name", ["sample_adaptive", "sample_parallel"])
@pytest.mark.parametrize("first", [False, True])
def test_one_bad_sample_of_runs_with_steps_of_their_own(name, first):
    denoiser = spoiling(1.1 if first else 0.6)
    wanted = run(name, initial())
    quiet = run(name, initial(), denoiser, throw=False)
    with pytest.raises(df.NonFiniteError) as caught:
        run(name, initial(), denoiser)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert "1 of 3 samples failed: 1 (id 1): " in str(error)
    for result in (quiet, error.result):
        assert result.fine.tolist() == [True, False, True]
        assert (result.status[1] == 0) if first else (result.status[1] > 0)
        assert result.status[1] < result.nfe[1] or name == "sample_parallel"
        assert result.x[1].isnan().all()
        assert_same_bits(result.x[[0, 2]], wanted.x[[0, 2]])
        assert_same_bits(result.nfe[[0, 2]], wanted.nfe[[0, 2]])
    if name == "sample_adaptive":
        assert quiet.outcomes == ("finished", "not finite", "finished")


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "sample_parallel"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_run_ends_when_every_sample_has_failed(name, first):
    calls = []

    def call(x, t):
        calls.append(len(x))
        return network(x, t) if len(calls) <= first else torch.full_like(x, float("nan"))

    out = run(name, initial(), denoiser_of(call), throw=False)
    assert len(calls) == first + 1 < DETERMINISTIC.nfe
    assert out.x.isnan().all() and not out.fine.any()
    assert out.completed
    if name != "sample_parallel":
        assert out.status.tolist() == [first] * 3
        assert out.nfe.tolist() == [first + 1] * 3
    calls.clear()
    with pytest.raises(df.NonFiniteError, match="3 of 3 samples failed") as caught:
        run(name, initial(), denoiser_of(call))
    assert_same_bits(caught.value.status, out.status)
    assert len(calls) == first + 1


@pytest.mark.parametrize("name", ONE)
def test_a_stepper_and_all_samples_bad(name):
    calls = []

    def call(x, t):
        calls.append(len(x))
        return torch.full_like(x, float("nan"))

    out = run(name, initial(), denoiser_of(call), throw=False)
    assert out.x.isnan().all() and out.status.tolist() == [0, 0, 0]
    assert len(calls) == (1 if name == "sample" else DETERMINISTIC.nfe)  # the loop is the caller's


@pytest.mark.parametrize("name", ["sample", "together", "each"])
@pytest.mark.parametrize("how", ["noise", "half", "clamp", "hook", "clamp and hook"])
def test_failures_with_other_options(name, how):
    options, extra = {}, {}
    if how == "noise":
        options = {"plan": STOCHASTIC, "seed": 3}
    if how == "half":
        extra = {"dtype": torch.bfloat16}
    if "clamp" in how:
        options["clamp"] = (-0.4, 0.3)
    if "hook" in how:
        options["on_x0"] = lambda x0, info: 0.9 * x0
    wanted = run(name, initial(), denoiser_of(**extra), **options)
    broken = Breaking([2], 2, plan=options.get("plan", DETERMINISTIC))
    out = run(name, initial(), denoiser_of(broken, **extra), throw=False, **options)
    assert out.status.tolist() == [FINE, FINE, 2]
    assert out.x[2].isnan().all()
    assert_same_bits(out.x[:2], wanted.x[:2])


@pytest.mark.parametrize("name", ["sample", "sample_adaptive", "sample_parallel"])
def test_failures_with_guidance(name):
    nothing = {"c": torch.tensor([[0.0], [0.0], [1.0]])}
    times = DETERMINISTIC.call_times
    wanted, out = (
        run(name, initial(), spoiling(t, guidance=2.0, unconditional=nothing), throw=False)
        for t in (-1.0, 0.5 * (times[0] + times[1]))
    )
    assert wanted.fine.all()
    assert out.fine.tolist() == [True, False, False]  # by either branch
    assert out.x[1:].isnan().all()
    assert_same_bits(out.x[0], wanted.x[0])
    if name != "sample_adaptive":
        assert out.status.tolist() == [FINE, 1, 1]


def test_a_hook_that_spoils_one_sample_is_reported_too():
    def hook(x0, info):
        spoilt = (info.ids == 1) & torch.as_tensor(info.stage == 2)
        return torch.where(spoilt[:, None], torch.full_like(x0, float("nan")), x0)

    for name in ONE:
        wanted = run(name, initial(), on_x0=lambda x0, info: x0)
        out = run(name, initial(), on_x0=hook, throw=False)
        assert out.status.tolist() == [FINE, 2, FINE]
        assert_same_bits(out.x[[0, 2]], wanted.x[[0, 2]])


def test_results_of_a_stepper_before_the_end():
    stepper = df.Stepper(DETERMINISTIC, denoiser_of())
    for each in (False, True):
        state, x, t = stepper.start(initial(), each=each)
        begun = stepper.result(state)
        assert not begun.completed and begun.nfe.tolist() == [0] * 3
        state, x, t = stepper.step(state, network(x, t))
        state, x, t = stepper.step(state, network(x, t))
        under_way = stepper.result(state)
        assert not under_way.completed and under_way.nfe.tolist() == [2] * 3
        assert_same_bits(under_way.x, state.x)
        bad = network(x, t)
        bad[0, 0] = float("inf")
        state, x, t = stepper.step(state, bad)
        with pytest.raises(df.NonFiniteError, match=r"Stepper: 1 of 3 .* 0 \(id 0\).* stage 2"):
            stepper.result(state)
        assert stepper.result(state, throw=False).x[0].isnan().all()


def test_step_limits_are_runtime_errors_with_a_result():
    x = initial()
    for options, outcome in (
        ({"max_calls": 4, "rtol": 1e-6}, "too many calls"),
        ({"h_min": 0.2, "h_init": 0.2, "rtol": 1e-9, "atol": 1e-9}, "step too small"),
    ):
        quiet = df.sample_adaptive(denoiser_of(), "dpm_12", x=x, throw=False, **options)
        with pytest.raises(df.StepLimitError, match=outcome) as caught:
            df.sample_adaptive(denoiser_of(), "dpm_12", x=x, **options)
        error = caught.value
        assert isinstance(error, RuntimeError) and not isinstance(error, FloatingPointError)
        assert outcome in quiet.outcomes
        for result in (quiet, error.result):
            assert not result.fine.any() and result.x.isnan().all()
            assert (result.status == result.nfe - 1).all()


def test_not_finite_comes_before_a_limit():
    calls = []

    def call(x, t):
        calls.append(len(x))
        y = network(x, t)
        if len(calls) == 2:
            y[0] = float("nan")
        return y

    with pytest.raises(df.NonFiniteError) as caught:
        df.sample_adaptive(denoiser_of(call), "dpm_12", x=initial(), max_calls=4, rtol=1e-6)
    assert caught.value.result.outcomes[0] == "not finite"
    assert caught.value.result.outcomes[1:] == ("too many calls",) * 2
