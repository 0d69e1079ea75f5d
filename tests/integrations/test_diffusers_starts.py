"""Where runs of the drop-in schedulers may start, and what is said where they may not."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

from diffusers_cases import Case  # noqa: E402
from diffusers_loop import noisy  # noqa: E402

from diffast.integrations.handed_over import HandedOverWarning  # noqa: E402


@pytest.mark.parametrize("kind", ["HeunDiscrete", "KDPM2Discrete"])
def test_a_run_that_starts_inside_a_step_is_the_original_s(kind):
    case = Case(kind, kind, {})
    original, ours = case.original(), case.drop_in()
    for scheduler in (original, ours):
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(3)
    x = noisy(original, (2, 4, 6, 6))
    wanted = original.step(x, original.timesteps[3], x).prev_sample
    with pytest.warns(HandedOverWarning, match="starts at 3, the second call of a step"):
        found = ours.step(x, ours.timesteps[3], x).prev_sample
    assert torch.equal(found, wanted)
    ours.set_timesteps(6)
    ours.set_begin_index(4)
    assert ours.step(x, ours.timesteps[4], x).prev_sample.isfinite().all()


@pytest.mark.parametrize("kind", ["DDIM", "UniPCMultistep"])
@pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning")
def test_nothing_is_set_where_the_original_needs_it(kind):
    x = torch.zeros(1, 4, 6, 6)
    with pytest.raises(ValueError, match="you need to run 'set_timesteps'"):
        Case(kind, kind, {}).drop_in().step(x, 10, x)


def test_steps_after_the_timesteps():
    scheduler = Case("UniPC", "UniPCMultistep", {}).drop_in()
    scheduler.set_timesteps(2)
    x = noisy(scheduler, (1, 4, 6, 6))
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(ValueError, match="step 2, but 2 were set"):
        scheduler.step(x, t, x)


def test_shapes_in_conflict():
    scheduler = Case("DDIM", "DDIM", {}).drop_in()
    scheduler.set_timesteps(4)
    x = noisy(scheduler, (1, 4, 6, 6))
    with pytest.raises(ValueError, match=r"model_output is \[1, 4, 5, 6\] but sample is"):
        scheduler.step(x[:, :, 1:], 750, x)
