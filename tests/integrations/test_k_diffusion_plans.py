"""Plans made for a network in the interfaces of k-diffusion and EDM: the samples of df.sample."""

import importlib.util
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from tuned_plans import tuned, two_inputs

import diffast as df
from diffast.integrations import k_diffusion
from diffast.integrations.edm import edm_sampler
from diffast.integrations.sigma_plans import in_sigma_space

BETAS = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
EDM = df.schedules.edm(0.03, 14.6)


def network(x, t):
    """Predicts noise in the terms of BETAS; each sample sees its own time."""
    return torch.tanh(x * (1.0 + t.reshape(-1, 1) / 1000)) + 0.1 * x.roll(1, 1)


def wrapped(x, sigma, cond_scale=1.0):
    """The network as k-diffusion wraps one that predicts noise: D = x - sigma eps(c_in x, t)."""
    t = torch.from_numpy(BETAS.time(-np.log(sigma.double().numpy()))).to(x)
    scale = (1.0 + sigma**2).rsqrt().reshape(-1, 1)
    return x - sigma.reshape(-1, 1) * network(scale * x, t)


def initial(plan, rows=3):
    x = torch.randn((rows, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * plan.initial_scale


def alpha_at(plan):
    return float(plan.schedule.alpha(plan.start))


@pytest.mark.parametrize("make", [tuned, two_inputs])
def test_a_variance_preserving_plan_samples_alike_on_x0_plus_sigma_noise(make):
    plan = make(BETAS)
    denoiser = df.Denoiser(network, BETAS, "epsilon")
    want = df.sample(denoiser, plan, x=initial(plan)).x
    seen = []
    got = k_diffusion.sample_plan(
        wrapped, initial(plan) / alpha_at(plan), plan, callback=seen.append, disable=True
    )
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    sigmas = k_diffusion.get_sigmas_plan(plan)
    assert [info["i"] for info in seen] == list(range(len(sigmas) - 1))
    assert float(sigmas[0]) == pytest.approx(plan.initial_scale / alpha_at(plan))
    assert float(sigmas[-1]) == 0.0 and bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize(
    "solver", ["heun", "dpmpp_2s", "euler_ancestral", "dpmpp_2m_sde", "unipc", "lcm", "sa_solver"]
)
def test_plans_of_every_structure_move_to_sigma_space(solver):
    """Two states, fresh noise, correctors: the moved plan has the samples of the plan itself."""
    plan = df.solvers.get(solver)(BETAS, df.grids.uniform_logsnr(BETAS, 6))
    moved = in_sigma_space("test", plan)
    x = initial(plan)
    noise = torch.randn(
        (plan.stages + 2, *x.shape), generator=torch.Generator().manual_seed(1), dtype=x.dtype
    )
    draw = {"noise": lambda stage: noise[stage]} if plan.stochastic else {}
    want = df.sample(df.Denoiser(network, BETAS, "epsilon"), plan, x=x, **draw).x
    other = df.Denoiser(wrapped, moved.schedule, "x0")
    got = df.sample(other, moved, x=x / alpha_at(plan), **draw).x
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_plan_of_a_file_runs_and_a_sigma_plan_stays_as_it_is(tmp_path):
    plan = tuned(EDM)
    assert in_sigma_space("test", plan) is plan
    plan.save(tmp_path / "plan.json")
    x = initial(plan)

    def model(x, sigma):
        return torch.tanh(x / (1.0 + sigma.reshape(-1, 1)))

    want = df.sample(df.Denoiser(model, EDM, "x0"), plan, x=x).x
    torch.testing.assert_close(
        k_diffusion.sample_plan(model, x, str(tmp_path / "plan.json"), disable=True), want
    )


def test_guidance_scales_replace_cond_scale_or_are_refused():
    scales = [1.0, 3.0, 2.0]
    plan, seen = replace(tuned(BETAS, 3), guidance=scales), []

    def model(x, sigma, cond_scale):
        seen.append(cond_scale)
        return wrapped(x, sigma)

    x = initial(plan)
    k_diffusion.sample_plan(model, x, plan, extra_args={"cond_scale": 7.0}, disable=True)
    assert seen == scales
    with pytest.raises(ValueError, match="guidance scale of its own .* but this model takes none"):
        k_diffusion.sample_plan(wrapped, x, plan, disable=True)


def test_what_no_plan_is_is_refused():
    with pytest.raises(ValueError, match="plan is a list, but a df.Plan or the path"):
        k_diffusion.sample_plan(wrapped, torch.zeros(1, 5), [1.0])
    flow = df.schedules.flow()
    with pytest.raises(ValueError, match="starts at alpha = 0, where x0 \\+ sigma eps has no"):
        k_diffusion.get_sigmas_plan(tuned(flow))


def test_a_stochastic_plan_draws_from_the_noise_sampler():
    plan = df.solvers.euler_ancestral(BETAS, df.grids.uniform_logsnr(BETAS, 4))
    asked = []

    def sampler(sigma, following):
        asked.append((float(sigma), float(following)))
        return torch.zeros(3, 5, dtype=torch.float64)

    k_diffusion.sample_plan(wrapped, initial(plan), plan, disable=True, noise_sampler=sampler)
    sigmas = k_diffusion.get_sigmas_plan(plan)
    assert [pair[0] for pair in asked] == pytest.approx(sigmas[: len(asked)].tolist(), rel=1e-6)


class Net:
    """Stands in for EDM's networks."""

    sigma_min, sigma_max = 0.0, float("inf")

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, class_labels=None):
        assert x.dtype == torch.float64 and sigma.dim() == 0
        return torch.tanh(x / (1.0 + sigma))


class Rounding(Net):
    def round_sigma(self, sigma):
        return torch.as_tensor(sigma).round()


def test_edm_sampler_runs_a_plan():
    plan = tuned(EDM)
    latents = initial(plan) / plan.initial_scale
    denoiser = df.Denoiser(lambda x, t: Net()(x, t[0]), EDM, "x0")
    want = df.sample(denoiser, plan, x=latents * plan.initial_scale).x
    torch.testing.assert_close(edm_sampler(Net(), latents, plan=plan), want)
    with pytest.raises(ValueError, match="S_churn = 4, but a plan is given beside it"):
        edm_sampler(Net(), latents, plan=plan, S_churn=4.0)
    with pytest.raises(ValueError, match="the plan tells the net .*, but the net's round_sigma"):
        edm_sampler(Rounding(), latents, plan=plan)


@pytest.fixture
def external(monkeypatch):
    """k_diffusion.external alone: its package imports torchvision, skimage and more."""
    found = importlib.util.find_spec("k_diffusion")
    for needed in ("scipy", "torchsde", "torchdiffeq"):
        if found is None or importlib.util.find_spec(needed) is None:
            pytest.skip(f"k-diffusion is not installed, or {needed}, which it needs, is not")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    stubs = {"torchvision": types.ModuleType("torchvision"), "k_diffusion": package}
    stubs["torchvision.transforms"] = types.ModuleType("torchvision.transforms")
    stubs["torchvision.transforms"].functional = None
    stubs["torchvision"].transforms = stubs["torchvision.transforms"]
    for name, module in stubs.items():
        monkeypatch.setitem(sys.modules, name, module)
    for part in ("utils", "sampling", "external"):
        monkeypatch.delitem(sys.modules, f"k_diffusion.{part}", raising=False)
    yield importlib.import_module("k_diffusion.external")
    for part in ("utils", "sampling", "external"):
        sys.modules.pop(f"k_diffusion.{part}", None)


def test_k_diffusions_own_wrapper_gives_the_samples_of_the_network_itself(external):
    products = torch.from_numpy(BETAS.alpha(np.arange(1000.0)) ** 2)
    model = external.DiscreteEpsDDPMDenoiser(network, products, quantize=False)
    plan = tuned(BETAS)
    want = df.sample(df.Denoiser(network, BETAS, "epsilon"), plan, x=initial(plan)).x
    got = k_diffusion.sample_plan(model, initial(plan) / alpha_at(plan), plan, disable=True)
    # the wrapper's levels are float32
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_plans_that_need_more_than_the_guided_estimate_are_refused():
    edm = df.schedules.edm(0.1, 10.0)
    plan = df.solvers.cfg_plus_plus(df.solvers.euler(edm, df.grids.karras(edm, 3)))
    x = torch.randn(1, 4) * 10
    with pytest.raises(
        ValueError, match="sample_plan: plan .* weighs d_uncond, the x0 estimate of"
    ):
        k_diffusion.sample_plan(lambda x, sigma: 0.5 * x, x, plan, disable=True)
    stages = df.plans.registers.Stages(edm, 10.0)
    stages.add(10.0, 0.0, {"d": 1.0, "g1": 0.1})
    with pytest.raises(ValueError, match="weighs g1, gradients of guidance terms, but this model"):
        k_diffusion.sample_plan(lambda x, sigma: 0.5 * x, x, stages.plan("pulled", 1), disable=True)
