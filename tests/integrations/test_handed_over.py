"""The warning that the original's own code runs: its name, its place and its words."""

import warnings

import pytest
import torch

import diffast as df
from diffast.integrations.handed_over import HandedOverWarning

diffusers = pytest.importorskip("diffusers")

from diffast.integrations.diffusers import DiffastScheduler, accelerate  # noqa: E402


def started():
    """A drop-in of a multistep method after its first step, and the latents."""
    scheduler = DiffastScheduler.from_scheduler(diffusers.DPMSolverMultistepScheduler())
    scheduler.set_timesteps(5)
    x = torch.ones(1, 4)
    return scheduler, scheduler.step(x, scheduler.timesteps[0], x).prev_sample


def reads(scheduler, x):
    scheduler.model_outputs  # noqa: B018


def writes(scheduler, x):
    scheduler.config.solver_order = 1
    scheduler.step(x, scheduler.timesteps[1], x)


def registers(scheduler, x):
    scheduler.register_to_config(solver_order=1)
    scheduler.step(x, scheduler.timesteps[1], x)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (reads, "its model_outputs was read between two steps"),
        (writes, "its config.solver_order changed between two steps"),
        (registers, "its config.solver_order changed between two steps"),
    ],
)
def test_it_names_the_caller_s_line_and_what_was_written(act, words):
    scheduler, x = started()
    with pytest.warns(df.HandedOverWarning, match=words) as said:
        act(scheduler, x)
    assert [each.filename for each in said] == [__file__]


def test_it_is_filtered_by_its_public_name():
    assert df.HandedOverWarning is HandedOverWarning
    scheduler, x = started()
    with warnings.catch_warnings():
        warnings.simplefilter("error", df.HandedOverWarning)
        with pytest.raises(df.HandedOverWarning):
            writes(scheduler, x)


ALONE = [
    ("FlowMatchEulerDiscrete", "per_token_timesteps", torch.full((1, 4), 0.9)),
    ("EDMEuler", "pred_original_sample", torch.ones(1, 4)),
    ("FlowMapEulerDiscrete", "r_timestep", 100.0),
]


@pytest.mark.parametrize(("name", "option", "value"), ALONE, ids=[case[0] for case in ALONE])
def test_an_argument_that_no_plan_takes_is_said_or_refused(name, option, value):
    kind = getattr(diffusers, f"{name}Scheduler", None)
    if kind is None:
        pytest.skip("this diffusers has no such scheduler")
    for strict in (False, True):
        scheduler = DiffastScheduler.from_scheduler(kind(), strict=strict)
        scheduler.set_timesteps(5)
        t, x = scheduler.timesteps[0], torch.ones(1, 4)
        if strict:
            with pytest.raises(ValueError, match=f"{option} is given, and strict=True"):
                scheduler.step(x, t, x, **{option: value})
        else:
            with pytest.warns(df.HandedOverWarning, match=f"{option} is given.*makes this step"):
                scheduler.step(x, t, x, **{option: value})


def test_strict_refuses_a_step_of_the_original_s():
    scheduler = DiffastScheduler.from_scheduler(diffusers.DDIMScheduler(), strict=True)
    scheduler.set_timesteps(5)
    x = torch.ones(1, 4)
    with pytest.raises(ValueError, match="timestep 3 is not the one that was set, and strict"):
        scheduler.step(x, torch.tensor(3), x)


def test_latents_of_another_shape_in_a_plan_are_refused():
    pipe = type("Pipe", (), {})()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    accelerate(pipe, calls=6, quiet=True)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(scheduler.plan.nfe)
    x = torch.ones(1, 4)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    with pytest.raises(ValueError, match=r"the latents are \[2, 4\] after others of another shape"):
        scheduler.step(torch.cat([x, x]), scheduler.timesteps[1], torch.cat([x, x]))
