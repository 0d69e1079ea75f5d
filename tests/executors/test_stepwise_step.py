"""The stepwise executor's step: pure, free of device reads, one graph; what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from stepwise_runs import IDS, VP, guided, network, noise_of, pair, plan_of, run, some, staggered
from torch.utils._python_dispatch import TorchDispatchMode

import diffast as df
from diffast.executors.stepwise import State, Stepper


def tensors_of(state):
    parts = itertools.chain.from_iterable(p if isinstance(p, tuple) else (p,) for p in state)
    return [p for p in parts if isinstance(p, torch.Tensor)]


@pytest.mark.parametrize("each", [False, True])
@some
def test_step_is_a_pure_function(name, each):
    plan, noise = plan_of(name), noise_of()
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    state, x, t = stepper.start(noise, seed=7, ids=IDS, each=each)
    states = []
    while not bool(torch.as_tensor(stepper.done(state)).all()):
        output = network(x, t)
        kept = [p.clone() for p in (*tensors_of(state), output)]
        following, x, t = stepper.step(state, output)
        held = (*tensors_of(state), output)
        assert all(map(torch.equal, held, kept))
        states.append((state, output, following))
        state = following
    assert torch.equal(noise, noise_of())
    for state, output, following in reversed(states):  # time travel
        again, _, _ = stepper.step(state, output)
        for one, two in zip(tensors_of(again), tensors_of(following), strict=True):
            assert torch.equal(one, two)


def test_strided_outputs_are_taken_as_they_are():
    plan, denoiser = plan_of("heun"), guided(2.5)
    stepper, noise = Stepper(plan, denoiser), noise_of()
    wanted = run(stepper, *stepper.start(noise), call=pair).x

    def strided(x, t):
        wide = torch.stack(pair(x, t), -1)
        return wide[..., 0], wide[..., 1]

    for each in (False, True):
        assert torch.equal(run(stepper, *stepper.start(noise, each=each), call=strided).x, wanted)


def test_the_network_is_told_the_times_of_its_samples():
    plan = plan_of("heun")
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    state, x, t = stepper.start(noise_of(dtype=torch.float64))
    for i in range(plan.stages):
        assert t.tolist() == [plan.times[i]] * 4
        state, x, t = stepper.step(state, network(x, t))
    assert t.tolist() == [plan.times[-1]] * 4  # at the end the last one again
    assert stepper.done(state)
    same = stepper.step(state, network(x, t))[0]
    assert same is state
    state, _, t = staggered(stepper, noise_of(dtype=torch.float64), calls=(0, 2, 4, 1))
    assert t.tolist() == plan.times[[0, 2, 4, 1]].tolist()
    assert stepper.stage(state).tolist() == [0, 2, 4, 1]


@pytest.mark.parametrize("kind", ["plain", "clamp", "hook", "guided"])
def test_estimates_are_those_of_progress(kind):
    plan, noise = plan_of("dpmpp_3m_exact"), noise_of()
    denoiser = guided(2.5) if kind == "guided" else df.Denoiser(network, VP, predicts="v")
    call = pair if kind == "guided" else network

    def hook(x0, stage):
        return x0 * 0.5

    options = {"clamp": {"clamp": (-0.3, 0.25)}, "hook": {"on_x0": hook}}.get(kind, {})
    seen = []
    df.sample(denoiser, plan, x=noise, callback=lambda p: seen.append(p.x0.clone()), **options)
    stepper = Stepper(plan, denoiser, **options)
    for each in (False, True):
        state, x, t = stepper.start(noise, each=each)
        for i in range(plan.stages):
            output = call(x, t)
            found = stepper.estimate(state, output)
            np.testing.assert_allclose(found.numpy(), seen[i].numpy(), rtol=0, atol=2e-6)
            state, x, t = stepper.step(state, output)


class Watch(TorchDispatchMode):
    """Every op that comes by, by name; those that take a tensor to another device as such."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moves = "_to_copy" in str(func) and kwargs.get("device") is not None
        self.names.append("moved" if moves else str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize("each", [False, True])
@some
def test_a_step_reads_nothing_from_the_device(name, each):
    plan = plan_of(name)
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    state, x, t = stepper.start(noise_of(), each=each)
    stepper.table()
    for _ in range(plan.stages):
        output = network(x, t)
        with Watch() as watch:
            state, x, t = stepper.step(state, output)
        forbidden = ("_local_scalar_dense", "moved", "nonzero", "item", "equal")
        assert watch.names
        assert not [n for n in watch.names if any(word in n for word in forbidden)], watch.names


@pytest.mark.parametrize("name", ["unipc_3", "churn_heun", "seeds_3"])
def test_a_compiled_ragged_step_is_one_graph_for_all_stages(name):
    plan, noise = plan_of(name), noise_of()
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    wanted = run(stepper, *stepper.start(noise, seed=7, ids=IDS)).x
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module

    torch._dynamo.reset()
    step = torch.compile(stepper.step, backend=backend, fullgraph=True)
    state, x, t = staggered(stepper, noise)
    for _ in range(plan.stages + 1):
        state, x, t = step(state, network(x, t))
    assert torch.equal(state.x, wanted)
    assert len(graphs) == 1


def test_states_are_plain_tuples_of_tensors():
    plan = plan_of("heun")
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    state = stepper.start(noise_of(), each=True)[0]
    assert isinstance(state, State)
    assert state.v is None and "v" not in stepper.carried  # no plan has momenta
    assert all(isinstance(p, (torch.Tensor, tuple)) for p in state._replace(v=(), momentum=()))
    assert len(state.slots) == stepper.slots == 1


def test_an_empty_batch_is_fine():
    stepper = Stepper(plan_of("heun"), df.Denoiser(network, VP, predicts="v"))
    for each in (False, True):
        state, x, t = stepper.start(torch.zeros(0, 5), each=each)
        state, x, t = stepper.step(state, x)
        assert x.shape == (0, 5)
        assert t.shape == (0,)


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (lambda d: Stepper([]), "0 plans, but at least 1"),
        (lambda d: Stepper(plan_of("heun"), d, clamp=(1, -1)), "clamp is .* finite and in order"),
        (lambda d: Stepper(plan_of("heun"), d, clamp=(float("nan"), 1)), "finite and in order"),
        (lambda d: started(d, x=torch.zeros(4, 5).half()), "x is torch.float16 but the state"),
        (lambda d: started(d, ids=[1, 2]), r"ids are \[2\] but there are 4 samples"),
        (lambda d: started(d, ids=[1.0, 2.0, 3.0, 4.0]), "float32 but integers"),
        (lambda d: started(d, ids=[True] * 4), "bool but integers"),
        (lambda d: started(d, plan=1), r"plan \[1\] but there are 1 plans"),
        (lambda d: started(d, plan=-1), r"plan \[-1\] but there are 1 plans"),
        (lambda d: started(d, plan=[0, 0]), r"plan has shape \[2\] but there are 4"),
        (lambda d: started(d, seed=2**64), "64 bits"),
        (lambda d: stepped(d, torch.zeros(4, 4)), r"output is \[4, 4\] but the state is \[4, 5\]"),
        (lambda d: stepped(guided(2.0), torch.zeros(4, 5)), "guided, but one output"),
        (
            lambda d: stepped(guided(2.0), (torch.zeros(4, 5), torch.zeros(4, 1))),
            r"unconditional output is \[4, 1\]",
        ),
        (
            lambda d: stepped(d, torch.zeros(4, 5), torch.zeros(4, 5)),
            "z is given, but noise is 'counter'",
        ),
        (
            lambda d: stepped(d, torch.zeros(4, 5), name="ddim_one", noise="given"),
            "noise is 'given' and a plan draws, but no z is given",
        ),
        (
            lambda d: started(d, name="churn_heun", noise="given"),
            "begins with noise, but no z is given",
        ),
        (
            lambda d: stepped(d, torch.zeros(4, 5), on_x0=lambda x0, i: x0[:1]),
            r"on_x0 was given \[4, 5\] but returned \[1, 5\]",
        ),
        (lambda d: Stepper(plan_of("heun"), d).join(), "0 states, but at least 1"),
    ],
)
def test_refusals(act, facts):
    with pytest.raises(ValueError, match=facts):
        act(df.Denoiser(network, VP, predicts="v"))


def started(denoiser, x=None, name="heun", noise="counter", **options):
    stepper = Stepper(plan_of(name), denoiser, noise=noise)
    return stepper.start(noise_of() if x is None else x, **options)


def stepped(denoiser, output, z=None, name="heun", **options):
    stepper = Stepper(plan_of(name), denoiser, **options)
    return stepper.step(stepper.start(noise_of())[0], output, z)
