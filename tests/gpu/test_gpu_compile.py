"""torch.compile on a GPU: an op and a step of `Stepper`, each one graph, with the same bits."""

import pytest
import torch
from op_calls import CALLS, check
from stepwise_runs import VP, network, noise_of, plan_of

import diffast as df
from diffast.ops.schema import overload_of


def test_a_call_can_be_compiled(device):
    """One graph whose result has the same bits; its backend is torch's default on a GPU."""
    (call,) = (call for call in CALLS if str(call) == "combine noise")
    arguments = call.make()
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(
        lambda *given: overload_of(call.name)(*given), backend=backend, fullgraph=True
    )
    check(call, arguments, device, "compiled", function=compiled)


@pytest.mark.parametrize("each", [False, True], ids=["together", "each"])
def test_a_compiled_step_has_the_same_bits(each, device):
    plan = plan_of("dpmpp_3m_sde", steps=4)
    stepper = df.Stepper(plan, df.Denoiser(network, VP, predicts="v"), device=device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(stepper.step, backend=backend, fullgraph=each)
    results = []
    for step in (stepper.step, compiled):
        state, x, t = stepper.start(noise_of().to(device), seed=5, each=each)
        output = 0.3 * x
        for _ in range(3):
            state, _, _ = step(state, output)
        results.append(state.x)
    assert torch.equal(*results)
