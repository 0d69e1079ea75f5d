"""`from_diffusers`: samples are those of diffusers' own loops, on tiny random networks."""

import numpy as np
import pytest
import torch

import diffast as df

diffusers = pytest.importorskip("diffusers")


def unet(**given):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=given.pop("out_channels", 3),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **given,
    ).eval()


def noise():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def loop(model, scheduler, x, steps):
    """The loop of a pipeline; x is N(0, 1)."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = model(given, t.expand(len(x)), return_dict=False)[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("as_config", [False, True])
def test_ddim_is_euler_on_its_times(prediction, as_config):
    model = unet()
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
    )
    wanted = loop(model, scheduler, noise(), 5)
    given = {**scheduler.config, "_class_name": "DDIMScheduler"} if as_config else scheduler
    denoiser = df.integrations.from_diffusers(model, given)
    schedule = denoiser.schedule
    plan = df.solvers.euler(schedule, df.grids.trailing(schedule, 5))
    got = df.sample(denoiser, plan, x=noise()).x
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_euler_with_scaled_input_is_the_same_network():
    """EulerDiscrete keeps x0 + sigma eps; the network and its betas are DDIM's."""
    model = unet()
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    denoiser = df.integrations.from_diffusers(model, scheduler)
    schedule = denoiser.schedule
    plan = df.solvers.euler(schedule, df.grids.trailing(schedule, 5))
    x = noise()
    scheduler.set_timesteps(5)
    sigma = float(scheduler.sigmas[0])
    got = df.sample(denoiser, plan, x=x * sigma / (1 + sigma**2) ** 0.5).x
    wanted = loop(model, scheduler, x * sigma / scheduler.init_noise_sigma, 5)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_a_learned_variance_is_left_out():
    model = unet(out_channels=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    denoiser = df.integrations.from_diffusers(model, scheduler)
    assert denoiser.x0(noise(), 500.0).shape == (2, 3, 8, 8)


def test_flow_match_transformer():
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    ).eval()
    text = {"encoder_hidden_states": torch.randn(1, 3, 16), "pooled_projections": torch.ones(1, 16)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 4, 8, 8)
    wanted = x
    both = {name: value.expand(2, *value.shape[1:]) for name, value in text.items()}
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = model(wanted, timestep=t.expand(2), return_dict=False, **both)[0]
            wanted = scheduler.step(output, t, wanted, return_dict=False)[0]
    denoiser = df.integrations.from_diffusers(model, scheduler, conditions=text)
    plan = df.solvers.euler(denoiser.schedule, scheduler.sigmas.double().numpy())
    with torch.no_grad():
        got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_edm_preconditioning():
    model = unet()
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(6)
    x = noise() * float(scheduler.sigmas[0])
    wanted = x
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            given = scheduler.scale_model_input(wanted, t)
            output = model(given, t.expand(2), return_dict=False)[0]
            wanted = scheduler.step(output, t, wanted, return_dict=False)[0]
            assert i < 6
    denoiser = df.integrations.from_diffusers(model, scheduler)
    plan = df.solvers.euler(denoiser.schedule, np.append(scheduler.sigmas.double()[:-1], 0.0))
    got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_half_networks_and_labels():
    model = unet(num_class_embeds=3).to(torch.bfloat16)
    denoiser = df.integrations.from_diffusers(
        model,
        diffusers.DDPMScheduler(),
        conditions={"class_labels": torch.tensor([0, 2])},
        dtype=torch.bfloat16,
    )
    schedule = denoiser.schedule
    plan = df.solvers.dpmpp_2m(schedule, df.grids.trailing(schedule, 3))
    assert df.sample(denoiser, plan, shape=(2, 3, 8, 8)).x.isfinite().all()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"num_train_timesteps": 10}, "_class_name is None, which is no class of diffusers"),
        (object(), "object has no config"),
    ],
)
def test_what_is_not_read_is_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        df.integrations.from_diffusers(lambda x, t: x, scheduler)
