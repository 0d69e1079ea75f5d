"""Pipelines of diffusers with the schedulers that fewer people use: the same before and after."""

import diffusers
import pytest
import torch

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have:UserWarning:torchsde"),  # a tree's ends
    pytest.mark.filterwarnings("error::diffast.integrations.handed_over.HandedOverWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers_pipelines as tiny  # noqa: E402
from diffusers_loop import difference  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler, accelerate  # noqa: E402

diffusers.utils.logging.set_verbosity_error()


def assert_same(pipe, make, bound=1e-4, **options):
    """The same call with the original and with the drop-in, all generators seeded anew."""
    pipe.scheduler = make()
    want = torch.as_tensor(tiny.draw(pipe, **options))
    pipe.scheduler = make()
    accelerate(pipe, quiet=True)
    assert isinstance(pipe.scheduler, DiffastScheduler)
    got = torch.as_tensor(tiny.draw(pipe, **options))
    assert torch.isfinite(want).all()
    assert difference(got, want) <= bound


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT = {
    "KDPM2Ancestral": lambda: diffusers.KDPM2AncestralDiscreteScheduler(**SD),
    "DPMSolverSDE": lambda: diffusers.DPMSolverSDEScheduler(**SD, noise_sampler_seed=4),
    "DPMSolverSDE-karras": lambda: diffusers.DPMSolverSDEScheduler(
        **SD, use_karras_sigmas=True, noise_sampler_seed=4
    ),
    "IPNDM": lambda: diffusers.IPNDMScheduler(),
    "CMStochasticIterative": lambda: diffusers.CMStochasticIterativeScheduler(),
}


@pytest.mark.parametrize("make", LATENT.values(), ids=LATENT)
def test_stable_diffusion(make):
    options = {"num_inference_steps": 6, "output_type": "latent", **tiny.guided()}
    assert_same(tiny.stable_diffusion(), make, **options)


@pytest.mark.parametrize("name", ["KDPM2Ancestral", "DPMSolverSDE"])
def test_image_to_image(name):
    options = {"num_inference_steps": 8, "strength": 0.6, "image": tiny.picture()}
    pipe = tiny.stable_diffusion("StableDiffusionImg2ImgPipeline")
    assert_same(pipe, LATENT[name], output_type="latent", **options, **tiny.guided())


def test_a_consistency_model():
    pipe = diffusers.ConsistencyModelPipeline(
        tiny.pixel_network(False), diffusers.CMStochasticIterativeScheduler()
    )
    for times in ({"num_inference_steps": 1}, {"timesteps": [22, 0], "num_inference_steps": None}):
        make = diffusers.CMStochasticIterativeScheduler
        assert_same(tiny.quiet(pipe), make, output_type="np", batch_size=2, **times)


@pytest.mark.parametrize("name", ["KarrasVe", "ScoreSdeVe"])
def test_a_network_of_pixels(name):
    make = getattr(diffusers, f"{name}Scheduler")
    pipe = getattr(diffusers, f"{name}Pipeline")(tiny.pixel_network(False), make())
    # float32 determines these to a rounding of their start: 100 and 1348 times a picture
    bound = 1e-3
    assert_same(tiny.quiet(pipe), make, bound, num_inference_steps=12, output_type="np")


def test_dance_diffusion():
    network = tiny.seeded(
        diffusers.UNet1DModel,
        block_out_channels=(32, 32, 64),
        extra_in_channels=64,
        sample_size=512,
        sample_rate=16_000,
        in_channels=2,
        out_channels=2,
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )
    pipe = diffusers.DanceDiffusionPipeline(network, diffusers.IPNDMScheduler())
    # the pipeline writes scheduler.timesteps, cast to the network's type, before the first step
    assert_same(tiny.quiet(pipe), diffusers.IPNDMScheduler, num_inference_steps=6)


def test_stable_audio():
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    transformer = tiny.seeded(
        diffusers.StableAudioDiTModel,
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    vae = tiny.seeded(
        diffusers.AutoencoderOobleck,
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    projection = tiny.seeded(
        StableAudioProjectionModel,
        text_encoder_dim=4,
        conditioning_dim=4,
        min_value=0,
        max_value=32,
    )
    pipe = diffusers.StableAudioPipeline(
        vae=vae,
        text_encoder=None,
        projection_model=projection,
        tokenizer=None,
        transformer=transformer,
        scheduler=diffusers.CosineDPMSolverMultistepScheduler(),
    )
    ones = torch.ones(1, tiny.TOKENS, dtype=torch.int64)
    options = {
        "prompt_embeds": tiny.numbers(1, tiny.TOKENS, 4, seed=1),
        "negative_prompt_embeds": tiny.numbers(1, tiny.TOKENS, 4, seed=2),
        "attention_mask": ones,
        "negative_attention_mask": ones,
        "audio_end_in_s": 1.0,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    make = diffusers.CosineDPMSolverMultistepScheduler
    assert_same(tiny.quiet(pipe), lambda: make(solver_order=2), **options)


def ltx(name="LTXPipeline", scheduler=None):
    transformer = tiny.seeded(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=tiny.TEXT,
    )
    vae = tiny.seeded(
        diffusers.AutoencoderKLLTXVideo,
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return tiny.quiet(
        getattr(diffusers, name)(
            scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
        )
    )


def video(frames=9):
    mask = torch.ones(1, tiny.TOKENS, dtype=torch.bool)
    return {
        "prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=1),
        "negative_prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=2),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "height": 32,
        "width": 32,
        "num_frames": frames,
        "output_type": "latent",
        "num_inference_steps": 4,
    }


def test_flow_match_lcm_on_ltx():
    assert_same(ltx(), lambda: diffusers.FlowMatchLCMScheduler(shift=2.0), **video())


def encoded(pipe):
    """The pipeline with prompts that are numbers already."""
    mask = torch.ones(1, tiny.TOKENS, dtype=torch.bool)
    one, two = (tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=s) for s in (1, 2))
    pipe.encode_prompt = lambda *args, **more: (one, mask, two, mask)
    return pipe


@pytest.mark.parametrize(
    "times",
    [{"num_inference_steps": 4}, {"sigmas": [1.0, 0.9, 0.6, 0.3, 0.0]}],
    ids=["steps", "sigmas"],
)
def test_ltx_long_videos(times):
    make = lambda: diffusers.LTXEulerAncestralRFScheduler(eta=0.8)  # noqa: E731
    pipe = encoded(ltx("LTXI2VLongMultiPromptPipeline", make()))
    options = {"prompt": "x", "height": 32, "width": 32, "num_frames": 17, "guidance_scale": 2.0}
    # tiles of latent frames, each denoised by a run of its own with the one before as condition
    options |= {"temporal_tile_size": 16, "temporal_overlap": 8, **times}
    assert_same(pipe, make, **options)


def test_inversion():
    # as DiffEdit inverts: the network's noise estimate at each level, upwards
    pipe = tiny.stable_diffusion()
    embeds = tiny.guided()["prompt_embeds"]
    results = []
    original = diffusers.DPMSolverMultistepInverseScheduler(**SD)
    for scheduler in (original, DiffastScheduler.from_scheduler(original)):
        scheduler.set_timesteps(7)
        x = tiny.numbers(1, 4, 16, 16, seed=5)
        with torch.no_grad():
            for t in scheduler.timesteps:
                seen = scheduler.scale_model_input(x, t)
                out = pipe.unet(seen, t, encoder_hidden_states=embeds).sample
                x = scheduler.step(out, t, x).prev_sample
        results.append(x)
    assert difference(results[1], results[0]) <= 1e-4
