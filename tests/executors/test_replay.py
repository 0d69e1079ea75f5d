"""A replayable run: the bits of `df.sample`, whatever is loaded; device work alone."""

from dataclasses import replace

import pytest
import torch
from device_double import Device, host
from op_cases import assert_same_bits
from replay_cases import (
    IDS,
    KINDS,
    SHAPE,
    SHIFT,
    VP,
    Still,
    Watch,
    denoiser_of,
    network,
    solved,
)

import diffast as df
from diffast import ops
from diffast.executors import context
from diffast.executors.bound_run import BoundRun
from diffast.executors.replay import ReplayableRun, changed
from diffast.lowering.liveness import fewest_tensors


def place_of(denoiser, dtype=torch.float32, clamp=None, seed=0, ids=None, shape=SHAPE):
    x = torch.empty(shape, dtype=dtype)
    return context.place_of("test", denoiser, None, x, None, seed, ids, clamp, looks=False)


def prepared(kind):
    """Returns (the run, a function that makes the same run by `df.sample`)."""
    plan, about, options = KINDS[kind]
    denoiser, options = denoiser_of(**about), dict(options)
    dtype, clamp = options.pop("dtype", torch.float32), options.pop("clamp", None)
    run = ReplayableRun(denoiser, plan, place_of(denoiser, dtype, clamp), **options)

    def sample(denoiser=denoiser, **more):
        if dtype != torch.float32 and "x" not in more:
            scale = plan.initial_scale
            place = {"seed": more.get("seed", 0), "ids": torch.tensor(more["ids"])}
            more["x"] = ops.normal(SHAPE, scale=scale, dtype=dtype, **place)
        return df.sample(denoiser, plan, SHAPE, clamp=clamp, **options, **more)

    return run, denoiser, sample


@pytest.mark.parametrize("kind", KINDS)
def test_replays_have_the_bits_of_sample(kind):
    run, _, sample = prepared(kind)
    x = 0.7 * ops.normal(SHAPE, seed=5, dtype=run.bound.dtype) * run.bound.origin.scale
    loads = [
        {"seed": 0, "ids": [0, 1, 2]},
        {"seed": 11, "ids": IDS},
        {"seed": 2**64 - 5, "ids": [5, 4, 3], "x": x},
        {"seed": 11, "ids": IDS},
    ]
    for load in loads:
        run.load(**{**load, "ids": torch.tensor(load["ids"])})
        run.run()
        assert_same_bits(run.samples().x, sample(**load).x)
        assert run.samples().nfe.tolist() == sample(**load).nfe.tolist()


@pytest.mark.parametrize("kind", ["guidance", "clamp and guidance", "half and guidance"])
def test_a_new_scale_and_new_conditions_are_loaded(kind):
    run, denoiser, sample = prepared(kind)
    for scale, shift in ((2.5, SHIFT), (7.5, SHIFT), (7.5, SHIFT * 0.1), (2.5, SHIFT.flip(0))):
        new = changed(denoiser, conditions={"shift": shift}, guidance=scale)
        run.load(new, seed=3, ids=torch.tensor(IDS))
        run.run()
        assert_same_bits(run.samples().x, sample(new, seed=3, ids=IDS).x)
    unconditional = {"shift": torch.full((1, *SHAPE[1:]), 0.3)}
    new = changed(denoiser, unconditional=unconditional)
    run.load(new, seed=3, ids=torch.tensor(IDS))
    run.run()
    assert_same_bits(run.samples().x, sample(new, seed=3, ids=IDS).x)


def test_conditions_are_copied():
    shift = SHIFT.clone()
    denoiser = denoiser_of(shift=shift)
    plan = KINDS["conditions"][0]
    run = ReplayableRun(denoiser, plan, place_of(denoiser))
    shift.zero_()  # the caller's tensor is the caller's
    run.load()
    run.run()
    assert_same_bits(run.samples().x, df.sample(denoiser_of(shift=SHIFT), plan, SHAPE).x)
    run.load(denoiser)  # loaded again: what the tensor holds now
    run.run()
    assert_same_bits(run.samples().x, df.sample(denoiser, plan, SHAPE).x)


