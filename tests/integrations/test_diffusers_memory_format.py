"""Networks that answer in channels_last: the same latents, and no step transposes anything."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")

import diffusers

from diffast.integrations.diffusers import DiffastScheduler

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
STEPS = 6
ORIGINALS = {
    "DDIMScheduler": True,
    "EulerDiscreteScheduler": True,
    "DPMSolverMultistepScheduler": True,
    "UniPCMultistepScheduler": None,  # the same latents is all that is asked
    "HeunDiscreteScheduler": False,  # a state beside the sample
    "DDPMScheduler": False,  # fresh noise
}


class Copies(TorchDispatchMode):
    """Counts copies."""

    count = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in ("aten::clone", "aten::copy_")
        return function(*args, **(kwargs or {}))


def run(name, last):
    """Runs the loop; `last` says which answers are in channels_last."""
    scheduler = DiffastScheduler.from_scheduler(getattr(diffusers, name)())
    scheduler.set_timesteps(STEPS)
    x = torch.linspace(-1.0, 1.0, 240).reshape(2, 4, 5, 6).sin()
    generator, copies, found = torch.Generator().manual_seed(0), [], []
    for i, t in enumerate(scheduler.timesteps):
        answer = torch.tanh(scheduler.scale_model_input(x, t)) * 0.7
        if last(i):
            answer = answer.contiguous(memory_format=torch.channels_last)
        else:
            answer = answer.contiguous()
        options = {"generator": generator} if name == "DDPMScheduler" else {}
        with Copies() as counted, torch.no_grad():
            out = scheduler.step(answer, t, x, **options)
            x = out.prev_sample
        copies.append(counted.count)
        if hasattr(out, "pred_original_sample") and out.pred_original_sample is not None:
            found.append(out.pred_original_sample.contiguous().clone())
        found.append(x.contiguous().clone())
    return found, copies, x


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("last", [lambda i: True, lambda i: i % 3 != 1, lambda i: i == 4])
def test_the_same_latents(name, last):
    plain, _, _ = run(name, lambda i: False)
    made, _, _ = run(name, last)
    assert all(map(torch.equal, made, plain))


@pytest.mark.parametrize("name", [name for name, turns in ORIGINALS.items() if turns])
def test_only_the_first_sample_is_transposed(name):
    _, copies, x = run(name, lambda i: True)
    # The step reads it, and the x0 estimate does.
    assert 1 <= copies[0] <= 2 and copies[1:] == [0] * (STEPS - 1)
    assert x.is_contiguous(memory_format=torch.channels_last)
