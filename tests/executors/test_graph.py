"""`executor="graph"` and `GraphSampler`, with capture and replay played on the CPU."""

import gc
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from graph_tape import TapeBackend
from op_cases import assert_same_bits
from replay_cases import (
    GUIDED,
    IDS,
    KINDS,
    SHAPE,
    SHIFT,
    Still,
    Watch,
    denoiser_of,
    network,
    solved,
)

import diffast as df
from diffast import ops
from diffast.executors import context, cuda_graph
from diffast.executors.bound_run import BoundRun
from diffast.executors.cuda_graph import Graph, GraphError
from diffast.executors.replay import changed

PLAN = solved("dpmpp_2m_sde")


def captures(made):
    return sum(backend.log.count("capture") for backend in made)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(5, 5)
        torch.nn.init.eye_(self.inner.weight)

    def forward(self, x, t, shift=None):
        return network(self.inner(x.to(self.inner.weight.dtype)).to(x.dtype), t, shift)


@pytest.mark.parametrize("kind", KINDS)
def test_every_replay_has_the_bits_of_sample(kind, made):
    plan, about, options = KINDS[kind]
    denoiser, options = denoiser_of(**about), dict(options)
    dtype = options.pop("dtype", torch.float32)
    sampler = df.GraphSampler(denoiser, plan, SHAPE, dtype=dtype, **options)
    x = 0.7 * ops.normal(SHAPE, seed=5, dtype=dtype) * plan.initial_scale
    for load in ({"x": x}, {"seed": 11, "ids": IDS, "x": x}, {"seed": 2**64 - 5, "x": x}):
        assert_same_bits(sampler(**load).x, df.sample(denoiser, plan, **options, **load).x)
        again = df.sample(denoiser, plan, executor="graph", **options, **load)
        assert_same_bits(again.x, sampler(**load).x)
    if dtype == torch.float32:
        load = {"seed": 3, "ids": IDS}
        assert_same_bits(sampler(**load).x, df.sample(denoiser, plan, SHAPE, **options, **load).x)
    assert captures(made) == 2  # the sampler's own, and one for df.sample


def test_a_number_that_stays_on_the_host_shows_in_a_replay():
    """The tape of these tests repeats the numbers of the capture, as a real graph does."""
    denoiser, plan = denoiser_of(), solved("ddim", eta=1.0)
    place = context.place_of("test", denoiser, SHAPE, None, None, 0, None, None)
    run = BoundRun(denoiser, plan, place, None, "counter", looks=False)
    backend = TapeBackend(torch.device("cpu"))

    def stages():
        for i in range(plan.stages):
            run.stage(i)

    with torch.inference_mode():
        run.start(None)
        graph = Graph(stages, backend)
        run.start(None)
        graph.replay()
        assert_same_bits(run.points[-1], df.sample(denoiser, plan, SHAPE).x)
        run.place, run.seed = place._replace(seed=3), 3
        run.start(None)
        graph.replay()
    assert not torch.equal(run.points[-1], df.sample(denoiser, plan, SHAPE, seed=3).x)


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "euler_ancestral"])
def test_a_network_in_channels_last(name, made):
    shape, plan = (2, 3, 4, 4), solved(name)
    denoiser = df.Denoiser(network, PLAN.schedule, "x0", memory_format=torch.channels_last)
    plain = df.Denoiser(network, PLAN.schedule, "x0")
    sampler = df.GraphSampler(denoiser, plan, shape)
    for seed in (0, 5):
        wanted = df.sample(plain, plan, shape, seed=seed).x
        assert torch.equal(sampler(seed=seed).x, wanted)
        for one in (denoiser, plain):
            assert torch.equal(df.sample(one, plan, shape, seed=seed, executor="graph").x, wanted)
    assert captures(made) == 3


