"""What executors do to a GPU: no waits between network calls, one kernel a stage, the CPU's bits.

The network switches torch's sync-debug mode on at its first call and off at its last: waits before
the run and after it are allowed, and one between two calls is an error.
"""

import contextlib

import numpy as np
import pytest
import torch
from device_watch import counted_waits, launches, no_waits
from stepwise_runs import VP, network, noise_of, plan_of

import diffast as df

GUIDED = {"conditions": {"shift": torch.full((4, 5), 0.3)}, "guidance": 2.5}
GUIDED |= {"unconditional": {"shift": torch.full((1, 5), -0.15)}}
# Options of the denoiser and of the run, by kind of run.
KINDS = {
    "plain": ({}, {}),
    "clamp": ({}, {"clamp": (-0.3, 0.25)}),
    "hook": ({}, {"on_x0": lambda x0, info: 0.5 * x0}),
    "guided": (GUIDED, {}),
    "bfloat16": ({"dtype": torch.bfloat16}, {}),
    "path": ({}, {"noise": "path"}),
}
PLANS = ("euler", "heun", "dpmpp_3m_sde", "churn_heun", "parted")
RUNS = [(k, p) for k in KINDS for p in PLANS if (k, p) != ("path", "churn_heun")]


class Watched:
    """A network between whose first and last call nothing may wait for the device."""

    def __init__(self, function, calls, device):
        self.function, self.last, self.device = function, calls - 1, device
        self.count, self.stack = 0, contextlib.ExitStack()

    def __call__(self, *args, **named):
        if self.count == 0:
            self.stack.enter_context(no_waits(self.device))
        if self.count == self.last:
            self.stack.close()
        self.count += 1
        return self.function(*args, **named)


def wide(x, t, **named):
    """The network in float32: half a sum is rounded otherwise by torch on a GPU than on the CPU."""
    return network(x.float(), t.float(), **named).to(x.dtype)


def run(kind, name, device, watched=False):
    options, more = KINDS[kind]
    plan = plan_of(name)
    calls = int(np.isfinite(plan.times).sum())  # a stage of noise alone calls no network
    function = wide if kind == "bfloat16" else network
    function = Watched(function, calls, device) if watched else function
    denoiser = df.Denoiser(function, VP, predicts="v", **options)
    try:
        x = df.sample(denoiser, plan, x=noise_of().to(device), seed=3, **more).x
    finally:
        if watched:
            function.stack.close()
    assert not watched or function.count == calls
    return x.cpu()


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_sample_does_not_wait_between_calls(kind, name, device):
    run(kind, name, device)  # kernels are loaded
    assert torch.equal(run(kind, name, device, watched=True), run(kind, name, "cpu"))


@pytest.mark.parametrize("each", [False, True], ids=["together", "each"])
@pytest.mark.parametrize("clamp", [None, (-0.3, 0.25)])
@pytest.mark.parametrize("name", PLANS)
def test_stepper_does_not_wait(name, clamp, each, device):
    plan, results = plan_of(name), []
    reads = df.Denoiser(network, VP, predicts="v")
    for place in ("cpu", device):
        stepper = df.Stepper(plan, reads, clamp=clamp, device=place)
        state, x, t = stepper.start(noise_of().to(place), seed=5, each=each)
        stepper.table()
        state, x, t = stepper.step(state, network(x, t))  # kernels are loaded
        with no_waits(place):
            for _ in range(plan.stages - 1):
                state, x, t = stepper.step(state, network(x, t))
        results.append(stepper.result(state).x.cpu())
    assert torch.equal(*results)


def test_stepper_of_several_plans_does_not_wait(device):
    schedule = df.schedules.edm()
    plans = [
        df.solvers.heun(schedule, df.grids.karras(schedule, 5)),
        df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 9)),
        df.solvers.dpmpp_2m_sde(schedule, df.grids.karras(schedule, 7)),
    ]
    reads, results = df.Prediction(schedule, predicts="x0"), []
    made = [torch.Generator().manual_seed(i) for i in range(10)]
    first, *outputs = (0.1 * torch.randn(6, 3, 8, 8, generator=g) for g in made)
    for place in ("cpu", device):
        stepper = df.Stepper([(plan, reads) for plan in plans], device=place)
        state, _, _ = stepper.start(800.0 * first.to(place), plan=[0, 1, 2, 2, 1, 0], seed=5)
        moved = [output.to(place) for output in outputs]
        stepper.table()
        with no_waits(place):
            for output in moved:
                state, _, _ = stepper.step(state, output)
        assert bool(stepper.done(state).all())
        results.append(state.x.cpu())
    assert torch.equal(*results)


