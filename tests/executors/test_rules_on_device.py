"""Guidance rules on a device, played on the CPU: launches of a stage, copies and waits."""

import pytest
import torch
from device_double import Device, host

import diffast as df

G = df.guidance
SCHEDULE = df.schedules.vp_linear()
SHAPE = (3, 2, 12, 12)

# Launches of a stage by op, beside the network.
RULES = {
    "cfg": (lambda: G.cfg(3.0), {"combine": 1}),
    "rescale": (lambda: G.rescale(0.5, 3.0), {"gram": 1, "evaluate": 1, "combine": 1}),
    "apg": (
        lambda: G.apg(3.0, norm_threshold=5.0, momentum=-0.5),
        {"gram": 1, "evaluate": 1, "combine": 1},
    ),
    "tcfg": (lambda: G.tcfg(3.0), {"gram": 1, "evaluate": 1, "combine": 1}),
    "threshold": (
        lambda: G.dynamic_threshold(0.9, 1.5, 3.0),
        {"quantile": 1, "evaluate": 1, "combine": 1},
    ),
    "threshold of apg": (
        lambda: G.dynamic_threshold(0.9, 1.5, G.apg(3.0)),
        {"gram": 1, "quantile": 1, "evaluate": 2, "combine": 1, "copy_": 2},
    ),
}


def network(x, t, shift):
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, 1, 1, 1)) + 0.1 * shift


def sample(rule, steps, device=None):
    place, net = (device.place, device.network(network)) if device else ("cpu", network)
    shift = torch.arange(3.0, device=place).reshape(3, 1, 1, 1)
    made = df.Denoiser(
        net,
        SCHEDULE,
        "epsilon",
        conditions={"shift": shift},
        unconditional={"shift": shift[:1]},
        guidance=rule,
    )
    plan = df.solvers.dpmpp_2m(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))
    return df.sample(made, plan, SHAPE, seed=5, device=place)


@pytest.mark.parametrize("name", list(RULES))
def test_a_stage_launches_what_the_rule_needs_and_reads_nothing(name):
    make, stage = RULES[name]
    rule, kernels = make(), []
    for steps in (4, 7):
        wanted = sample(rule, steps).x
        with Device() as device:
            made = sample(rule, steps, device)
            assert torch.equal(host(made.x), wanted)
        assert device.waits == device.downloads == 1  # the status, at the end
        kernels.append(device.kernels)
    more = {op: (kernels[1][op] - kernels[0][op]) / 3 for op in {*kernels[0], *kernels[1]}}
    found = {op: n for op, n in more.items() if op in stage or op in ("gram", "evaluate", "mul")}
    assert {op: n for op, n in found.items() if n} == stage, more


def stepped(rule, each, device=None):
    """Returns (stepper, state at the end) of a second run; what the first one sent is kept."""
    place, net = (device.place, device.network(network)) if device else ("cpu", network)
    own = df.Denoiser(net, SCHEDULE, "epsilon", unconditional={}, guidance=rule)
    plan = df.solvers.dpmpp_2m(SCHEDULE, df.grids.uniform_time(SCHEDULE, 5))
    stepper = df.Stepper(plan, own, device=place)
    x = torch.linspace(-1.5, 2.0, 864).reshape(SHAPE).to(place, non_blocking=True)
    for again in range(2):
        state, inputs, t = stepper.start(x, seed=5, each=each)
        if device is not None and again:
            device.reset()
        for _ in range(5):
            outputs = net(inputs, t, 1.0), net(inputs, t, 0.0)
            state, inputs, t = stepper.step(state, outputs)
    return stepper, state


@pytest.mark.parametrize(
    ("name", "each"),
    [(name, False) for name in RULES] + [(name, True) for name in RULES if "threshold" not in name],
)
def test_a_step_by_a_rule_reads_nothing_and_sends_nothing_twice(name, each):
    make, _ = RULES[name]
    stepper, state = stepped(make(), each)
    wanted = stepper.result(state).x
    with Device() as device:
        stepper, state = stepped(make(), each, device)
        assert device.uploads == device.downloads == device.waits == 0
        assert torch.equal(host(stepper.result(state).x), wanted)
