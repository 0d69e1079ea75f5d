"""`executor="graph"` and `GraphSampler` where something changes between calls."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from op_cases import assert_same_bits
from replay_cases import (
    GUIDED,
    SHAPE,
    denoiser_of,
    network,
    solved,
)

import diffast as df

PLAN = solved("dpmpp_2m_sde")


def captures(made):
    return sum(backend.log.count("capture") for backend in made)


def held(x, t, held):
    return network(x, t) * held["scales"][0]


def test_what_a_condition_holds_may_be_replaced(made):
    """The dict is the object that it was, and the first graph reads the memory of what it held."""
    condition = {"scales": [torch.full((3, 1, 1), 0.5)]}
    denoiser = df.Denoiser(held, denoiser_of().schedule, "x0", conditions={"held": condition})
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    first = df.sample(denoiser, PLAN, SHAPE).x
    assert_same_bits(df.sample(denoiser, PLAN, SHAPE, executor="graph").x, first)
    before = weakref.ref(condition["scales"][0])
    condition["scales"][0] = torch.full((3, 1, 1), 0.9)
    gc.collect()
    assert before() is not None
    wanted = df.sample(denoiser, PLAN, SHAPE).x
    assert not torch.equal(wanted, first)
    assert_same_bits(df.sample(denoiser, PLAN, SHAPE, executor="graph").x, wanted)
    assert_same_bits(sampler().x, first)  # conditions are those of the capture
    assert_same_bits(sampler(guidance=1.0).x, first)
    assert captures(made) == 3


def test_a_single_number_as_a_tensor_is_written_anew(made):
    def scaled(x, t, scale):
        return network(x, t) * scale.reshape(-1, *[1] * (scale.dim() and x.dim() - 1))

    for scale in (torch.tensor(0.5), torch.tensor(0.7), torch.full((3,), 0.9)):
        denoiser = df.Denoiser(scaled, denoiser_of().schedule, "x0", conditions={"scale": scale})
        wanted = df.sample(denoiser, PLAN, SHAPE).x
        assert_same_bits(df.sample(denoiser, PLAN, SHAPE, executor="graph").x, wanted)
    assert captures(made) == 2  # another number is no reason, another shape is


def test_a_guidance_function_is_asked_in_every_call(made):
    scale = [2.0]
    denoiser = replace(denoiser_of(**GUIDED), guidance=lambda t: scale[0] + t)
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    for scale[0] in (2.0, 5.0, 2.0):
        wanted = df.sample(denoiser, PLAN, SHAPE).x
        assert_same_bits(df.sample(denoiser, PLAN, SHAPE, executor="graph").x, wanted)
        assert_same_bits(sampler().x, wanted)
    assert captures(made) == 2


def test_threads_with_and_without_a_scale_of_their_own(made, monkeypatch):
    """Whether a call has to put the usual scale back is known once it has the graph to itself."""
    denoiser = denoiser_of(**GUIDED)
    sampler = df.GraphSampler(denoiser, PLAN, SHAPE)
    usual = df.sample(denoiser, PLAN, SHAPE).x
    load, events = sampler._run.run.load, [threading.Event() for _ in range(5)]
    began, goes, turns = events[:3], events[3:], iter(range(3))

    def slow(**what):
        turn = next(turns)
        began[turn].set()
        if turn < 2:
            goes[turn].wait(10)
        load(**what)

    monkeypatch.setattr(sampler._run.run, "load", slow)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(sampler)
        began[0].wait(10)
        other = pool.submit(sampler, guidance=7.5)
        time.sleep(0.05)  # it waits for the first one
        goes[0].set()
        assert_same_bits(first.result().x, usual)
        began[1].wait(10)
        last = pool.submit(sampler)
        time.sleep(0.05)
        goes[1].set()
        assert not torch.equal(other.result().x, usual)
        assert_same_bits(last.result().x, usual)


def test_a_schedule_that_changed_is_asked_again(made):
    class Own:
        most, t_min, t_start, t_end, domain = 20.0, 1e-3, 1.0, 0.0, (0.0, 1.0)

        def __getattr__(self, name):
            return getattr(df.schedules.vp_linear(0.1, self.most), name)

    schedule = Own()
    denoiser = df.Denoiser(network, schedule, "epsilon")
    plan = df.solvers.get("dpmpp_2m")(schedule, df.grids.uniform_logsnr(schedule, 4))
    for schedule.most in (20.0, 12.0):
        wanted = df.sample(denoiser, plan, SHAPE).x
        assert_same_bits(df.sample(denoiser, plan, SHAPE, executor="graph").x, wanted)
    assert captures(made) == 1


class Hook:
    """A hook that is a bound method, as those of a pipeline are."""

    def __init__(self, factor):
        self.factor = factor

    def scaled(self, x0, info):
        return self.factor * x0


def test_a_method_is_one_hook_as_long_as_its_object_lives(made):
    first, second, denoiser = Hook(0.9), Hook(0.5), denoiser_of()
    for hook in (first, second, first, second):
        got = df.sample(denoiser, PLAN, SHAPE, executor="graph", on_x0=hook.scaled).x
        assert_same_bits(got, df.sample(denoiser, PLAN, SHAPE, on_x0=hook.scaled).x)
    assert captures(made) == 2 == len(df.graph_cache)
    del hook, second
    gc.collect()
    assert len(df.graph_cache) == 1


def test_wider_noise_than_the_state_is_refused(made):
    """A stage alone would weigh it in float64, and a graph's tensor is the state's."""
    for make in (
        lambda noise: df.sample(denoiser_of(), PLAN, SHAPE, noise=noise, executor="graph"),
        lambda noise: df.GraphSampler(denoiser_of(), PLAN, SHAPE, noise=noise)(),
    ):
        with pytest.raises(ValueError, match="noise returned is torch.float64, but a graph holds"):
            make(lambda stage: torch.ones(SHAPE, dtype=torch.float64))
