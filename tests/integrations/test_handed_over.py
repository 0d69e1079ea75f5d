"""The warning that the original's own code runs: its name, its place and its words."""

import warnings

import pytest
import torch

import diffast as df
from diffast.integrations.handed_over import HandedOverWarning

diffusers = pytest.importorskip("diffusers")

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402


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
