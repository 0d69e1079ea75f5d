"""The parallel executor on a device, played on the CPU: launches, copies and waits of a round."""

import pytest
import torch
from device_double import Device, host

import diffast as df
from diffast.executors.parallel import rounds

SCHEDULE = df.schedules.vp_linear()
# Most launches of torch's own kernels and of the package's in a round, after the first one.
# "secant" divides, bounds and chooses slopes; "speculative" also gathers guesses and moves samples.
MOST = {
    ("prior", "ddim"): (0, 3),
    ("prior", "dpmpp_2m_sde"): (0, 3),
    ("paradigms", "ddpm"): (0, 3),
    ("anderson", "ddim"): (0, 5),
    ("anderson", "dpmpp_2m"): (0, 5),
    ("secant", "ddim"): (7, 4),
    ("secant", "heun"): (7, 4),
    ("speculative", "ddpm"): (14, 5),
}


def network(x, t):
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, *[1] * (x.dim() - 1)))


def plan_of(name, steps=12):
    return df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))


def sample(device, name, method, run=network, **options):
    place, run = (device.place, device.network(run)) if device else ("cpu", run)
    denoiser = df.Denoiser(run, SCHEDULE, predicts="epsilon")
    given = {"shape": (5, 7), "seed": 4, "method": method, "device": place} | options
    return df.sample_parallel(denoiser, plan_of(name), **given)


@pytest.mark.parametrize("method, name", MOST)
def test_a_round_is_few_launches_one_copy_each_way_and_one_wait(method, name, monkeypatch):
    """Counted while the number of rows stays. That it is the same run is compared too."""
    device, counted, inner = Device(), [], rounds.ParallelRun.round

    def watched(run):
        device.reset()
        settled = inner(run)
        counted.append((device.kernels.copy(), device.uploads, device.downloads, device.waits))
        return settled

    wanted = sample(None, name, method, static=True)
    monkeypatch.setattr(rounds.ParallelRun, "round", watched)
    with device:
        made = sample(device, name, method, static=True)
        x, nfe = host(made.x), host(made.nfe)
    assert torch.equal(x, wanted.x) and torch.equal(nfe, wanted.nfe)
    assert made.rounds == wanted.rounds == len(counted) > 3
    ours = ("combine", "gram", "sweep", "normal")
    for number, (kernels, *copies) in enumerate(counted):
        assert copies == [1, 1, 1]
        package = sum(count for op, count in kernels.items() if op.startswith(ours))
        # Once a run the answers at two places of a batch are compared, and buffers are made.
        once = 12 if number < 3 else 0
        torchs, most = MOST[method, name]
        assert kernels.total() - package <= torchs + once and package <= most, kernels


@pytest.mark.parametrize("method", ["secant", "anderson", "speculative"])
def test_a_whole_run_waits_once_a_round(method):
    """The start and the end of a run wait for nothing, but the coupling for the samples' ids."""
    with Device() as device:
        made = sample(device, "ddpm", method)
        assert made.fine.all().held
    assert device.waits == made.rounds + (method == "speculative")


@pytest.mark.parametrize("options", [{"batch_size": 12}, {"memory_limit": 9000}, {"window": 3}])
@pytest.mark.parametrize("name, method", [("dpmpp_2m_sde", "secant"), ("ddpm", "anderson")])
def test_other_numbers_of_rows(name, method, options):
    wanted = sample(None, name, method, **options)
    with Device() as device:
        assert torch.equal(host(sample(device, name, method, **options).x), wanted.x)


def test_conditions_and_guidance():
    def guided(x, t, shift):
        return network(x, t) + 0.1 * shift[:, None]

    def run(place, net):
        shift = torch.arange(5.0, device=place)
        denoiser = df.Denoiser(
            net, SCHEDULE, "epsilon", conditions={"shift": shift},
            unconditional={"shift": shift[:1]}, guidance=2.0,
        )  # fmt: skip
        return df.sample_parallel(denoiser, plan_of("ddim"), (5, 7), device=place, seed=1)

    wanted = run("cpu", guided)
    with Device() as device:
        assert torch.equal(host(run(device.place, device.network(guided)).x), wanted.x)


@pytest.mark.parametrize("method", ["secant", "anderson", "speculative"])
def test_a_device_that_runs_out_of_memory_goes_on_with_fewer_rows(method):
    def greedy(x, t):
        if len(x) > 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(x, t)

    with pytest.warns(RuntimeWarning, match="out of memory"):
        wanted = sample(None, "ddpm", method, greedy)
    with pytest.warns(RuntimeWarning, match="out of memory"), Device(strict=False) as device:
        assert torch.equal(host(sample(device, "ddpm", method, greedy).x), wanted.x)


@pytest.mark.parametrize("method", ["secant", "anderson", "speculative"])
def test_a_fault_on_a_device_stays_with_its_sample(method):
    def faulty(x, t):
        bad = (t < 0.4)[:, None] & (x[:, :1] > 0.3)
        return torch.where(bad, torch.nan, network(x, t))

    wanted = sample(None, "ddpm", method, faulty, throw=False)
    with Device(strict=False) as device:
        made = sample(device, "ddpm", method, faulty, throw=False)
        x, status = host(made.x), host(made.status)
    assert 0 < (status >= 0).sum() < 5 and torch.equal(status, wanted.status)
    assert torch.equal(x.nan_to_num(7.0), wanted.x.nan_to_num(7.0))
