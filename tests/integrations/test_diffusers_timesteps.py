"""Timesteps that are not the scheduler's own are read once a loop: that waits for a device."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, EulerDiscreteScheduler

from diffast.integrations.diffusers import DiffastScheduler, places
from diffast.integrations.handed_over import HandedOverWarning

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def reads(monkeypatch):
    """Counts what is read from tensors as Python numbers."""
    counted = []
    for name in ("item", "tolist"):
        inner = getattr(torch.Tensor, name)

        def watched(tensor, inner=inner, name=name):
            counted.append(name)
            return inner(tensor)

        monkeypatch.setattr(torch.Tensor, name, watched)
    return counted


def run(original, loop_over, reads):
    scheduler = DiffastScheduler.from_scheduler(original())
    scheduler.set_timesteps(8)
    times, x = loop_over(scheduler.timesteps), torch.ones(1, 3, 4, 4)
    reads.clear()
    for t in times:
        x = scheduler.step(0.3 * scheduler.scale_model_input(x, t), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("original", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_loop_over_a_tensor_of_the_callers_reads_it_once(original, reads, monkeypatch):
    monkeypatch.setattr(places, "on_host", lambda device: False)
    wanted = run(original, lambda times: times, reads)
    assert reads == []
    for foreign in (torch.clone, lambda t: t.double(), lambda t: torch.cat([t, t])[:8]):
        assert torch.equal(run(original, foreign, reads), wanted)
        assert len(reads) <= 1


@pytest.mark.parametrize("free", [True, False])
def test_a_number_that_was_written_over_is_read_again(free, monkeypatch):
    monkeypatch.setattr(places, "on_host", lambda device: free)
    drop_in = DiffastScheduler.from_scheduler(DDIMScheduler())
    drop_in.set_timesteps(8)
    buffer = torch.zeros(2, dtype=torch.int64)
    for i, t in enumerate(drop_in.timesteps):
        buffer.fill_(int(t))
        assert drop_in._position(buffer[1]) == i


def test_memory_that_numpy_wrote_to_is_read_again():
    """Such a write gives a tensor no new version."""
    drop_in = DiffastScheduler.from_scheduler(DDIMScheduler())
    drop_in.set_timesteps(8)
    numbers = drop_in.timesteps.numpy().copy()
    times = torch.from_numpy(numbers)
    assert [drop_in._position(t) for t in times] == list(range(8))
    numbers[:] = numbers[::-1].copy()
    assert [drop_in._position(t) for t in times] == list(range(7, -1, -1))


def test_an_unknown_time_of_the_callers_is_the_original_s():
    original, ours = DDIMScheduler(), DiffastScheduler.from_scheduler(DDIMScheduler())
    x, output = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for scheduler in (original, ours):
        scheduler.set_timesteps(8)
    t = torch.tensor([1, 3])[1]
    with pytest.warns(HandedOverWarning, match="timestep 3 is not the one that was set"):
        found = ours.step(output, t, x).prev_sample
    assert torch.equal(found, original.step(output, t, x).prev_sample)
    # the run goes on, fused
    t = ours.timesteps[2]
    wanted = original.step(output, t, x).prev_sample
    assert torch.allclose(ours.step(output, t, x).prev_sample, wanted, atol=1e-6)
