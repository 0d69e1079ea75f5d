"""The public face: sources of noise, callbacks, and samples that fail."""

import pytest
import torch

import diffast as df
from diffast.executors.parallel import rounds

SCHEDULE = df.schedules.vp_linear()
METHODS = ("secant", "prior", "anderson", "paradigms", "speculative")
FAILING = 6  # the stage at which `broken` fails


def network(x, t):
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, 1))


def plan_of(name, steps=12):
    return df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))


def plan_for(method):
    return plan_of("ddpm" if method == "speculative" else "ddim")


def run(plan, denoise=network, count=5, **options):
    denoiser = df.Denoiser(denoise, SCHEDULE, predicts="epsilon")
    return df.sample_parallel(denoiser, plan, (count, 7), seed=4, **options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"noise": "path"}, "noise is 'path' but .* within one kernel.*df.sample"),
        ({"noise": lambda stage: None}, "noise is a callable but .* within one kernel"),
        ({"noise": "bridge"}, "noise is 'bridge' but nothing is rejected"),
        ({"noise": "redraw"}, "noise is 'redraw' but nothing is rejected"),
        ({"noise": "pink"}, "noise is 'pink' but must be one of"),
        ({"noise": torch.zeros(5, 7)}, "noise is a tensor, .*: the initial state is x="),
        ({"on_x0": lambda x0, info: x0}, "on_x0 is given but .* use clamp, or df.sample"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(options, words):
    with pytest.raises(ValueError, match=f"sample_parallel: {words}"):
        run(plan_of("ddim"), **options)


def test_the_result_is_that_of_all_runs():
    made = run(plan_of("ddim"))
    assert isinstance(made, df.ParallelSamples) and isinstance(made, df.Result)
    assert made.completed and made.fine.all() and made.status.tolist() == [-1] * 5
    assert all(isinstance(entry, df.Round) for entry in made.history)
    assert made.history[-1].settled.tolist() == [12] * 5


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m_sde", "heun"])
def test_a_callback_sees_settled_states(name, window):
    plan = plan_of(name)
    inside = {}  # states of the sequential run by stage
    denoiser = df.Denoiser(network, SCHEDULE, predicts="epsilon")

    def keep(state):
        inside[state.stage + 1] = state.x.clone()

    wanted = df.sample(denoiser, plan, (5, 7), seed=4, callback=keep).x
    times, seen = [*plan.call_times, plan.end], []

    def look(state):
        assert state.stages is None and state.x0 is None and state.time.shape == (5,)
        for b, t in enumerate(state.time.tolist()):
            there = [inside[i][b] for i in inside if abs(times[i] - t) < 1e-6]
            assert any(torch.equal(state.x[b], x) for x in there)
        seen.append(state.stage)

    made = run(plan, tol=0.0, window=window, callback=look)
    assert seen == list(range(made.rounds))
    assert torch.equal(made.x, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_callback_stops_the_run(method):
    plan = plan_for(method)
    states = []

    def stop(state):
        states.append(state.x)
        return state.stage == 1

    made = run(plan, method=method, tol=0.0, callback=stop)
    assert not made.completed and made.rounds == 2 and made.fine.all()
    assert torch.equal(made.x, states[-1])
    whole = run(plan, method=method, tol=0.0, callback=lambda state: state.time.max() <= plan.end)
    assert whole.completed


def broken(x, t):
    """Not finite for the inputs of samples that start with a large number, late in the run."""
    late = t.reshape(-1, 1) <= float(plan_of("ddim").call_times[FAILING]) + 1e-6
    return torch.where(late & (x[:, :1] > 50), torch.nan, network(x, t))


def start():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    x[1, 0] = x[3, 0] = 500.0
    return x


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_failed_samples_leave_and_the_others_go_on(method, window):
    plan = plan_for(method)
    options = {"method": method, "tol": 0.0, "window": window, "ids": [5, 6, 7, 8, 9]}
    made = run(plan, broken, x=start(), throw=False, **options)
    wanted = run(plan, network, x=start(), **options)
    fine = [0, 2, 4]
    assert torch.equal(made.x[fine], wanted.x[fine])
    assert made.status.tolist() == [-1, FAILING, -1, FAILING, -1]
    assert made.x[[1, 3]].isnan().all() and made.completed
    assert made.history[-1].settled.tolist() == [12, FAILING, 12, FAILING, 12]
    words = (
        rf"2 of 5 samples failed: 1 \(id 6\): the network's output is not finite at stage {FAILING}"
    )
    with pytest.raises(df.NonFiniteError, match=words) as caught:
        run(plan, broken, x=start(), **options)
    torch.testing.assert_close(caught.value.result.x, made.x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("at", [0, 6, 11])
@pytest.mark.parametrize("method", METHODS)
def test_when_all_samples_fail_the_run_ends(method, at):
    plan = plan_for(method)

    def bad(x, t):
        return torch.where(t[:, None] == float(plan.call_times[at]), torch.nan, network(x, t))

    made = run(plan, bad, method=method, throw=False)
    assert made.status.tolist() == [at] * 5 and made.x.isnan().all()
    assert made.rounds <= at + 1


def test_an_overflow_of_the_state_is_told_from_one_of_the_network():
    with pytest.raises(df.NonFiniteError, match="made of a finite network output is not finite"):
        run(plan_of("ddim"), lambda x, t: torch.full_like(x, 3e38))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
def test_guesses_that_are_not_finite_are_no_failures(method, bad, monkeypatch):
    plan = plan_for(method)
    wanted = run(plan, method=method, tol=0.0).x
    open_run = rounds.ParallelRun.open

    def open_badly(self, *given):
        open_run(self, *given)
        self.x[self.windows.rows[:, 1:].reshape(-1)] = bad
        self.states[self.samples :, 0] = bad

    monkeypatch.setattr(rounds.ParallelRun, "open", open_badly)
    made = run(plan, method=method, tol=0.0)
    assert made.fine.all() and made.rounds > 1
    if method != "speculative":
        assert torch.equal(made.x, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_wider_network_output_than_the_state_is_rounded_to_it(method):
    plan = plan_for(method)
    wanted = run(plan, method=method, tol=0.0)
    made = run(plan, lambda x, t: network(x, t).double(), method=method, tol=0.0)
    assert made.x.dtype == wanted.x.dtype and torch.equal(made.x, wanted.x)
