"""Drop-ins of the schedulers that fewer people use: one fast run of each, and their own ways.

`test_diffusers_step.py` runs all its tests on them too, among the slow ones.
"""

import copy
import logging
import pickle
import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning:torchsde")  # a tree's ends

from diffusers_cases import SD, Case  # noqa: E402
from diffusers_loop import (  # noqa: E402
    difference,
    model_input,
    network,
    noisy,
    run,
    step_options,
    walk,
)
from diffusers_more_cases import ONE_OF_EACH_MORE  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402
from diffast.integrations.handed_over import HandedOverWarning  # noqa: E402

each_kind = pytest.mark.parametrize("case", ONE_OF_EACH_MORE, ids=lambda case: case.kind)


def loop(scheduler, case, steps=5, between=None):
    """The latents of a run, with something done to the scheduler before its third step."""
    scheduler.set_timesteps(steps, **case.timing)
    options, x, states = step_options(case, scheduler), noisy(scheduler, case.shape), []
    for i, t in enumerate(scheduler.timesteps):
        if i == 2 and between is not None:
            scheduler = between(scheduler) or scheduler
        out = network(model_input(scheduler, x, t), t)
        x = scheduler.step(out, t, x, **options, return_dict=False)[0]
        states.append(x)
    return states


def assert_same(got, want, bound=1e-5):
    assert len(got) == len(want)
    gaps = [difference(g, w) for g, w in zip(got, want, strict=True)]
    assert max(gaps) <= bound, gaps


@each_kind
def test_fused_and_the_same(case):
    ours = case.drop_in()
    with warnings.catch_warnings():
        warnings.simplefilter("error", HandedOverWarning)
        got = loop(ours, case)
    assert_same(got, loop(case.original(), case))


@each_kind
def test_the_original_goes_on_from_the_middle(case):
    def read_its_memory(scheduler):
        if isinstance(scheduler, DiffastScheduler):
            scheduler._hand_over("a test wants it")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HandedOverWarning)
        got = loop(case.drop_in(), case, between=read_its_memory)
    assert ["a test wants it" in str(w.message) for w in caught] == [True]
    assert_same(got, loop(case.original(), case))


@each_kind
def test_a_pickled_copy_goes_on(case):
    def pickled(scheduler):
        return pickle.loads(pickle.dumps(scheduler))  # ours alone, made here

    want = loop(case.drop_in(), case)
    got = loop(case.drop_in(), case, between=pickled)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH_MORE if c.kind in ("DPMSolverSDE",)])
def test_a_path_without_a_seed_draws_one_as_diffusers_does(case):
    unseeded = Case("", case.kind, {})
    results = []
    for scheduler in (unseeded.original(), unseeded.drop_in()):
        torch.manual_seed(7)
        results.append([*run(scheduler, unseeded, 3), torch.rand(1)])
    assert_same(results[1], results[0])
    again = unseeded.drop_in()
    torch.manual_seed(7)
    first = loop(again, unseeded, 3)
    torch.manual_seed(7)
    copied = loop(again, unseeded, 3, between=copy.deepcopy)
    assert all(torch.equal(g, w) for g, w in zip(copied, first, strict=True))


def test_a_path_of_the_package_does_not_depend_on_the_batch():
    case = Case("", "CosineDPMSolverMultistep")
    scheduler = case.drop_in("counter")
    scheduler.set_timesteps(5)
    x = noisy(scheduler, case.shape)
    both = walk(scheduler, case, x, seed=[4, 9])
    scheduler.set_timesteps(5)
    alone = walk(scheduler, case, x[1:], seed=[9])
    assert_same(alone, [state[1:] for state in both], 1e-6)
    assert difference(both[-1], run(case.original(), case, 5, seed=[4, 9])[-1]) > 0.1


def test_levels_written_by_hand():
    case = Case("", "IPNDM")
    original, ours = case.original(), case.drop_in()
    results = []
    for scheduler in (original, ours):

        def write(scheduler):
            scheduler.betas[3:] *= 0.6  # no version of any sigma tells
            scheduler.alphas[3:] = (1 - scheduler.betas[3:] ** 2).sqrt()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HandedOverWarning)
            results.append(loop(scheduler, case, 6, between=write))
    assert_same(results[1], results[0])
    assert difference(results[0][-1], loop(case.original(), case, 6)[-1]) > 1e-2


