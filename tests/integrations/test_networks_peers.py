"""Networks of azula, denoising_diffusion_pytorch, MONAI, sbi and torchcfm against their own loops.

Each test is skipped where its library is not installed; pip install "diffast[peers]" has them.
"""

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import diffast as df
from diffast.integrations import from_azula, from_lucidrains, from_monai, from_sbi


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Mlp(torch.nn.Module):
    """A small network of (x [B, D], t)."""

    def __init__(self, dims=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(dims + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, dims)
        )

    def forward(self, x, t, shift=None):
        t = t.reshape(-1, 1).to(x.dtype).expand(len(x), 1)
        answer = self.layers(torch.cat([x, t], 1))
        return answer if shift is None else answer + shift


# azula


@pytest.mark.parametrize(
    "name", ["VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule"]
)
@pytest.mark.parametrize("kind", ["SimpleDenoiser", "KarrasDenoiser"])
def test_azula_ddim(name, kind):
    noises = pytest.importorskip("azula.noise")
    denoise, sampler = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.sample")
    theirs = getattr(denoise, kind)(Mlp().double(), getattr(noises, name)()).double()
    x = noise(5, 3, dtype=torch.float64)
    wanted = sampler.DDIMSampler(theirs, steps=7, silent=True, dtype=torch.float64)(x)
    denoiser = from_azula(theirs)
    schedule = denoiser.schedule
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, 7))
    with torch.no_grad():
        got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


def test_azula_conditions():
    noises, denoise = pytest.importorskip("azula.noise"), pytest.importorskip("azula.denoise")
    theirs = denoise.SimpleDenoiser(Mlp(), noises.VPSchedule())
    shift = torch.full((4, 3), 0.5)
    x, t = noise(4, 3), torch.full((4,), 0.4)
    denoiser = from_azula(theirs, conditions={"shift": shift})
    with torch.no_grad():
        wanted = theirs(x, t, shift=shift).mean
        torch.testing.assert_close(denoiser.x0(x, 0.4), wanted)


# lucidrains


@pytest.fixture
def lucidrains(monkeypatch):
    """The package; where no torchvision is installed, which it loads but sampling does not use."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
            monkeypatch.setitem(sys.modules, name, MagicMock())
    return pytest.importorskip("denoising_diffusion_pytorch")


def lucid(package, objective, schedule, **given):
    torch.manual_seed(0)
    unet = package.Unet(dim=8, dim_mults=(1, 2), channels=1, flash_attn=False, **given)
    return package.GaussianDiffusion(
        unet,
        image_size=8,
        timesteps=100,
        sampling_timesteps=6,
        objective=objective,
        beta_schedule=schedule,
    ).eval()


@pytest.mark.parametrize(
    ("objective", "schedule"),
    [("pred_noise", "linear"), ("pred_x0", "cosine"), ("pred_v", "sigmoid"), ("pred_v", "linear")],
)
def test_lucidrains_ddim_sample(objective, schedule, lucidrains, monkeypatch):
    diffusion = lucid(lucidrains, objective, schedule)
    x = noise(2, 1, 8, 8)
    monkeypatch.setattr(torch, "randn", lambda *args, **options: x.clone())
    wanted = diffusion.ddim_sample((2, 1, 8, 8))
    monkeypatch.undo()
    denoiser = from_lucidrains(diffusion)
    times = torch.linspace(-1, 99, 7).int().flip(0)
    plan = df.solvers.euler(denoiser.schedule, times.double().numpy())
    with torch.no_grad():
        got = diffusion.unnormalize(df.sample(denoiser, plan, x=x, clamp=(-1, 1)).x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


def test_lucidrains_elucidated(lucidrains):
    package = lucidrains
    torch.manual_seed(0)
    unet = package.Unet(
        dim=8, dim_mults=(1, 2), channels=1, flash_attn=False, random_fourier_features=True
    )
    diffusion = package.ElucidatedDiffusion(unet, image_size=8, channels=1).eval()
    denoiser = from_lucidrains(diffusion)
    x = noise(2, 1, 8, 8) * 3
    with torch.no_grad():
        wanted = diffusion.preconditioned_network_forward(x, 3.0)
        torch.testing.assert_close(denoiser.x0(x, 3.0), wanted)


def test_lucidrains_self_condition_is_refused(lucidrains):
    with pytest.raises(ValueError, match="self-conditioned"):
        from_lucidrains(lucid(lucidrains, "pred_v", "linear", self_condition=True))


# MONAI


def monai_unet(**given):
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    return nets.DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(8, 8),
        attention_levels=(False, False),
        num_res_blocks=1,
        norm_num_groups=4,
        **given,
    ).eval()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_monai_ddim_steps(prediction):
    schedulers = pytest.importorskip("monai.networks.schedulers")
    network = monai_unet()
    theirs = schedulers.DDIMScheduler(
        1000, schedule="scaled_linear_beta", prediction_type=prediction, clip_sample=False
    )
    theirs.set_timesteps(10)
    denoiser = from_monai(network, theirs)
    x = noise(2, 1, 8, 8)
    for t in (999, 500, 120):
        plan = df.solvers.euler(denoiser.schedule, [t, t - 100])
        with torch.no_grad():
            output = network(x, timesteps=torch.full((2,), t))
            wanted, x0 = theirs.step(output, t, x)
            torch.testing.assert_close(denoiser.x0(x, t), x0, rtol=1e-4, atol=1e-4)
            got = df.sample(denoiser, plan, x=x).x
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_monai_rectified_flow():
    schedulers = pytest.importorskip("monai.networks.schedulers")
    network, theirs = monai_unet(), schedulers.RFlowScheduler(1000)
    theirs.set_timesteps(5)
    times = [*theirs.timesteps.tolist(), 0]
    x = noise(2, 1, 8, 8)
    wanted = x
    with torch.no_grad():
        for t, following in zip(times, times[1:], strict=False):
            output = network(wanted, timesteps=torch.full((2,), float(t)))
            wanted, _ = theirs.step(output, t, wanted, following)
        denoiser = from_monai(network, theirs)
        plan = df.solvers.euler(denoiser.schedule, np.array(times) / 1000)
        got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_monai_refuses_what_is_no_scheduler():
    with pytest.raises(ValueError, match="object has no num_train_timesteps"):
        from_monai(lambda x, timesteps: x, object())


# sbi


@pytest.fixture
def simulations(tmp_path, monkeypatch):
    """Parameters and observations, where sbi's logs are written and left."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sbi.inference")
    torch.manual_seed(0)
    theta = torch.rand(128, 2) * 4 - 2
    return theta, theta + 0.3 * torch.randn(128, 2)


