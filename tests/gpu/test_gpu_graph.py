"""Whole runs as one CUDA graph on a GPU: bits, fresh noise, failed captures, callers' graphs."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from replay_cases import GUIDED, IDS, KINDS, SHAPE, SHIFT, denoiser_of, network, solved

import diffast as df
from diffast.executors.replay import changed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
PLAN = solved("dpmpp_2m_sde")


@pytest.fixture(autouse=True)
def no_graphs_are_kept():
    yield
    df.graph_cache.clear()


@contextmanager
def no_waits():
    """Whatever waits for the device raises; the mode is off again in any case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def moved(options):
    """The options of a run, with given normals on the device."""
    noise = options.get("noise")
    if callable(noise):
        return options | {"noise": lambda stage: noise(stage).cuda()}
    return options


def usable():
    """Whether streams, random numbers, memory and new captures work as before."""
    assert torch.randn(8, device="cuda").isfinite().all()
    assert torch.cuda.is_current_stream_capturing() is False
    denoiser = denoiser_of()
    wanted = df.sample(denoiser, PLAN, SHAPE, device="cuda", seed=6).x
    made = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda")(seed=6).x
    assert torch.equal(made, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_replays_have_the_bits_of_sample(kind):
    plan, about, options = KINDS[kind]
    denoiser, options = denoiser_of(**about), moved(dict(options))
    dtype = options.pop("dtype", torch.float32)
    sampler = df.GraphSampler(denoiser, plan, SHAPE, dtype=dtype, device="cuda", **options)
    x = 0.7 * plan.initial_scale * torch.linspace(-1, 1, SHIFT.numel()).reshape(SHAPE)
    x = x.to("cuda", dtype)
    for load in ({"seed": 1}, {"seed": 11, "ids": IDS}, {"seed": 2**64 - 5}, {"seed": 1}):
        wanted = df.sample(denoiser, plan, x=x, **options, **load)
        got = sampler(x=x, **load)
        assert torch.equal(got.x, wanted.x)
        again = df.sample(denoiser, plan, x=x, executor="graph", **options, **load)
        assert torch.equal(again.x, wanted.x)
    assert len(df.graph_cache) == 1


def test_every_replay_draws_its_own_noise():
    denoiser = denoiser_of()
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda")
    made = [sampler(seed=seed).x for seed in range(5)]
    assert len({tuple(x.flatten().tolist()) for x in made}) == 5
    assert torch.equal(sampler(seed=3).x, made[3])


def test_scale_and_conditions_of_a_call():
    denoiser = denoiser_of(**GUIDED)
    plan = solved("heun")
    sampler = df.GraphSampler(denoiser, plan, SHAPE, device="cuda")
    for change in (
        {"guidance": 7.5},
        {"conditions": {"shift": SHIFT.flip(0).cuda()}},
        {"conditions": {"shift": SHIFT.cuda() * 2}, "guidance": 1.5},
        {},
    ):
        wanted = df.sample(changed(denoiser, **change), plan, SHAPE, device="cuda").x
        assert torch.equal(sampler(**change).x, wanted)


def test_a_call_waits_for_nothing_without_a_check():
    shift = SHIFT.cuda()
    blank = torch.zeros(1, *SHAPE[1:], device="cuda")
    denoiser = df.Denoiser(
        network,
        PLAN.schedule,
        "x0",
        conditions={"shift": shift},
        unconditional={"shift": blank},
        guidance=2.0,
    )
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda", check=False)
    wanted = df.sample(changed(denoiser, guidance=3.0), PLAN, SHAPE, device="cuda", ids=IDS).x
    ids = torch.tensor(IDS, device="cuda")
    sampler(ids=ids, guidance=3.0)
    with no_waits():
        sampler(ids=ids)
        result = sampler(ids=ids, guidance=3.0, conditions={"shift": shift})
    assert torch.equal(result.x, wanted)


def test_calls_on_several_streams_are_in_order():
    denoiser = denoiser_of()
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda", check=False)
    wanted = [sampler(seed=seed).x for seed in range(20)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    made = []
    for seed in range(20):
        with torch.cuda.stream(streams[seed % 3]):
            made.append(sampler(seed=seed).x)
    torch.cuda.synchronize()
    assert all(map(torch.equal, made, wanted))


def reads(x, t):
    return network(x, t) + 0.0 * x.flatten()[0].item()


def branches(x, t):
    return network(x, t) if x.sum() > 0 else -network(x, t)


def changes_shapes(x, t):
    return network(x, t) + x[x > 0].sum()


def moves(x, t):
    return network(x.cpu(), t.cpu()).cuda()


class Raises:
    def __call__(self, x, t):
        if torch.cuda.is_current_stream_capturing():
            raise KeyError("cache")
        return network(x, t)


class Draws(Raises):
    """As one that raises, after torch's generator took part in the capture."""

    def __call__(self, x, t):
        return super().__call__(x + 0 * torch.randn_like(x), t)


class Greedy:
    """A network for whose capture the memory does not suffice."""

    def __call__(self, x, t):
        if torch.cuda.is_current_stream_capturing():
            torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
        return network(x, t)


CANNOT = {
    "reads": (reads, "waits for the device"),
    "branches": (branches, "waits for the device"),
    "changing shapes": (changes_shapes, "waits for the device"),
    "moves": (moves, "copies to the host"),
    "raises": (Raises(), "raised KeyError in capture at test_gpu_graph.py"),
    "raises after drawing": (Draws(), "raised KeyError in capture"),
    "memory": (Greedy(), "too little memory"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_captured_says_why_and_leaves_the_device_usable(name):
    call, why = CANNOT[name]
    denoiser = df.Denoiser(call, PLAN.schedule, "x0")
    with pytest.raises(df.GraphError, match=why):
        df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda")
    usable()
    with pytest.warns(RuntimeWarning, match=why):
        df.sample(denoiser, PLAN, SHAPE, device="cuda", executor="graph")
    usable()


def test_failed_captures_keep_no_memory():
    denoiser = df.Denoiser(reads, PLAN.schedule, "x0")

    def fail():
        with pytest.raises(df.GraphError):
            df.GraphSampler(denoiser, PLAN, (64, 64, 64), device="cuda")
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    before = fail()
    assert max(fail() for _ in range(3)) <= before


def test_a_network_that_draws_draws_anew_in_every_replay():
    denoiser = df.Denoiser(lambda x, t: torch.randn_like(x), PLAN.schedule, "x0")
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda")
    assert not torch.equal(sampler().x, sampler().x)


def test_failed_samples_are_named():
    bad = SHIFT.clone()
    bad[1, 0, 0] = torch.nan
    sampler = df.GraphSampler(denoiser_of(shift=SHIFT), PLAN, SHAPE, device="cuda")
    with pytest.raises(df.NonFiniteError, match=r"1 of 3 samples failed: 1 \(id -3\).* stage 0"):
        sampler(conditions={"shift": bad}, ids=IDS)
    assert sampler().fine.all()


def test_ids_on_another_device_are_refused():
    sampler = df.GraphSampler(denoiser_of(), PLAN, SHAPE, device="cuda")
    with pytest.raises(ValueError, match="ids are on cpu but the graph is on cuda:0"):
        sampler(ids=torch.tensor(IDS))


def test_a_whole_sample_in_the_callers_graph():
    denoiser, ids = denoiser_of(), torch.tensor(IDS, device="cuda")

    def sample():
        return df.sample(denoiser, PLAN, SHAPE, seed=4, ids=ids, device="cuda", check=False)

    wanted = sample().x.clone()  # and kernels are loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = sample()
    made.x.zero_()
    graph.replay()
    assert torch.equal(made.x, wanted)
    assert made.status.tolist() == [-1, -1, -1]


@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_a_compiled_network_composes():
    compiled = torch.compile(network)
    denoiser = df.Denoiser(compiled, PLAN.schedule, "x0")
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, device="cuda")
    wanted = df.sample(denoiser, PLAN, SHAPE, device="cuda", seed=2).x
    assert torch.equal(sampler(seed=2).x, wanted)


def test_the_digit_network():
    net = df.digits.load_unet().cuda()
    schedule = df.schedules.edm()
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 20))
    labels = torch.arange(64, device="cuda") % 10
    denoiser = df.Denoiser(net, schedule, "x0", conditions={"labels": labels})
    sampler = df.GraphSampler(denoiser, plan, (64, 1, 28, 28), device="cuda")
    wanted = df.sample(denoiser, plan, (64, 1, 28, 28), device="cuda", seed=2).x
    torch.testing.assert_close(sampler(seed=2).x, wanted, atol=1e-3, rtol=0)
    assert sampler.memory.pool > 0
    other = changed(denoiser, conditions={"labels": labels.flip(0)})
    wanted = df.sample(other, plan, (64, 1, 28, 28), device="cuda", seed=2).x
    got = sampler(seed=2, conditions={"labels": labels.flip(0)}).x
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["pec", "ggf", "dpm_12", "dpm_23", "bosh3", "tsit5"])
def test_adaptive_rounds(method):
    denoiser = denoiser_of()
    options = {"shape": (9, 2, 5), "seed": 3, "device": "cuda"}
    wanted = df.sample_adaptive(denoiser, method, compact=False, **options)
    got = df.sample_adaptive(denoiser, method, executor="graph", **options)
    assert torch.equal(got.x, wanted.x)
    assert torch.equal(got.nfe, wanted.nfe)
    usable()


def test_adaptive_rounds_that_cannot_be_captured():
    denoiser = df.Denoiser(reads, PLAN.schedule, "x0")
    with pytest.warns(RuntimeWarning, match="runs round by round: the network waits"):
        made = df.sample_adaptive(denoiser, "pec", SHAPE, device="cuda", executor="graph")
    wanted = df.sample_adaptive(denoiser, "pec", SHAPE, device="cuda", compact=False)
    assert torch.equal(made.x, wanted.x)
    usable()


@pytest.mark.parametrize("method", ["secant", "prior", "anderson", "paradigms", "speculative"])
def test_parallel_rounds(method):
    plan = solved("ddim", eta=1.0)
    options = {"shape": (3, 2, 5), "seed": 3, "device": "cuda", "method": method, "window": 3}
    denoiser = denoiser_of()
    wanted = df.sample_parallel(denoiser, plan, static=True, **options)
    got = df.sample_parallel(denoiser, plan, executor="graph", **options)
    assert torch.equal(got.x, wanted.x)
    assert got.rounds == wanted.rounds
    usable()
