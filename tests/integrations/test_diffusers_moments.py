"""Drop-ins at moments and in settings that a plain loop does not have."""

import inspect
import warnings

import diffusers
import pytest
import torch

from diffast.integrations.diffusers import DiffastScheduler

SHAPE = (2, 3, 4, 4)


def pair(name, **options):
    """Returns (the original, its drop-in)."""
    kind = getattr(diffusers, name)
    return kind(**options), DiffastScheduler.from_scheduler(kind(**options))


def followed(schedulers, steps, count, between=lambda scheduler, k: None, mode=torch.no_grad):
    """Yields (step, result of the original, of the drop-in) for the same samples and outputs."""
    drawn = torch.Generator().manual_seed(0)
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=drawn)
    noise = [torch.Generator().manual_seed(1) for _ in schedulers]
    for k in range(count):
        output = torch.randn(SHAPE, generator=drawn)
        results = []
        for scheduler, generator in zip(schedulers, noise, strict=True):
            between(scheduler, k)
            takes = "generator" in inspect.signature(scheduler.step).parameters
            more = {"generator": generator} if takes else {}
            with mode() if k == 0 else torch.no_grad():
                t = scheduler.timesteps[k]
                if hasattr(scheduler, "scale_model_input"):
                    scheduler.scale_model_input(x, t)
                results.append(scheduler.step(output, t, x.clone(), **more).prev_sample.clone())
        yield k, *results
        x = results[0]


def assert_same(wanted, found):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "IPNDMScheduler"])
def test_a_begin_index_that_is_set_in_the_middle_of_a_run_changes_nothing(name):
    def between(scheduler, k):
        if k == 3:
            scheduler.set_begin_index(2)

    schedulers = pair(name)
    for _, wanted, found in followed(schedulers, 6, 6, between):
        assert_same(wanted, found)
    assert schedulers[1]._handed is None


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_steps_in_and_out_of_inference_mode_share_one_run(name):
    schedulers = pair(name)
    for _, wanted, found in followed(schedulers, 6, 6, mode=torch.inference_mode):
        assert_same(wanted, found)
    assert schedulers[1]._handed is None


FLOW = {"prediction_type": "v_prediction", "use_flow_sigmas": True}
ODD = [
    ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverSinglestepScheduler", FLOW),
    ("DPMSolverMultistepInverseScheduler", FLOW),
    ("DEISMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", FLOW),
    ("SASolverScheduler", FLOW),
    ("DPMSolverMultistepInverseScheduler", {"prediction_type": "flow_prediction"}),
]


@pytest.mark.parametrize(("name", "options"), ODD)
@pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning")
def test_a_prediction_that_the_levels_do_not_have_is_the_originals(name, options):
    schedulers = pair(name, **options)
    for _, wanted, found in followed(schedulers, 6, 5):
        assert_same(wanted, found)
    assert schedulers[1]._handed is not None


def test_ddim_takes_noise_beside_a_generator_where_it_draws_none():
    original, ours = pair("DDIMScheduler")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(5)
        more = {"generator": torch.Generator(), "variance_noise": torch.ones(SHAPE)}
        results.append(scheduler.step(0.5 * x, scheduler.timesteps[0], x, **more).prev_sample)
        with pytest.raises(ValueError, match="variance_noise"):
            scheduler.step(0.5 * x, scheduler.timesteps[0], x, eta=0.5, **more)
    assert_same(*results)


def test_a_step_past_the_end_of_pndm_is_the_original_s():
    theirs, ours = pair("PNDMScheduler", skip_prk_steps=True)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(3)
        x = torch.linspace(-1, 1, torch.Size(SHAPE).numel()).view(SHAPE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for t in (*scheduler.timesteps, scheduler.timesteps[-1]):
                x = scheduler.step(0.5 * x, t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torchsde's, of roundings
def test_the_memory_of_a_stochastic_midpoint_can_be_read_at_its_end():
    pytest.importorskip("torchsde")
    _, ours = pair("DPMSolverSDEScheduler", noise_sampler_seed=3)
    ours.set_timesteps(3)
    x = torch.zeros(SHAPE)
    for t in ours.timesteps:
        x = ours.step(ours.scale_model_input(x, t), t, x).prev_sample
    assert ours.sample is None
