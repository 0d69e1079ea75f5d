"""Pipelines that write a step's result into the very latents that they gave it."""

import copy
import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

from diffusers_cases import Case  # noqa: E402
from diffusers_loop import difference, model_input, network, noisy, step_options  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

FEW = [
    Case("Heun", "HeunDiscrete", {}),
    Case("PNDM", "PNDM", {"skip_prk_steps": True}),
    Case("UniPC", "UniPCMultistep", {}),
]
REST = [
    Case("KDPM2", "KDPM2Discrete", {}),
    Case("KDPM2Ancestral", "KDPM2AncestralDiscrete", {}),
    Case("Singlestep", "DPMSolverSinglestep", {}),
    Case("PNDM-prk", "PNDM", {}),
    Case("SA", "SASolver", {}),
    Case("FlowHeun", "FlowMatchHeunDiscrete", {}),
]
REMEMBERING = [*FEW, *REST]
FREE = [Case("Euler", "EulerDiscrete", {}), Case("DPM", "DPMSolverMultistep", {})]


def in_place(scheduler, case, view, copied=False):
    """The latents of a loop that writes them in place; of one frame of four where `view`."""
    scheduler.set_timesteps(6)
    whole = noisy(scheduler, (3, 2, 4, 8, 8) if view else (3, 2, 8, 8))
    options = step_options(case, scheduler)
    states = []
    for k, t in enumerate(scheduler.timesteps):
        x = whole[:, :, 2] if view else whole
        output = network(model_input(scheduler, x, t), t)
        if copied and k == 2:
            scheduler = copy.deepcopy(scheduler)
        result = scheduler.step(output, t, x, **options, return_dict=False)[0]
        x.copy_(result)
        states.append(x.clone())
    return scheduler, states


@pytest.mark.parametrize("how", ["whole", "frame", "copied", "inference mode"])
@pytest.mark.parametrize(
    "case",
    [*FEW, *(pytest.param(case, marks=pytest.mark.slow) for case in (*REST, *FREE))],
    ids=lambda case: case.id,
)
def test_latents_are_written_in_place(case, how):
    """Originals that keep the tensor read what was written to it, and so does the drop-in."""
    ours = DiffastScheduler.from_scheduler(case.original())
    options = {"view": how == "frame", "copied": how == "copied"}
    with torch.inference_mode(how == "inference mode"), torch.no_grad():
        _, want = in_place(case.original(), case, **options)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ours, got = in_place(ours, case, **options)
    assert max(map(difference, got, want)) <= 1e-4
    handed = [w for w in said if "written in place" in str(w.message)]
    assert len(handed) == (case in REMEMBERING)
    assert (ours._handed is not None) == (case in REMEMBERING)


@pytest.mark.slow
@pytest.mark.parametrize("case", REMEMBERING, ids=lambda case: case.id)
def test_latents_that_are_not_written_are_no_reason_to_hand_over(case):
    scheduler = DiffastScheduler.from_scheduler(case.original())
    scheduler.set_timesteps(6)
    x = noisy(scheduler, (3, 2, 8, 8))
    options = step_options(case, scheduler)
    for k, t in enumerate(scheduler.timesteps):
        if k in (1, 2):
            scheduler = copy.deepcopy(scheduler)
        output = network(model_input(scheduler, x, t), t)
        x = scheduler.step(output, t, x, **options, return_dict=False)[0]
        x *= 1.01  # the new latents, which no step has seen
    assert scheduler._handed is None and scheduler._run.ended


def test_strict_refuses_latents_written_in_place():
    case = REMEMBERING[0]
    ours = DiffastScheduler.from_scheduler(case.original(), strict=True)
    with pytest.raises(ValueError, match="the latents of the step before were written in place"):
        in_place(ours, case, view=False)