@pytest.mark.parametrize("kind", ["guidance", "clamp and guidance", "half and guidance"])
def test_conditions_and_scale_of_a_call_are_of_that_call_alone(kind, made):
    plan, about, options = KINDS[kind]
    denoiser = denoiser_of(**about)
    sampler = df.GraphSampler(denoiser, plan, SHAPE, **options)
    wanted = df.sample(denoiser, plan, SHAPE, **options).x
    assert_same_bits(sampler().x, wanted)
    zeros = {"shift": torch.full((1, *SHAPE[1:]), 0.2)}
    for change in (
        {"guidance": 7.5},
        {"conditions": {"shift": SHIFT.flip(0)}},
        {"conditions": {"shift": SHIFT * 2}, "guidance": 1.5, "unconditional": zeros},
    ):
        other = df.sample(changed(denoiser, **change), plan, SHAPE, **options).x
        assert_same_bits(sampler(**change).x, other)
        assert not torch.equal(other, wanted)
        assert_same_bits(sampler().x, wanted)
    assert captures(made) == 1


def test_sample_captures_once_for_what_a_replay_can_change(made):
    net = Net()
    base = denoiser_of(**GUIDED)
    for scale in (2.5, 4.0):
        for shift in (SHIFT, SHIFT.flip(0)):
            denoiser = replace(base, network=net, conditions={"shift": shift}, guidance=scale)
            for seed in (0, 7):
                wanted = df.sample(denoiser, PLAN, SHAPE, seed=seed).x
                got = df.sample(denoiser, PLAN, SHAPE, seed=seed, executor="graph").x
                assert_same_bits(got, wanted)
    assert captures(made) == 1
    denoiser = replace(base, network=net)
    for other in (
        {"shape": (2, *SHAPE[1:]), "denoiser": replace(denoiser, conditions={"shift": SHIFT[:2]})},
        {"clamp": (-1.0, 1.0)},
        {"x": torch.zeros(SHAPE, dtype=torch.float64)},
        {"denoiser": replace(denoiser, guidance=1.0)},
        {"denoiser": replace(denoiser, predicts="v")},
        {"plan": solved("euler")},
        {"denoiser": replace(denoiser, dtype=torch.float32, time_dtype=torch.float64)},
    ):
        call = {"denoiser": denoiser, "plan": PLAN, "shape": SHAPE} | other
        before = captures(made)
        got = df.sample(**call, executor="graph").x
        assert_same_bits(got, df.sample(**call).x)
        assert captures(made) == before + 1, other


def test_graphs_go_with_network_plan_and_hook_and_with_the_bytes(made):
    def hook(x0, info):
        return 0.9 * x0

    net, plan = Net(), solved("euler")
    denoiser = df.Denoiser(net, PLAN.schedule, "x0")
    df.sample(denoiser, plan, SHAPE, executor="graph")
    df.sample(denoiser, plan, SHAPE, executor="graph", on_x0=hook)
    df.sample(denoiser, solved("euler"), SHAPE, executor="graph")  # nobody holds that plan
    gc.collect()
    assert len(df.graph_cache) == 2
    assert df.graph_cache.bytes > 0
    del hook
    gc.collect()
    assert len(df.graph_cache) == 1
    alive = weakref.ref(net)
    del net, denoiser
    gc.collect()
    assert alive() is None
    assert len(df.graph_cache) == 0 == df.graph_cache.bytes
    denoiser = df.Denoiser(Net(), PLAN.schedule, "x0")
    limit = df.graph_cache.limit
    try:
        for batch in (1, 2, 3):
            df.sample(denoiser, plan, (batch, 2, 5), executor="graph")
        assert len(df.graph_cache) == 3
        one = df.graph_cache.bytes
        df.sample(denoiser, plan, (1, 2, 5), executor="graph")  # the least recent is (2, ...) now
        df.graph_cache.limit = one - 1
        before = captures(made)
        df.sample(denoiser, plan, (3, 2, 5), executor="graph")
        assert len(df.graph_cache) == 2
        df.sample(denoiser, plan, (1, 2, 5), executor="graph")
        assert captures(made) == before
        df.graph_cache.limit = 0
        df.sample(denoiser, plan, (2, 2, 5), executor="graph")
        assert len(df.graph_cache) == 1  # the last one is kept
        assert captures(made) == before + 1
    finally:
        df.graph_cache.limit = limit


