"""The adaptive executor's way of working on a device, run on the CPU: no numpy view of samples.

What is left to a real device is the copy of the statuses that is not waited for.
"""

import numpy as np
import pytest
import torch
from adaptive_cases import METHODS, Gaussian, denoiser, run, spectrum

import diffast as df
from diffast.executors.adaptive import batch as adaptive_batch
from diffast.executors.adaptive import rounds as adaptive_run
from diffast.executors.adaptive.sample import prepare
from diffast.ops.schema import FINISHED, RUNNING


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
    # The same programs: only the rows that noise adds for points that nobody remembers are more.
    assert torch.equal(device.x, host.x)
    assert torch.equal(device.nfe, host.nfe)
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
    with pytest.raises(df.NonFiniteError, match="not finite") as caught:
        samples(torch.tensor([0, 1, 0, 0]))
    out = caught.value.result
    assert torch.equal(out.x[[0, 2, 3]], good.x[[0, 2, 3]])
    assert out.fine.tolist() == [True, False, True, True] and out.x[1].isnan().all()


def ids_that_stay(run):
    return run.batch.samples[: run.batch.size].tolist()


def test_samples_leave_when_an_eighth_is_done(device_way, monkeypatch):
    """One of 20 that is done stays in the batch; with a second and a third it leaves."""
    monkeypatch.setattr(adaptive_batch.Batch, "poll", lambda self, rounds: None)
    run = prepare(denoiser(df.schedules.vp_linear(), 3), "pec", (20, 3))
    with torch.inference_mode():
        run.start(None)
        before = {b: run.batch.view["y"][b].clone() for b in range(20)}
        statuses = np.full(20, RUNNING)
        for b, left in ((3, 20), (17, 20), (4, 17)):
            statuses[b] = FINISHED
            run.batch.retire(statuses)
            assert run.batch.size == left
        assert sorted(ids_that_stay(run)) == [b for b in range(20) if b not in (3, 4, 17)]
        assert run.batch.now["streams"][:, 1].tolist() == ids_that_stay(run)
        for row, b in enumerate(ids_that_stay(run)):
            assert torch.equal(run.batch.view["y"][row], before[b])
    assert (run.final["counts"][[3, 4, 17], 1] == 1).all()


# Kernels of an op's call on a GPU. Other functions of torch are one, if they are not among VIEWS.
KERNELS = {
    "diffast.combine.table_out": 1,
    "diffast.combine_error.out": 2,
    "diffast.accept.default": 2,
    "diffast.evaluate.default": 1,
    "diffast.brownian.out": 1,
}
VIEWS = ("view", "slice", "split", "select", "expand", "detach", "alias", "empty", "_reshape_alias")


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down what is asked of torch while it is `on`."""

    def __init__(self):
        super().__init__()
        self.on, self.asked = False, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.on:
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))

    @property
    def kernels(self):
        """How many kernels were asked for."""
        views = [n for n in self.asked if n.startswith("aten") and n.split(".")[1] in VIEWS]
        return sum(KERNELS.get(name, 1) for name in self.asked) - len(views)


BETAS = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("how", ["", "clamp", "guided", "betas"])
@pytest.mark.parametrize("name", METHODS)
def test_a_round_is_at_most_ten_kernels(name, how, device_way, monkeypatch):
    """Counted beyond the network. Nothing is read, and no shape depends on values."""
    monkeypatch.setattr(adaptive_batch.Batch, "poll", lambda self, rounds: None)
    watch, schedule = Launches(), BETAS if how == "betas" else df.schedules.vp_linear()
    options = {"clamp": (-1.0, 1.0)} if how == "clamp" else {}
    guided = {
        "guidance": lambda t: 1.0 + t,
        "conditions": {"label": torch.zeros(4)},
        "unconditional": {"label": torch.zeros(1)},
    }

    def network(x, t, label=None):
        watch.on, before = False, watch.on
        out = 0.5 * x
        watch.on = before
        return out

    given = df.Denoiser(network, schedule, "x0", **(guided if how == "guided" else {}))
    run = prepare(given, name.split(",")[0], (4, 3), **METHODS[name], **options)
    counts = []
    with torch.inference_mode(), watch:
        run.start(None)
        for n in range(2 * run.period + 1):
            watch.on, watch.asked = n > run.period, []
            run.round()
            watch.on = False
            if n > run.period:
                counts.append(watch.kernels)
                asked = watch.asked
                assert "diffast.evaluate.default" in asked and "diffast.accept.default" in asked
                reading = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "item")
                assert not [op for op in asked if any(word in op for word in reading)]
    expected = 7 + ("path" in name)  # evaluate, times, combine, combine_error and accept twice
    assert set(counts) == {expected}


def test_rounds_work_on_the_same_tensors(device_way, monkeypatch):
    """What an op is given in a period it is given in the next: a graph of it can be replayed."""
    monkeypatch.setattr(adaptive_batch.Batch, "poll", lambda self, rounds: None)
    for name in ("pec", "pec, path", "ggf", "dpm_23", "bosh3"):
        seen = []

        class Pointers(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None, seen=seen):
                if str(function).startswith("diffast"):
                    flat = torch.utils._pytree.tree_leaves((args, kwargs))
                    numbers = [a.data_ptr() if torch.is_tensor(a) else a for a in flat]
                    seen.append((str(function), numbers))
                return function(*args, **(kwargs or {}))

        answer = torch.zeros(4, 3)
        given = df.Denoiser(lambda x, t, a=answer: a, df.schedules.vp_linear(), "x0")
        run = prepare(given, name.split(",")[0], (4, 3), compact=False, **METHODS[name])
        with torch.inference_mode():
            run.start(None)
            for _ in range(run.period):
                run.work()
            with Pointers():
                for _ in range(2 * run.period):
                    run.work()
        half = len(seen) // 2
        assert half >= 4 * run.period and seen[:half] == seen[half:]
