"""Adaptive rounds as replays of a graph, with capture and replay played on the CPU."""

import pytest
import torch
from adaptive_cases import METHODS, Gaussian, run, spectrum
from graph_tape import TapeBackend

import diffast as df
from diffast.executors import cuda_graph
from diffast.executors.adaptive import batch as adaptive_batch
from diffast.executors.adaptive import rounds as adaptive_run

VP = df.schedules.vp_linear()


class OnDevice:
    """The exact denoiser of a Gaussian in torch alone."""

    def __init__(self, d=3):
        self.variance = torch.as_tensor(spectrum(d))

    def __call__(self, x, t):
        t = t.double()[:, None]
        beta = 0.1 * t + 0.5 * 19.9 * t * t
        alpha, square = torch.exp(-0.5 * beta), -torch.expm1(-beta)
        gain = alpha * self.variance / (alpha**2 * self.variance + square)
        return (0.3 + gain * (x.double() - alpha * 0.3)).to(x.dtype)


@pytest.fixture
def made(monkeypatch):
    """The way of a device, with graphs; the backends that were made."""
    monkeypatch.setattr(adaptive_batch, "on_host", lambda device: False)
    monkeypatch.setattr(adaptive_run, "on_host", lambda device: False)

    def poll(batch, rounds):
        if batch.counts[:, 0].bool().all():
            batch.retire(batch.counts[:, 0].clone().numpy())

    monkeypatch.setattr(adaptive_batch.Batch, "poll", poll)
    found = []

    def backend(device):
        found.append(TapeBackend(device))
        return found[-1]

    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", backend)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_replayed_rounds_give_the_same_samples(name, made):
    method, options = name.split(",")[0], METHODS[name]
    denoiser = df.Denoiser(OnDevice(), VP, "x0")
    one = df.sample_adaptive(denoiser, method, (9, 3), seed=2, compact=False, **options)
    all_at_once = df.sample_adaptive(denoiser, method, (9, 3), seed=2, executor="graph", **options)
    assert torch.equal(all_at_once.x, one.x)
    assert torch.equal(all_at_once.nfe, one.nfe)
    assert torch.equal(all_at_once.rejected, one.rejected)
    (backend,) = made
    assert backend.log.count("capture") == 1 and "aside" not in backend.log
    solver = df.embedded.get(method)()
    period = solver.calls if solver.reuses_last_call else 1
    most = 2 * period  # the replay in flight when the last sample finished, and its own rest
    assert one.rounds <= all_at_once.rounds <= one.rounds + most
    assert backend.log.count("fetch") * period <= all_at_once.rounds


def test_another_seed_and_a_hook(made):
    denoiser = df.Denoiser(OnDevice(), VP, "x0")
    seen = []

    def hook(x0, info):
        seen.append(info.stage)
        return x0.clamp(-1.0, 1.0)

    options = {"on_x0": hook, "ids": [5, 2, 2**40], "seed": 9}
    wanted = df.sample_adaptive(denoiser, "pec", (3, 3), compact=False, **options)
    eager = len(seen)
    got = df.sample_adaptive(denoiser, "pec", (3, 3), executor="graph", **options)
    assert torch.equal(got.x, wanted.x)
    assert len(seen) - eager == 3 < eager  # at the start, in the first round, in the capture


def test_a_callback_sees_every_replay_and_may_stop(made):
    denoiser = df.Denoiser(OnDevice(), VP, "x0")
    stages = []

    def stop(progress):
        stages.append(progress.stage)
        return progress.stage == 6

    out = df.sample_adaptive(denoiser, "pec", (3, 3), executor="graph", callback=stop)
    assert stages == [1, 2, 3, 4, 5, 6] and not out.completed


def test_what_cannot_be_captured_runs_round_by_round(made):
    def reads(x, t):
        return OnDevice()(x, t) * float(1 + 0 * x.sum())

    denoiser = df.Denoiser(reads, VP, "x0")
    wanted = df.sample_adaptive(denoiser, "pec", (3, 3), compact=False)
    with pytest.warns(RuntimeWarning, match="runs round by round: the network waits for the dev"):
        got = df.sample_adaptive(denoiser, "pec", (3, 3), executor="graph")
    assert torch.equal(got.x, wanted.x)
    assert got.rounds == wanted.rounds


def test_what_graphs_cannot_have_is_refused(made):
    denoiser = df.Denoiser(OnDevice(), VP, "x0")
    with pytest.raises(ValueError, match="trace is given but a graph's rounds cannot be looked"):
        df.sample_adaptive(denoiser, "pec", (3, 3), executor="graph", trace=True)
    with pytest.raises(ValueError, match="executor is 'fast' but must be one of sequential, graph"):
        df.sample_adaptive(denoiser, "pec", (3, 3), executor="fast")


def test_on_a_cpu_there_are_no_graphs():
    denoiser = df.Denoiser(Gaussian(VP, spectrum(3)), VP, "x0")
    with pytest.raises(ValueError, match="sample_adaptive: a graph is for CUDA devices but"):
        df.sample_adaptive(denoiser, "pec", (3, 3), executor="graph")
    assert run("pec", (2, 3)).fine.all()


@pytest.mark.parametrize("through", ["x", "x0", "network"])
def test_terms_are_part_of_the_graph(through, made):
    def far(x, t):
        return (x - 0.3).square().sum(1)

    term = df.guidance.loss(far, 0.1, through=through)
    denoiser = df.Denoiser(OnDevice(), VP, "x0", guides=[term])
    one = df.sample_adaptive(denoiser, "pec", (9, 3), seed=2, compact=False)
    replayed = df.sample_adaptive(denoiser, "pec", (9, 3), seed=2, executor="graph")
    assert torch.equal(replayed.x, one.x)
    assert made[0].log.count("capture") == 1 and "aside" not in made[0].log