@pytest.mark.parametrize("kind", [k for k in KINDS if "hook" not in k and k != "gradients"])
def test_a_run_is_one_launch_a_stage_and_reads_and_allocates_nothing(kind):
    plan, about, options = KINDS[kind]
    denoiser, options = denoiser_of(**about), dict(options)
    dtype, clamp = options.pop("dtype", torch.float32), options.pop("clamp", None)
    still = Still((4 * SHAPE[0], *SHAPE[1:]), about.get("dtype") or dtype)
    denoiser = replace(denoiser, network=still)
    run = ReplayableRun(denoiser, plan, place_of(denoiser, dtype, clamp), **options)
    run.load(seed=1)
    run.run()  # a path makes its tables once
    with Watch() as watch:
        run.run()
    calls = sum(len(calls) for calls in run.bound.calls)
    drawn = sum(call.draws for calls in run.bound.calls for call in calls)
    paths = drawn if kind == "path" else 0
    assert not watch.reads
    assert watch.launches.count("diffast.combine.table_out") == calls
    assert watch.launches.count("diffast.brownian.out") == paths
    assert watch.launches[0].startswith("aten.fill_")
    assert len(watch.launches) == 1 + calls + paths
    if kind != "two inputs, clamp":  # each estimate is a call of its own
        assert calls == len(run.bound.stages)


def test_loading_takes_few_launches():
    run, _, _ = prepared("noise")
    ids = torch.tensor(IDS)
    with Watch() as watch:
        run.load(seed=5, ids=ids)
    assert not watch.reads
    copies = ["aten.copy_.default", "aten.fill_.Scalar", "aten.copy_.default"]  # ids; seed, ids
    assert watch.launches == [*copies, "diffast.normal.out"]


@pytest.mark.parametrize("kind", ["noise", "guidance", "path", "clamp", "hook", "two inputs"])
def test_on_a_device_a_replay_copies_and_waits_for_nothing(kind):
    plan, about, options = KINDS[kind]
    options = dict(options)
    clamp = options.pop("clamp", None)
    wanted = df.sample(denoiser_of(**about), plan, SHAPE, seed=3, ids=IDS, clamp=clamp, **options)
    with Device(strict=kind != "path") as device:  # a path sends its tables when it is made
        denoiser = denoiser_of(**about)
        moved = {k: v.to(device.place, non_blocking=True) for k, v in denoiser.conditions.items()}
        blank = {
            k: v.to(device.place, non_blocking=True)
            for k, v in (denoiser.unconditional or {}).items()
        }
        denoiser = replace(denoiser, network=device.network(network), conditions=moved)
        denoiser = replace(denoiser, unconditional=blank) if blank else denoiser
        ids = torch.tensor(IDS).to(device.place, non_blocking=True)
        place = context.place_of(
            "test", denoiser, SHAPE, None, device.place, 0, ids, clamp, looks=False
        )
        run = ReplayableRun(denoiser, plan, place, **options)
        run.load(seed=0)
        run.run()
        device.reset()
        run.load(seed=3, ids=ids)
        assert device.uploads == 0
        assert device.launches <= 8, device.kernels
        device.reset()
        run.run()
        hooks = 2 * len(run.bound.stages) if kind == "hook" else 0
        hooks *= 2  # the estimate, the hook's two kernels, its copy
        assert device.launches <= 2 * len(run.bound.stages) + 1 + hooks, device.kernels
        samples = run.samples()
        assert device.uploads == device.downloads == device.waits == 0
        if len(moved):
            device.reset()
            run.load(changed(denoiser, guidance=4.0), seed=3, ids=ids)
            assert device.uploads == 1  # all weights
            assert device.waits == 0
        assert_same_bits(host(samples.x), wanted.x)


def test_a_compiled_network_composes():
    compiled = torch.compile(network, backend="aot_eager")
    denoiser = df.Denoiser(compiled, VP, "x0")
    plan = KINDS["noise"][0]
    run = ReplayableRun(denoiser, plan, place_of(denoiser))
    run.load(seed=4)
    run.run()
    assert_same_bits(run.samples().x, df.sample(denoiser_of(), plan, SHAPE, seed=4).x)


def test_failed_samples_are_told_after_the_run():
    plan = solved("euler")
    denoiser = denoiser_of(shift=SHIFT)
    run = ReplayableRun(denoiser, plan, place_of(denoiser))
    bad = SHIFT.clone()
    bad[1, 0, 0] = torch.nan
    run.load(denoiser_of(shift=bad), ids=torch.tensor(IDS))
    run.run()
    samples = run.samples()
    assert samples.status.tolist() == [-1, 0, -1]
    run.load(denoiser)  # the next run is fine
    run.run()
    assert run.samples().status.tolist() == [-1, -1, -1]


