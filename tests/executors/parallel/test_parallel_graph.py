"""Network calls of a parallel run as replays of graphs, with capture and replay on the CPU."""

import pytest
import torch
from graph_tape import TapeBackend

import diffast as df
from diffast.executors import cuda_graph
from diffast.executors import device as places
from diffast.executors.parallel import rounds

VP = df.schedules.vp_linear()


class Event:
    """All work of the CPU is done at once."""

    def query(self):
        return True

    def synchronize(self):
        pass


@pytest.fixture
def made(monkeypatch):
    """The way of a device, with graphs; the backends that were made."""
    for module in (places, rounds):
        monkeypatch.setattr(module, "on_host", lambda device: False)
    monkeypatch.setattr(places, "new_event", lambda device: Event())
    found = []

    def backend(device):
        found.append(TapeBackend(device))
        return found[-1]

    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", backend)
    return found


class Net:
    """A network that counts its Python calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, t, shift=None):
        self.calls += 1
        t = t.reshape(-1, 1)
        out = x * (0.4 + 0.5 * t) - 0.1 * x * x * x / (1 + x * x)
        return out if shift is None else out + shift


def plan_of(name, steps=24):
    return df.solvers.get(name)(VP, df.grids.uniform_time(VP, steps))


GUIDED = {
    "conditions": {"shift": torch.linspace(-0.1, 0.1, 3)[:, None].expand(3, 7).contiguous()},
    "unconditional": {"shift": torch.zeros(1, 7)},
    "guidance": 1.7,
}


@pytest.mark.parametrize("about", [{}, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("secant", "ddim"),
        ("secant", "heun"),
        ("secant", "dpmpp_2m_sde"),
        ("prior", "dpmpp_2m"),
        ("anderson", "ddim"),
        ("paradigms", "ddpm"),
        ("speculative", "ddpm"),
    ],
)
def test_the_same_samples(method, name, about, made):
    options = {"shape": (3, 7), "seed": 4, "method": method, "window": 5}
    tol = {} if method == "speculative" else {"tol": 1e-3}
    results, calls = [], []
    for more in ({"static": True}, {"executor": "graph"}):
        net = Net()
        denoiser = df.Denoiser(net, VP, "epsilon", **about)
        results.append(df.sample_parallel(denoiser, plan_of(name), **options, **tol, **more))
        calls.append(net.calls)
    one, two = results
    assert torch.equal(one.x, two.x)
    assert one.rounds == two.rounds and one.rows == two.rows
    assert torch.equal(one.nfe, two.nfe)
    if method in ("secant", "prior", "paradigms"):
        assert made[0].log.count("capture") <= 4
        assert calls[1] < calls[0]  # the rest were replays


def test_a_network_that_cannot_be_captured(made):
    def reads(x, t):
        return Net()(x, t) * float(1 + 0 * x.sum())

    denoiser = df.Denoiser(reads, VP, "epsilon")
    options = {"shape": (3, 7), "seed": 4, "window": 5}
    wanted = df.sample_parallel(denoiser, plan_of("ddim"), **options, static=True)
    with pytest.warns(RuntimeWarning, match="kernel by kernel: the network waits for the device"):
        got = df.sample_parallel(denoiser, plan_of("ddim"), **options, executor="graph")
    assert torch.equal(got.x, wanted.x) and got.rows == wanted.rows


def test_what_graphs_cannot_have_is_refused():
    denoiser = df.Denoiser(Net(), VP, "epsilon")
    with pytest.raises(ValueError, match="executor is 'graph' and ranks are given, but processes"):
        df.sample_parallel(denoiser, plan_of("ddim"), (3, 7), executor="graph", ranks=True)
    with pytest.raises(ValueError, match="executor is 'fast' but must be one of sequential, graph"):
        df.sample_parallel(denoiser, plan_of("ddim"), (3, 7), executor="fast")
    with pytest.raises(ValueError, match="sample_parallel: a graph is for CUDA devices but the"):
        df.sample_parallel(denoiser, plan_of("ddim"), (3, 7), executor="graph")


@pytest.mark.parametrize("through", ["x", "x0", "network"])
def test_terms_are_part_of_the_graphs(through, made):
    def far(x, t):
        return (x - 0.3).square().sum(1)

    options = {"shape": (3, 7), "seed": 4, "window": 5, "tol": 1e-3}
    term = df.guidance.loss(far, 0.02, through=through)
    results, calls = [], []
    for more in ({"static": True}, {"executor": "graph"}):
        net = Net()
        denoiser = df.Denoiser(net, VP, "epsilon", guides=[term])
        results.append(df.sample_parallel(denoiser, plan_of("ddim"), **options, **more))
        calls.append(net.calls)
    assert torch.equal(results[0].x, results[1].x)
    assert made[0].log.count("capture") <= 4 and calls[1] < calls[0]
