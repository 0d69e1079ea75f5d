"""Drop-in schedulers under autograd: the original's gradients through whole runs."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

import diffusers  # noqa: E402
from diffusers_cases import ONE_OF_EACH, Case  # noqa: E402
from diffusers_loop import difference, model_input, noisy, step_options  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
CASES = [
    *(case for case in ONE_OF_EACH if case.kind != "PNDM"),
    Case("DDIM-clip", "DDIM", {"clip_sample": True}),
    Case("PNDM-skip", "PNDM", {"skip_prk_steps": True}),
    Case("Heun-clip", "HeunDiscrete", {"clip_sample": True}),
]


def gradients(scheduler, case, steps=4):
    """Of the sum of a run's result squared, by the first latents and by a weight of the network."""
    scheduler.set_timesteps(steps, **case.timing)
    options = step_options(case, scheduler)
    start = noisy(scheduler, case.shape).requires_grad_()
    weight = torch.tensor(0.7, requires_grad=True)
    x = start
    for t in scheduler.timesteps:
        output = torch.tanh(weight * model_input(scheduler, x, t) + 0.001 * float(t) / 1000)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x.detach(), *torch.autograd.grad(x.square().sum(), [start, weight])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_same_gradients(case):
    wanted, got = gradients(case.original(), case), gradients(case.drop_in(), case)
    for ours, theirs in zip(got, wanted, strict=True):
        assert difference(ours, theirs) <= 1e-3


def test_no_gradient_is_made_where_none_is_asked_for():
    case = Case("DPMSolverMultistep", "DPMSolverMultistep", {})
    scheduler = case.drop_in()
    scheduler.set_timesteps(4)
    x = noisy(scheduler, case.shape)
    with torch.no_grad():
        out = scheduler.step(x.clone().requires_grad_(), scheduler.timesteps[0], x).prev_sample
    assert not out.requires_grad
    out = scheduler.step(x, scheduler.timesteps[1], out).prev_sample
    assert not out.requires_grad


def test_the_estimate_has_its_gradient():
    case = Case("DDIM", "DDIM", {"clip_sample": False})
    scheduler = case.drop_in()
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[0]
    output = noisy(scheduler, case.shape).requires_grad_()
    x = noisy(scheduler, case.shape)
    x0 = scheduler.step(output, t, x, return_dict=False)[1]
    (grad,) = torch.autograd.grad(x0.sum(), output)
    a = scheduler.alphas_cumprod[t]
    torch.testing.assert_close(grad, torch.full_like(grad, -(((1 - a) / a) ** 0.5)))