def test_samples_are_copies_unless_donated():
    run, _, _ = prepared("noise")
    run.load(seed=1)
    run.run()
    kept, live = run.samples(), run.samples(donate=True)
    before = kept.x.clone()
    run.load(seed=2)
    run.run()
    assert_same_bits(kept.x, before)
    assert not torch.equal(live.x, before)
    assert live.x.data_ptr() == run.samples(donate=True).x.data_ptr()
    assert not kept.x.is_inference()


def solver_plans():
    for name in df.solvers.SOLVERS:
        # the intervals of restart are the caller's; the last three take gradients
        if name not in ("restart", "ltsp", "stsp", "additive_multistep"):
            yield name, solved(name)


def test_every_solver_holds_no_more_tensors_than_are_alive_at_once():
    denoiser = denoiser_of()
    found = {}
    for name, plan in solver_plans():
        run = BoundRun(denoiser, plan, place_of(denoiser), None, "counter")
        found[name] = fewest_tensors(run.program)
        assert sum(t.numel() for t in run.buffers) == found[name] * SHIFT.numel(), name
    assert (found["euler"], found["dpmpp_2m"], found["heun"], found["rk4"]) == (1, 2, 3, 5)


def test_memory_is_told_in_states():
    run, _, _ = prepared("guidance")
    memory = run.memory
    assert memory.fewest == 3
    assert memory.states == 5.0  # the other cfg branch's input, and a sample of its own
    assert memory.bytes >= 5 * SHIFT.numel() * 4
    assert prepared("half network")[0].memory.states == 2.5
    assert prepared("multistep")[0].memory.states == 3.0


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (
            {"x": torch.zeros(2, 2, 5)},
            r"x has shape \[2, 2, 5\] but the run was made for \[3, 2, 5\]",
        ),
        ({"x": torch.zeros(SHAPE, dtype=torch.float64)}, "x is torch.float64 but .*float32"),
        ({"x": torch.zeros(SHAPE, device="meta")}, "x is on meta but the run was made for cpu"),
        ({"ids": torch.zeros(3, dtype=torch.int64, device="meta")}, "ids are on meta but the run"),
        ({"ids": torch.zeros(2, dtype=torch.int64)}, r"ids are \[2\] of torch.int64"),
        ({"denoiser": denoiser_of(1.0, SHIFT)}, "guidance is 1.0 but the run was made for 2.5"),
        (
            {"denoiser": denoiser_of(2.5, SHIFT[..., :1])},
            r"'shift' is \[6, 2, 1\] of torch.float32",
        ),
        ({"denoiser": denoiser_of(2.5, SHIFT.double())}, "'shift' is .* of torch.float64"),
        ({"seed": 2**64}, "64 bits"),
    ],
)
def test_what_a_run_was_not_made_for_is_refused(load, said):
    run, _, sample = prepared("guidance")
    if "denoiser" in load and "1" in str(load["denoiser"].conditions["shift"].shape[-1]):
        other = {"shift": torch.zeros(1, 2, 1)}
        load = {"denoiser": replace(load["denoiser"], unconditional=other)}
    with pytest.raises(ValueError, match=said):
        run.load(**load)
    run.load(seed=8)  # and the run goes on
    run.run()
    assert_same_bits(run.samples().x, sample(seed=8, ids=[0, 1, 2]).x)


def test_conditions_that_are_no_tensors_cannot_change():
    def sized(x, t, size):
        return network(x, t) * size

    denoiser = df.Denoiser(sized, VP, "x0", conditions={"size": 2})
    run = ReplayableRun(denoiser, solved("euler"), place_of(denoiser))
    run.load(changed(denoiser, conditions={"size": 2}))
    with pytest.raises(ValueError, match="'size' is 3 but the run was made for 2: only tensors"):
        run.load(changed(denoiser, conditions={"size": 3}))
    with pytest.raises(ValueError, match=r"conditions are \['size', 'wide'\] but .* \['size'\]"):
        run.load(changed(denoiser, conditions={"wide": 3}))


def test_an_empty_batch():
    denoiser = denoiser_of()
    run = ReplayableRun(denoiser, solved("euler"), place_of(denoiser, shape=(0, 4)))
    run.load()
    run.run()
    assert run.samples().x.shape == (0, 4)
