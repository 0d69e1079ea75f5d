"""Networks of branches have the conventions of the denoiser's own network."""

import numpy as np
import pytest
import torch

import diffast as df

FLOW = df.schedules.flow()
X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(x, t):
    return 0.5 * torch.tanh(x) + 0.2 * t.reshape(-1, 1)


def weak(x, t):
    return 0.3 * x - 0.1 * t.reshape(-1, 1)


RULES = {
    "autoguidance": (df.guidance.autoguidance(weak, 2.5), (2.5, -1.5)),
    "perturbed": (df.guidance.perturbed(0.7, network=weak), (1.7, -0.7)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("run", [df.sample, df.sample_parallel])
def test_a_velocity_beside_a_velocity(name, run):
    """Both are told s, and both outputs are dx/ds."""
    rule, (p, q) = RULES[name]
    plan = df.solvers.euler(FLOW, df.grids.uniform_flow(FLOW, 4))
    model = df.Denoiser.from_velocity(network, time_scale=10.0, guidance=rule)
    one = df.Denoiser.from_velocity(
        lambda x, t: p * network(x, t) + q * weak(x, t), time_scale=10.0
    )
    got, want = (run(d, plan, x=X).x for d in (model, one))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("returns", ["x0", "epsilon", "v", "edm"])
def test_a_network_of_a_noise_level_beside_another(name, returns):
    """Both are told log(sigma) / 4 and given the scaled input."""
    rule, (p, q) = RULES[name]
    how = {"predicts": returns, "scaled_input": True, "level": "log(sigma)/4", "sigma_data": 0.5}
    model = df.Denoiser.from_sigma_model(network, guidance=rule, **how)
    one = df.Denoiser.from_sigma_model(lambda x, t: p * network(x, t) + q * weak(x, t), **how)
    plan = df.solvers.heun(model.schedule, df.grids.karras(model.schedule, 5))
    got, want = (df.sample(d, plan, x=80 * X).x for d in (model, one))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
