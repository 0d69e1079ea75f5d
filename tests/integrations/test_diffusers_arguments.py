"""Arguments of the drop-ins' `step` that change what it does or shows."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

from diffusers_cases import Case  # noqa: E402
from diffusers_loop import difference, noisy  # noqa: E402


@pytest.mark.parametrize("traced", [False, True])
def test_what_lcm_shows_after_a_clamp(traced):
    # a boundary scaling that is not nearly 1, so that the clamped estimate alone would be seen
    config = {"clip_sample": True, "clip_sample_range": 0.5, "timestep_scaling": 0.05}
    case = Case("LCM-clip", "LCM", config)
    original, ours = case.original(), case.drop_in()
    for scheduler in (original, ours):
        scheduler.set_timesteps(4)
    step = torch.compile(ours.step, backend="eager") if traced else ours.step
    torch._dynamo.reset()
    x, output = noisy(original, (2, 4, 6, 6)), torch.randn(2, 4, 6, 6)
    for t, mine in zip(original.timesteps, ours.timesteps, strict=True):
        _, wanted = original.step(output, t, x, return_dict=False)
        _, shown = step(output, mine, x, return_dict=False)
        assert difference(shown, wanted) <= 1e-5


@pytest.mark.parametrize("clip", [False, True])
def test_traced_steps_take_other_arguments(clip):
    case = Case("DDIM", "DDIM", {"clip_sample": clip})
    noise, results = torch.randn(2, 4, 6, 6), []
    for traced in (False, True):
        scheduler = case.drop_in()
        scheduler.set_timesteps(5)

        def one(output, t, x, scheduler=scheduler):
            return scheduler.step(output, t, x, eta=0.8, variance_noise=noise, return_dict=False)[0]

        torch._dynamo.reset()
        step = torch.compile(one, backend="eager") if traced else one
        x = torch.linspace(-1, 1, 2 * 4 * 36).view(2, 4, 6, 6)
        for t in scheduler.timesteps:
            x = step(torch.tanh(x), t, x)
        results.append(x)
    assert difference(*results) <= 1e-5
    original = case.original()
    original.set_timesteps(5)
    x = torch.linspace(-1, 1, 2 * 4 * 36).view(2, 4, 6, 6)
    for t in original.timesteps:
        x = original.step(torch.tanh(x), t, x, eta=0.8, variance_noise=noise).prev_sample
    assert difference(results[0], x) <= 1e-5


def test_given_noise_and_counter_noise_are_in_conflict():
    case = Case("sde", "DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"})
    scheduler = case.drop_in("counter")
    scheduler.set_timesteps(4)
    x = noisy(scheduler, (1, 4, 6, 6))
    with pytest.raises(ValueError, match="variance_noise is given, but noise is 'counter'"):
        scheduler.step(x, scheduler.timesteps[0], x, variance_noise=x)


def test_thresholding_keeps_float64():
    case = Case("2M", "DPMSolverMultistep", {"thresholding": True, "sample_max_value": 9.0})
    scheduler = case.drop_in()
    scheduler.set_timesteps(3)
    x = noisy(scheduler, (2, 3, 6, 6)).double()
    found = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(3)
    apart = scheduler.step(x + 1e-12, scheduler.timesteps[0], x).prev_sample - found
    assert 0 < apart.abs().max() < 1e-9