@pytest.mark.parametrize("kind", ["KDPM2AncestralDiscrete", "DPMSolverSDE"])
@pytest.mark.parametrize("entry", [3, 4])
def test_one_of_two_equal_levels_is_written(kind, entry):
    case = Case("", kind, {**SD, "noise_sampler_seed": 1} if "SDE" in kind else SD)
    results = []
    for scheduler in (case.original(), case.drop_in()):
        scheduler.set_timesteps(5)
        scheduler.sigmas[entry] *= 0.98
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HandedOverWarning)
            results.append(walk(scheduler, case, noisy(scheduler, case.shape)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize(
    ("case", "named"),
    [
        (Case("", "FlowMatchLCM", {"invert_sigmas": True}), "invert_sigmas"),
        (Case("", "KDPM2AncestralDiscrete", {**SD, "prediction_type": "sample"}), None),
        (Case("", "FlowMatchLCM", {"shift": 3.0}), None),
    ],
    ids=["inverted", "x0", "fused"],
)
def test_what_is_handed_over(case, named):
    ours = case.drop_in()
    if named is None:
        run(ours, case, 4)
        return
    with pytest.warns(HandedOverWarning, match=named):
        got = run(ours, case, 4)
    assert_same(got, run(case.original(), case, 4))
    with pytest.raises(ValueError, match="strict"):
        run(type(ours)(**case.config, strict=True), case, 4)


def test_latents_that_grow():
    results = []
    for scheduler in (Case("", "FlowMatchLCM").original(), Case("", "FlowMatchLCM").drop_in()):
        scheduler.set_scale_factors([0.5, 0.75, 1.0], "nearest")
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 4, 8, 8, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HandedOverWarning)
            scheduler.set_timesteps(4)
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("sigmas", [[1.0, 0.7, 0.4, 0.0], [1.0, 0.6, 0.8, 0.3]], ids=["to 0", "up"])
def test_levels_of_ltx_that_are_given(sigmas):
    # one time step more than there are steps: the last one leaves the sample as it is
    case = Case("", "LTXEulerAncestralRF")
    results = []
    for scheduler in (case.original(), case.drop_in()):
        scheduler.set_timesteps(sigmas=sigmas)
        assert len(scheduler.timesteps) == 4
        x = noisy(scheduler, case.shape)
        states = walk(scheduler, case, x)
        assert torch.equal(states[-1], states[-2])
        results.append(states)
    assert_same(results[1], results[0])


def test_ltx_s_levels_are_made_without_a_log(monkeypatch):
    said = []
    logger = logging.getLogger("diffusers.configuration_utils")
    monkeypatch.setattr(logger, "handle", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logger, "disabled", False)
    scheduler = Case("", "LTXEulerAncestralRF").drop_in()
    said.clear()
    scheduler.set_timesteps(4)
    assert not said
    assert not logger.disabled


@pytest.mark.filterwarnings("ignore::diffast.HandedOverWarning")
def test_a_flow_map_to_a_time_of_the_caller_s():
    case = Case("", "FlowMapEulerDiscrete", {"shift": 2.0})
    results = []
    for scheduler in (case.original(), case.drop_in()):
        scheduler.set_timesteps(5)
        x, states = noisy(scheduler, case.shape), []
        for i, t in enumerate(scheduler.timesteps):
            r = None if i % 2 else 0.3 * t
            x = scheduler.step(network(x, t), t, x, r_timestep=r, return_dict=False)[0]
            states.append(x)
        results.append(states)
    assert_same(results[1], results[0])


@pytest.mark.parametrize("timesteps", [[22, 0], [39, 20, 10]])
def test_chosen_times_of_a_consistency_model(timesteps):
    case = Case("", "CMStochasticIterative")
    results = []
    for scheduler in (case.original(), case.drop_in()):
        scheduler.set_timesteps(timesteps=timesteps)
        results.append(walk(scheduler, case, noisy(scheduler, case.shape)))
    assert_same(results[1], results[0])


def test_a_consistency_model_in_one_step_draws_nothing():
    case = Case("", "CMStochasticIterative")
    generators = []
    for scheduler in (case.original(), case.drop_in()):
        scheduler.set_timesteps(1)
        x, t = noisy(scheduler, case.shape), scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        generator = torch.Generator().manual_seed(0)
        y = scheduler.step(network(x, t), t, x, generator=generator).prev_sample
        generators.append((y, torch.rand(1, generator=generator)))
    assert_same(generators[1], generators[0])