def test_a_network_that_changed_is_captured_anew(made):
    net = Net()
    denoiser = df.Denoiser(net, PLAN.schedule, "x0")
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)

    def both(count):
        wanted = df.sample(denoiser, PLAN, SHAPE).x
        assert_same_bits(df.sample(denoiser, PLAN, SHAPE, executor="graph").x, wanted)
        assert captures(made) == count
        return wanted

    both(2)
    with torch.no_grad():
        net.inner.weight.mul_(0.5)  # in place: a replay reads it
    assert_same_bits(sampler().x, both(2))
    net.inner.weight = torch.nn.Parameter(torch.eye(5) * 0.3)
    both(3)
    net.inner.weight.data = net.inner.weight.data.clone()
    both(4)
    net.inner = torch.nn.Linear(5, 5)
    both(5)
    net.train()
    both(5)  # a module is made in training mode
    net.eval()
    both(6)
    with pytest.raises(GraphError, match="parameters or modules are others .* a new GraphSampler"):
        sampler()


def item(x):
    return x * x.flatten()[0].item()


def branch(x):
    return x if x.sum() > 0 else -x


def by_mask(x):
    return x * x[x > 0].mean()


CANNOT = {
    "reads": (item, r"waits for the device .*\w+.py:\d+.*\.item\(\).*stream is capturing"),
    "branches": (branch, r"waits for the device .* `if` on a tensor"),
    "changing shapes": (by_mask, "waits for the device"),
}


class Sometimes:
    """A network that raises inside capture alone, as what CUDA refuses there does."""

    def __init__(self, error):
        self.error, self.warm = error, 0

    def __call__(self, x, t):
        self.warm += 1
        if self.warm > PLAN.nfe and torch.utils._python_dispatch._len_torch_dispatch_stack():
            raise self.error
        return network(x, t)


