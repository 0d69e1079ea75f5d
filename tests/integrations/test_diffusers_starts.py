"""Where runs of the drop-in schedulers may start, and what is said where they may not."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

from diffusers_cases import Case  # noqa: E402
from diffusers_loop import noisy  # noqa: E402


@pytest.mark.parametrize("kind", ["HeunDiscrete", "KDPM2Discrete"])
def test_a_run_cannot_start_inside_a_step(kind):
    scheduler = Case(kind, kind, {}).drop_in()
    scheduler.set_timesteps(6)
    x = noisy(scheduler, (2, 4, 6, 6))
    scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="timestep 3 is the second call of a step"):
        scheduler.step(x, scheduler.timesteps[3], x)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(4)
    assert scheduler.step(x, scheduler.timesteps[4], x).prev_sample.isfinite().all()


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "EulerDiscrete", "FlowMatchEulerDiscrete"])
def test_nothing_is_set(kind):
    scheduler = Case(kind, kind, {}).drop_in()
    x = torch.zeros(1, 4, 6, 6)
    with pytest.raises(ValueError, match="set_timesteps was not called before"):
        scheduler.step(x, 10, x)
    if kind == "EulerDiscrete":
        with pytest.raises(ValueError, match="set_timesteps was not called before"):
            scheduler.scale_model_input(x, 10)


def test_steps_before_and_after_the_timesteps():
    scheduler = Case("UniPC", "UniPCMultistep", {}).drop_in()
    x = noisy(Case("UniPC", "UniPCMultistep", {}).original(), (1, 4, 6, 6))
    with pytest.raises(ValueError, match="set_timesteps was not called before"):
        scheduler.step(x, 10, x)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(ValueError, match="step 2, but 2 were set"):
        scheduler.step(x, t, x)


def test_a_timestep_that_was_not_set():
    scheduler = Case("DDIM", "DDIM", {}).drop_in()
    scheduler.set_timesteps(4)
    x = noisy(scheduler, (1, 4, 6, 6))
    with pytest.raises(ValueError, match="timestep 3 but the timesteps set are 750, 500"):
        scheduler.step(x, 3, x)
    with pytest.raises(ValueError, match=r"model_output is \[1, 4, 5, 6\] but sample is"):
        scheduler.step(x[:, :, 1:], 750, x)
