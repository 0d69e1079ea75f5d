"""The adaptive executor's way of working on a device, run on the CPU: torch tables, no numpy view.

What is left to a real device is the copy of the statuses that is not waited for.
"""

import numpy as np
import pytest
import torch
from adaptive_cases import METHODS, Gaussian, denoiser, run, spectrum

import diffast as df
from diffast.executors.adaptive import batch as adaptive_batch
from diffast.executors.adaptive import rounds as adaptive_run


def poll_late(batch, rounds):
    """As on a device, where statuses are known some rounds late."""
    if batch.waiting is not None and rounds % 3 == 0:
        statuses, batch.waiting = batch.waiting, None
        batch.retire(statuses.numpy())
    elif batch.waiting is None:
        batch.waiting = batch.now["counts"][:, 0].clone()


@pytest.fixture
def device_way(monkeypatch):
    monkeypatch.setattr(adaptive_batch, "on_host", lambda device: False)
    monkeypatch.setattr(adaptive_run, "on_host", lambda device: False)
    monkeypatch.setattr(adaptive_batch.Batch, "poll", poll_late)


@pytest.mark.parametrize("name", METHODS)
def test_same_samples_as_on_the_host(name, monkeypatch, request):
    host = run(name, (9, 3), seed=2)
    request.getfixturevalue("device_way")
    device = run(name, (9, 3), seed=2)
    assert device.fine.all()
    # Weights come from an interpolated table: steps may differ by rounding.
    assert torch.allclose(device.x, host.x, atol=2e-3, rtol=1e-3)
    assert (device.nfe - host.nfe).abs().max() <= 2
    assert device.wasted > 0


@pytest.mark.parametrize(
    "schedule",
    [
        df.schedules.edm(),
        df.schedules.flow(),
        df.schedules.vp_cosine(),
        df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
    ],
    ids=["edm", "flow", "cosine", "betas"],
)
@pytest.mark.parametrize("method", ["pec", "ggf", "dpm_23", "bosh3"])
def test_other_schedules(schedule, method, request):
    options = {"rtol": 0.2, "atol": 0.05} if method == "ggf" else {}
    host = df.sample_adaptive(denoiser(schedule, 3), method, (5, 3), **options)
    request.getfixturevalue("device_way")
    device = df.sample_adaptive(denoiser(schedule, 3), method, (5, 3), **options)
    # The slopes of "betas" are a staircase, whose corners the table rounds off.
    far = 0.1 if method == "ggf" and schedule.domain[0] < 0 else 5e-3
    assert torch.allclose(device.x, host.x, atol=far, rtol=far)


def test_guidance_that_depends_on_the_time(request):
    def sample():
        network = Gaussian(df.schedules.vp_linear(), spectrum(3))
        given = df.Denoiser(
            lambda x, t, shift: network(x, t) + shift[:, None],
            network.schedule,
            predicts="x0",
            conditions={"shift": torch.linspace(0, 1, 5)},
            unconditional={"shift": torch.zeros(1)},
            guidance=lambda t: 1.0 + t,
        )
        return df.sample_adaptive(given, "dpm_12", (5, 3), rtol=0.01)

    host = sample()
    request.getfixturevalue("device_way")
    assert torch.allclose(sample().x, host.x, atol=2e-3)


@pytest.mark.parametrize("name", ["pec", "ggf", "dopri5"])
def test_a_fault_stays_with_its_sample(name, device_way):
    network = Gaussian(df.schedules.vp_linear(), spectrum(3))

    def faulty(x, t, label):
        return torch.where(((label == 1) & (t < 0.3))[:, None], float("nan"), network(x, t))

    def samples(labels):
        given = df.Denoiser(faulty, network.schedule, "x0", conditions={"label": labels})
        return df.sample_adaptive(given, name, (4, 3), **METHODS[name])

    good = samples(torch.zeros(4, dtype=torch.int64))
    with pytest.warns(RuntimeWarning, match="not finite"):
        out = samples(torch.tensor([0, 1, 0, 0]))
    assert torch.equal(out.x[[0, 2, 3]], good.x[[0, 2, 3]])
    assert out.x.isfinite().all()


class Enough(Exception):
    pass


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down what is asked of torch while it is `on`."""

    def __init__(self):
        super().__init__()
        self.on, self.asked = False, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.on:
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_round_asks_the_device_for_nothing(name, device_way, monkeypatch):
    """No number is read, no tensor copied, no shape depends on values in a round of the loop."""
    watch, inner, rounds = Watch(), adaptive_run.AdaptiveRun.round, []
    network = Gaussian(df.schedules.vp_linear(), spectrum(3))

    def watched(self):
        watch.on = True
        inner(self)
        watch.on = False
        rounds.append(1)
        if len(rounds) == 5:
            raise Enough

    def unseen(x, t):
        watch.on, before = False, watch.on
        out = network(x, t)
        watch.on = before
        return out

    monkeypatch.setattr(adaptive_run.AdaptiveRun, "round", watched)
    monkeypatch.setattr(adaptive_batch.Batch, "poll", lambda self, rounds: None)
    with watch, pytest.raises(Enough):
        run(name, (4, 3), network=unseen)
    assert len(watch.asked) > 50
    reading = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "aten.item")
    assert not [name for name in watch.asked if any(word in name for word in reading)]
    copies = [name for name in watch.asked if "_to_copy" in name]
    # The times in the network's type; a path's nodes as integers and whether there are any.
    assert len(copies) <= (2 if "path" in name else 1) * len(rounds)