MOVES = RuntimeError(
    "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless ..."
)
CANNOT |= {
    "moves": (Sometimes(MOVES), "copies to the host"),
    "raises": (Sometimes(KeyError("cache")), "raised KeyError in capture at test_graph.py"),
    "memory": (Sometimes(torch.OutOfMemoryError("CUDA out of memory.")), "too little memory"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_captured_runs_stage_by_stage_and_says_why(name, made):
    call, why = CANNOT[name]
    whole = call if isinstance(call, Sometimes) else lambda x, t: call(network(x, t))
    denoiser = df.Denoiser(whole, PLAN.schedule, "x0")
    with pytest.raises(GraphError, match=why):
        df.GraphSampler(denoiser, PLAN, SHAPE)
    with pytest.warns(RuntimeWarning, match='executor="graph" runs stage by stage: .*' + why):
        got = df.sample(denoiser, PLAN, SHAPE, seed=3, executor="graph")
    assert_same_bits(got.x, df.sample(denoiser, PLAN, SHAPE, seed=3).x)
    tried = captures(made)
    with pytest.warns(RuntimeWarning, match=why):  # known by now
        df.sample(denoiser, PLAN, SHAPE, executor="graph")
    assert captures(made) == tried
    assert len(df.graph_cache) == 0
    fine = df.Denoiser(network, PLAN.schedule, "x0")  # and other graphs can be made
    wanted = df.sample(fine, PLAN, SHAPE).x
    assert_same_bits(df.sample(fine, PLAN, SHAPE, executor="graph").x, wanted)


def test_too_little_memory_for_the_graph_alone(monkeypatch):
    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", lambda device: TapeBackend(device, most=100))
    denoiser = df.Denoiser(network, PLAN.schedule, "x0")
    said = r"too little memory for a graph, which keeps its own \(CUDA out of memory"
    with pytest.raises(GraphError, match=said):
        df.GraphSampler(denoiser, PLAN, SHAPE)
    with pytest.warns(RuntimeWarning, match=said):
        df.sample(denoiser, PLAN, SHAPE, executor="graph")
    df.graph_cache.clear()


def test_too_little_memory_before_the_capture():
    class Full(TapeBackend):
        def aside(self, work):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(GraphError, match="too little memory"):
        Graph(lambda: None, Full(torch.device("cpu")))


def test_errors_of_the_network_itself_pass_through(made):
    def wrong(x, t):
        return x[:, :1]

    denoiser = df.Denoiser(wrong, PLAN.schedule, "x0")
    for make in (
        lambda: df.GraphSampler(denoiser, PLAN, SHAPE),
        lambda: df.sample(denoiser, PLAN, SHAPE, executor="graph"),
    ):
        with pytest.raises(ValueError, match=r"given x of shape \[3, 2, 5\] but returned"):
            make()
    spoiling = df.Denoiser(lambda x, t: x.mul_(0.5), PLAN.schedule, "x0")
    with pytest.raises(ValueError, match="wrote into its input"):
        df.GraphSampler(spoiling, PLAN, SHAPE)


def test_failed_samples_raise_after_the_replay(made):
    denoiser = denoiser_of(**GUIDED)
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    bad = SHIFT.clone()
    bad[1, 0, 0] = torch.inf
    said = r"GraphSampler: 1 of 3 samples failed: 1 \(id -3\): .* at stage 0 \(t = "
    with pytest.raises(df.NonFiniteError, match=said) as caught:
        sampler(conditions={"shift": bad}, ids=IDS)
    assert caught.value.result.fine.tolist() == [True, False, True]
    result = sampler(conditions={"shift": bad}, throw=False)
    assert result.x[1].isnan().all() and result.status.tolist() == [-1, 0, -1]
    assert sampler().fine.all()
    with pytest.raises(df.NonFiniteError, match=r"^sample: 1 of 3"):
        broken = changed(denoiser, conditions={"shift": bad})
        df.sample(broken, PLAN, SHAPE, executor="graph")


def test_without_a_check_nothing_is_raised_and_the_status_says_it(made):
    bad = SHIFT.clone()
    bad[2, 0, 0] = torch.nan
    denoiser = denoiser_of(shift=bad)
    for result in (
        df.sample(denoiser, PLAN, SHAPE, check=False),
        df.sample(denoiser, PLAN, SHAPE, check=False, executor="graph"),
        df.GraphSampler(denoiser, PLAN, SHAPE, check=False)(),
    ):
        assert result.status.tolist() == [-1, -1, 0]
        assert result.x[:2].isfinite().all()
    start = torch.full(SHAPE, torch.nan)  # not looked at, so not refused: the status has it
    assert df.sample(denoiser_of(), PLAN, x=start, check=False).status.tolist() == [0, 0, 0]


def test_donated_samples_are_the_graphs_own_tensor(made):
    denoiser = denoiser_of()
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, donate=True)
    first = sampler(seed=1).x
    kept = first.clone()
    second = sampler(seed=2).x
    assert first.data_ptr() == second.data_ptr()
    assert not torch.equal(kept, second)
    copies = df.GraphSampler(denoiser, PLAN, SHAPE)
    assert_same_bits(copies(seed=1).x, kept)
    one, other = copies(seed=1).x, copies(seed=1).x
    assert one.data_ptr() != other.data_ptr()
    assert not copies(seed=1).x.is_inference()


def test_what_is_loaded_is_checked(made):
    sampler = df.GraphSampler(denoiser_of(**GUIDED), PLAN, SHAPE)
    meta = torch.zeros(3, dtype=torch.int64, device="meta")
    for call, said in (
        ({"x": torch.zeros(2, 2, 5)}, r"x has shape \[2, 2, 5\] but the run was made for"),
        ({"x": torch.zeros(SHAPE, dtype=torch.float64)}, "x is torch.float64 but"),
        ({"x": torch.zeros(SHAPE, device="meta")}, "x is on meta but"),
        ({"ids": meta}, "ids are on meta but the graph is on cpu"),
        ({"ids": [1, 2]}, r"ids are \[2\] but there are 3 samples"),
        ({"guidance": 1.0}, "guidance is 1.0 but the run was made for 2.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"conditions": {"shift": SHIFT[:2]}}, "'shift' has 2 rows but there are 3"),
        ({"conditions": {"other": SHIFT}}, r"conditions are \['other', 'shift'\] but"),
    ):
        with pytest.raises(ValueError, match=said):
            sampler(**call)
        wanted = df.sample(denoiser_of(**GUIDED), PLAN, SHAPE).x
        assert_same_bits(sampler().x, wanted)


def test_what_a_graph_cannot_have_is_refused(made):
    denoiser = denoiser_of()
    for options in ({"callback": print}, {"progress": True}):
        with pytest.raises(ValueError, match="is given but a graph is replayed without Python"):
            df.sample(denoiser, PLAN, SHAPE, executor="graph", **options)
    with pytest.raises(ValueError, match="executor is 'fast' but must be one of sequential, graph"):
        df.sample(denoiser, PLAN, SHAPE, executor="fast")
    with pytest.raises(ValueError, match="noise is 'bridge' but nothing is rejected"):
        df.GraphSampler(denoiser, PLAN, SHAPE, noise="bridge")
    with pytest.raises(ValueError, match="dtype is torch.float16 but the state is float32"):
        df.GraphSampler(denoiser, PLAN, SHAPE, dtype=torch.float16)


def test_on_a_cpu_there_are_no_graphs():
    denoiser = denoiser_of()
    for make in (
        lambda: df.GraphSampler(denoiser, PLAN, SHAPE),
        lambda: df.sample(denoiser, PLAN, SHAPE, executor="graph"),
    ):
        with pytest.raises(ValueError, match="for CUDA devices but the run is on cpu: .* executor"):
            make()


def test_an_empty_batch_is_no_graph(made):
    out = df.sample(denoiser_of(), PLAN, (0, 2, 5), executor="graph")
    assert out.x.shape == (0, 2, 5)
    assert captures(made) == 0


def test_calls_on_other_streams_wait_for_one_another(made):
    sampler = df.GraphSampler(denoiser_of(), PLAN, SHAPE)
    assert made[-1].log == ["aside", "capture", "mark"]
    sampler()
    assert made[-1].log[3:] == ["follow", "mark"]


def test_the_callers_noise_is_drawn_for_its_own_run_alone(made):
    denoiser, plan = denoiser_of(), solved("euler_ancestral")

    def drawing():
        generator = torch.Generator().manual_seed(5)
        return lambda stage: torch.randn(SHAPE, generator=generator)

    wanted = df.sample(denoiser, plan, SHAPE, noise=drawing()).x
    assert_same_bits(df.GraphSampler(denoiser, plan, SHAPE, noise=drawing())().x, wanted)
    for _ in range(2):
        got = df.sample(denoiser, plan, SHAPE, noise=drawing(), executor="graph").x
        assert_same_bits(got, wanted)
    reads = df.Denoiser(lambda x, t: network(item(x), t), PLAN.schedule, "x0")
    wanted = df.sample(reads, plan, SHAPE, noise=drawing()).x
    with pytest.warns(RuntimeWarning, match="waits for the device"):
        got = df.sample(reads, plan, SHAPE, noise=drawing(), executor="graph").x
    assert_same_bits(got, wanted)
    assert captures(made) == 3


def test_few_stages_are_warmed_up_more_often(made):
    one = df.solvers.euler(PLAN.schedule, df.grids.uniform_logsnr(PLAN.schedule, 1))
    df.GraphSampler(denoiser_of(), one, SHAPE)
    assert made[-1].log.count("aside") == 3


def test_memory_is_told(made):
    sampler = df.GraphSampler(denoiser_of(), PLAN, SHAPE)
    assert sampler.memory.states == sampler.memory.fewest == 2
    assert sampler.memory.pool > 0
    assert "dpmpp_2m_sde" in repr(sampler) and "2 states" in repr(sampler)


def test_the_callers_conditions_are_not_watched(made):
    shift = SHIFT.clone()
    sampler = df.GraphSampler(denoiser_of(shift=shift), PLAN, SHAPE)
    wanted = df.sample(denoiser_of(shift=SHIFT), PLAN, SHAPE).x
    shift.zero_()
    sampler(conditions={"shift": SHIFT * 3})
    assert_same_bits(sampler().x, wanted)


def test_nothing_is_read_with_check_false(made):
    denoiser = replace(denoiser_of(), network=Still(SHAPE))
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE, check=False)
    ids = torch.tensor(IDS)
    with warnings.catch_warnings(), Watch() as watch:
        sampler(seed=3, ids=ids)
    assert not watch.reads