def trained(kind, simulations, **given):
    inference = pytest.importorskip("sbi.inference")
    prior = torch.distributions.Independent(
        torch.distributions.Uniform(-2 * torch.ones(2), 2 * torch.ones(2)), 1
    )
    trainer = getattr(inference, kind)(prior, show_progress_bars=False, **given)
    trainer.append_simulations(*simulations)
    estimator = trainer.train(max_num_epochs=2, training_batch_size=64)
    return trainer.build_posterior(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vp", "ve", "subvp"])
def test_sbi_score_estimators(kind, simulations):
    posterior = trained("NPSE", simulations, sde_type=kind)
    estimator = posterior.vector_field_estimator
    x_o = torch.tensor([[0.5, -0.5]])
    denoiser = from_sbi(posterior, x_o)
    schedule = denoiser.schedule
    t = 0.5
    theta = noise(4, 2)
    with torch.no_grad():
        times = torch.full((4,), t)
        score = estimator(theta, x_o.expand(4, 2), times)
        mean, std = estimator.mean_t_fn(times), estimator.std_fn(times)
        wanted = (theta + std**2 * score) / mean  # Tweedie
        torch.testing.assert_close(denoiser.x0(theta, t), wanted, rtol=1e-4, atol=1e-4)
        plan = df.solvers.dpmpp_2m(schedule, df.grids.uniform_logsnr(schedule, 20))
        x = float(schedule.sigma(plan.start)) * noise(256, 2)
        fine = df.sample(denoiser, plan, x=x).x
        odeint = pytest.importorskip("torchdiffeq").odeint
        times = torch.from_numpy(np.geomspace(1.0, float(estimator.t_min), 200)).float()
        field = lambda s, y: estimator.ode_fn(y, x_o, s.expand(len(y)))  # noqa: E731
        ode = odeint(field, x, times, method="midpoint")[-1]
    assert float((fine - ode).square().mean().sqrt()) < 0.05 * float(ode.std())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sbi_flow_matching(simulations):
    posterior = trained("FMPE", simulations)
    estimator = posterior.vector_field_estimator
    x_o = torch.tensor([[0.5, -0.5]])
    posterior.set_default_x(x_o)
    denoiser = from_sbi(posterior)
    x = noise(64, 2)
    times = np.linspace(1.0, 0.0, 9)
    wanted = x
    with torch.no_grad():
        for t, following in zip(times, times[1:], strict=False):
            slope = estimator.ode_fn(wanted, x_o, torch.full((64,), t).float())
            wanted = wanted + (following - t) * slope
        plan = df.solvers.euler(denoiser.schedule, times)
        got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_sbi_refusals():
    with pytest.raises(ValueError, match="object has no ode_fn"):
        from_sbi(object())


# torchcfm and torchdiffeq: f(t, x)


def test_torchcfm_networks():
    models = pytest.importorskip("torchcfm.models.models")
    wrapper = pytest.importorskip("torchcfm.utils").torch_wrapper
    odeint = pytest.importorskip("torchdiffeq").odeint
    torch.manual_seed(0)
    field = wrapper(models.MLP(dim=2, time_varying=True))
    x = noise(6, 2)
    s = torch.linspace(0, 1, 8)
    with torch.no_grad():
        wanted = odeint(lambda t, y: field(t, y), x, s, method="euler")[-1]
        denoiser = df.Denoiser.from_velocity(field, call="t, x", time_shape="scalar")
        plan = df.solvers.euler(denoiser.schedule, 1 - s.double().numpy())
        got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