@pytest.mark.parametrize("method", ["secant", "prior", "anderson", "speculative"])
def test_a_parallel_round_waits_once(method, device):
    """Besides the round's own wait, the start and the end may wait a few times."""
    plan = df.solvers.ddpm(VP, df.grids.uniform_time(VP, 12))
    denoiser = df.Denoiser(network, VP, predicts="v")

    def sample():
        return df.sample_parallel(denoiser, plan, x=noise_of(4, (500,)).to(device), method=method)

    sample()
    with counted_waits(device) as waits:
        rounds = sample().rounds
    assert len(waits) <= rounds + 6, (len(waits), rounds)


@pytest.mark.parametrize("method", ["pec", "dopri5"])
def test_waits_of_an_adaptive_run_do_not_grow_with_its_rounds(method, device):
    """One sample, so that one row is handed over at the end, after few rounds or many."""
    denoiser, x = df.Denoiser(network, VP, predicts="v"), noise_of(1).to(device)
    counts, calls = [], []
    for h_max in (0.3, 0.01):

        def sample(h_max=h_max):
            return df.sample_adaptive(denoiser, method, x=x, h_max=h_max, throw=False)

        sample()
        with counted_waits(device) as waits:
            calls.append(int(sample().nfe[0]))
        counts.append(len(waits))
    assert calls[1] > calls[0] + 20
    assert counts[1] <= counts[0] + 2, (counts, calls)


STAGE = {"plain": 1, "clamp": 1, "guided": 1, "hook": 4}


@pytest.mark.parametrize("kind", STAGE)
def test_kernels_of_a_stage(kind, device):
    """A stage launches one kernel beside the network.

    With a hook: the estimate, the hook's own kernel, the copy of what it returns, and the step.
    """
    options, more = KINDS[kind]
    counts = []
    for steps in (4, 9):
        plan = df.solvers.dpmpp_2m(VP, df.grids.uniform_time(VP, steps))
        made = noise_of().to(device)
        output = torch.cat([made, made]) if kind == "guided" else made
        denoiser = df.Denoiser(lambda x, t, out=output, **_: out, VP, predicts="v", **options)

        def sample(denoiser=denoiser, plan=plan, made=made):
            df.sample(denoiser, plan, x=made, seed=3, **more)

        sample()
        counts.append(launches(sample, device))
    grown = (len(counts[1]) - len(counts[0])) / 5
    assert grown <= STAGE[kind], (grown, counts[1])
    assert grown >= 1, "no kernel was counted"


def test_kernels_of_a_step_together(device):
    plan = plan_of("dpmpp_3m_sde", steps=8)
    stepper = df.Stepper(plan, df.Denoiser(network, VP, predicts="v"), device=device)
    state, x, t = stepper.start(noise_of().to(device), seed=5)
    output = noise_of().to(device)
    for _ in range(4):
        state, x, t = stepper.step(state, output)
    names = launches(lambda: stepper.step(state, output), device)
    assert 1 <= len(names) <= 3, names  # the step, the status, the times that are told


def test_a_step_can_be_captured(device):
    """A step of a batch at several stages is replayed: row, seed and ids lie in memory."""
    plan = plan_of("dpmpp_3m_sde", steps=6)
    stepper = df.Stepper(plan, df.Denoiser(network, VP, predicts="v"), device=device)
    state, _, _ = stepper.start(noise_of().to(device), seed=5, each=True)
    # A state begins with one tensor of zeros for all slots; here each is written.
    state = state._replace(slots=tuple(slot.clone() for slot in state.slots))
    outputs = [
        network(noise_of().to(device) * k, torch.full((4,), 0.5, device=device)) for k in range(6)
    ]
    wanted = state
    for output in outputs:
        wanted, _, _ = stepper.step(wanted, output)
    given = outputs[0].clone()
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made, _, _ = stepper.step(state, given)
        again = graph.replay
    else:
        made = None

        def again():
            nonlocal made
            made, _, _ = stepper.step(state, given)

    for output in outputs:
        given.copy_(output)
        again()
        # A new slot may be an old one of another age: all are read before one is written.
        fresh = [t.clone() for t in _tensors(made)]
        for old, new in zip(_tensors(state), fresh, strict=True):
            old.copy_(new)
    assert torch.equal(state.x, wanted.x) and torch.equal(state.row, wanted.row)


def _tensors(state):
    parts = [p if isinstance(p, tuple) else (p,) for p in state]
    return [t for part in parts for t in part if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "adams", "dpmpp_2m_sde"])
def test_a_late_start_is_that_of_the_cpu(solver, device):
    """The law's draw and the entries are products in float64: equal but for float32's last bit."""
    data = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) + torch.arange(5)
    plan = df.solvers.get(solver)(VP, df.grids.default(VP, 8))
    late = plan.late_start(df.thermo.Gaussian.of(data), level=2.0)
    made = []
    for place in ("cpu", device):
        denoiser = df.Denoiser(network, VP, predicts="v")
        made.append(df.sample(denoiser, late, (4, 5), seed=3, device=place).x.cpu())
    assert (made[0] - made[1]).abs().max() < 1e-5
