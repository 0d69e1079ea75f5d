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
