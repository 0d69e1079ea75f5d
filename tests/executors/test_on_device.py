"""`df.sample` and `Stepper` on a device, played on the CPU: what they launch, copy and wait for."""

import pytest
import torch
from device_double import Device, host

import diffast as df

SCHEDULE = df.schedules.vp_linear()


def network(x, t, shift=None):
    out = torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, *[1] * (x.dim() - 1)))
    return out if shift is None else out + 0.1 * shift[:, None]


def plan_of(name, steps=6, **options):
    grid = df.grids.uniform_time(SCHEDULE, steps)
    return df.solvers.get(name)(SCHEDULE, grid, **options)


def denoiser(net, place, guidance=1.0, **options):
    if guidance == 1.0:
        return df.Denoiser(net, SCHEDULE, "epsilon", **options)
    shift = torch.arange(3.0, device=place)
    pair = {"conditions": {"shift": shift}, "unconditional": {"shift": shift[:1]}}
    return df.Denoiser(net, SCHEDULE, "epsilon", **pair, guidance=guidance, **options)


def sample(device, name, guidance=1.0, dtype=None, **options):
    place, net = (device.place, device.network(network)) if device else ("cpu", network)
    made = denoiser(net, place, guidance, dtype=dtype)
    return df.sample(made, plan_of(name), (3, 7), seed=5, device=place, **options)


CASES = {
    "plain": {},
    "clamp": {"clamp": (-1.0, 1.0)},
    "guided": {"guidance": 3.0},
    "half": {"dtype": torch.float16},
    "hook": {"on_x0": lambda x0, info: x0 * 0.5},
    "ids": {"ids": [5, -2, 2**40]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral"])
def test_a_sample_waits_once_at_its_end(name, case):
    wanted = sample(None, name, **CASES[case])
    with Device() as device:
        made = sample(device, name, **CASES[case])
        assert torch.equal(host(made.x), wanted.x)
    assert device.waits == 1 and device.downloads == 1
    calls = plan_of(name).nfe
    hooked = case == "hook"  # one more op a stage, and the hook's own product
    ours = device.kernels["combine"] + device.kernels["normal"]
    assert ours <= calls * (1 + hooked) + 2
    # Before and after the stages: ids, status, network calls, the guided input's second half.
    around = device.launches - ours - calls * (2 * hooked)
    assert around <= (7 if case == "guided" else 4), device.kernels


def test_a_sample_whose_end_is_not_looked_at_waits_for_nothing():
    with Device() as device:
        sample(device, "dpmpp_2m", check=False)
    assert device.waits == device.downloads == 0


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_an_initial_state_is_not_waited_for(where):
    x = torch.linspace(-1.0, 1.0, 21).reshape(3, 7)
    wanted = df.sample(denoiser(network, "cpu"), plan_of("ddim"), x=x).x
    with Device() as device:
        given = x if where == "cpu" else x.to(device.place, non_blocking=True)
        place = denoiser(device.network(network), device.place)
        made = df.sample(place, plan_of("ddim"), x=given, device=device.place)
        assert torch.equal(host(made.x), wanted)
    assert device.waits == 1


@pytest.mark.parametrize("run", [df.sample, df.sample_parallel])
def test_an_initial_state_that_is_not_finite_is_named_at_the_end(run):
    x = torch.ones(3, 7)
    x[1, 2] = torch.inf
    with Device(strict=False) as device:
        given = x.to(device.place, non_blocking=True)
        place = denoiser(device.network(network), device.place)
        with pytest.raises(ValueError, match=f"{run.__name__}: x must be finite but sample 1 is"):
            run(place, plan_of("ddim"), x=given)


def loop(stepper, net, x, z=None, **options):
    state, x, t = stepper.start(x, **options)
    for _ in range(6):
        state, x, t = stepper.step(state, net(x, t), z)
    return stepper.result(state)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    "name, options",
    [
        ("euler", {}),
        ("dpmpp_2m", {"clamp": (-1.0, 1.0)}),
        ("euler_ancestral", {}),
        ("dpmpp_2m_sde", {"on_x0": lambda x0, info: x0 * 0.5}),
        ("euler_ancestral", {"noise": "given"}),
    ],
)
def test_stepper_waits_only_where_its_result_is_asked_for(name, options, each):
    x, z = torch.linspace(-1.0, 1.0, 21).reshape(3, 7), None
    if "noise" in options:
        z = torch.linspace(1.0, -2.0, 21).reshape(3, 7)
    numbers = {"seed": 3, "ids": [4, 5, 6], "each": each}
    plan, read = plan_of(name), df.Denoiser(network, SCHEDULE, "epsilon")
    wanted = loop(df.Stepper(plan, read, **options), network, x, z, **numbers)
    with Device() as device:
        stepper = df.Stepper(plan, read, device=device.place, **options)
        x, z = (t if t is None else t.to(device.place, non_blocking=True) for t in (x, z))
        if each:  # the table is made once, and kept
            stepper.table()
        device.reset()
        net = device.network(network)
        state, x, t = stepper.start(x, **numbers)
        device.reset()
        state, x, t = stepper.step(state, net(x, t), z)
        hooked = "on_x0" in options
        # together: times, status and the step; each: the table's rows are gathered too
        most = (10 if each else 3) + (4 if each else 3) * hooked
        assert device.launches <= most, device.kernels
        for _ in range(5):
            state, x, t = stepper.step(state, net(x, t), z)
        assert device.uploads == device.downloads == device.waits == 0
        done = stepper.result(state)
        assert torch.equal(host(done.x), wanted.x)


def test_samples_of_several_plans_join_and_leave_without_a_wait():
    read = df.Denoiser(network, SCHEDULE, "epsilon")
    plans = [(plan_of("euler_ancestral"), read), (plan_of("dpmpp_2m"), read)]
    with Device() as device:
        stepper = df.Stepper(plans, device=device.place)
        x = torch.ones(3, 7, device=device.place)
        one, _, _ = stepper.start(x, plan=[0, 1, 0])
        two, _, _ = stepper.start(x, plan=1, each=True)
        state = stepper.join(one, two)
        state = stepper.select(state, torch.arange(4, device=device.place))
        state, _, _ = stepper.step(state, torch.zeros(4, 7, device=device.place))
    assert device.waits == device.downloads == 0
