"""Drop-in schedulers on a CUDA device: no waits, the CPU's numbers."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

from device_watch import no_waits  # noqa: E402
from diffusers_cases import ONE_OF_EACH  # noqa: E402
from diffusers_loop import difference, model_input, network, noisy, step_options  # noqa: E402


def run(case, device):
    scheduler = case.drop_in("counter")
    scheduler.set_timesteps(8, device=device, **case.timing)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    torch.manual_seed(1)
    x = noisy(scheduler, case.shape).to(device)
    generator = torch.Generator(device).manual_seed(4)
    options = {**step_options(case, scheduler)}
    if "generator" in options:
        options["generator"] = generator
    for t in scheduler.timesteps:
        out = network(model_input(scheduler, x, t), t, case.learned)
        with no_waits(device):
            x = scheduler.step(out, t, x, **options, return_dict=False)[0]
    return x


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_steps_do_not_wait(case):
    torch.manual_seed(1)
    here, there = run(case, "cpu"), run(case, "cuda").cpu()
    # the fake network is torch's, whose sums differ between devices; the steps add the same bits
    assert difference(there, here) <= 1e-4
