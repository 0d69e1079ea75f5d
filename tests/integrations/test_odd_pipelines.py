"""Tiny pipelines of diffusers around schedulers that only they use: the same latents."""

import pytest
import torch

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
import diffusers_pipelines as tiny  # noqa: E402
from diffusers_loop import difference  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
TOLERANCE = 1e-4


def same(pipe, parts=("scheduler",), noise="generator", **call):
    """The call's result with the originals in those parts, and with their drop-ins."""
    tiny.quiet(pipe)
    originals = {part: getattr(pipe, part) for part in parts}
    wanted = torch.as_tensor(tiny.draw(pipe, **call))
    ours = {part: DiffastScheduler.from_scheduler(s, noise=noise) for part, s in originals.items()}
    for part, scheduler in ours.items():
        setattr(pipe, part, scheduler)
    found = torch.as_tensor(tiny.draw(pipe, **call))
    for part, scheduler in ours.items():
        assert scheduler._handed is None, (part, scheduler._handed)
        assert scheduler._run is not None, part
        setattr(pipe, part, originals[part])
    assert wanted.isfinite().all() and wanted.std() > 1e-3
    assert found.dtype == wanted.dtype
    return difference(found, wanted)


def cogvideo(scheduler):
    transformer = tiny.seeded(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=tiny.TEXT,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=tiny.TOKENS,
    )
    vae = tiny.seeded(
        diffusers.AutoencoderKLCogVideoX,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )


COGVIDEO = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["CogVideoXDDIM", "CogVideoXDPM"])
def test_cogvideo(kind, dtype):
    pipe = cogvideo(getattr(diffusers, f"{kind}Scheduler")(**COGVIDEO)).to(dtype)
    call = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in tiny.guided().items()}
    call |= {"height": 16, "width": 16, "num_frames": 9, "max_sequence_length": tiny.TOKENS}
    gap = same(pipe, num_inference_steps=4, output_type="latent", use_dynamic_cfg=True, **call)
    assert gap <= (TOLERANCE if dtype == torch.float32 else 0.03)


def cascade_network(**more):
    return tiny.seeded(
        diffusers.models.StableCascadeUNet,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
        switch_level=(False,),
        clip_text_pooled_in_channels=tiny.TEXT,
        dropout=(0.0, 0.0),
        **more,
    )


def text_encoder():
    config = transformers.CLIPTextConfig(
        hidden_size=tiny.TEXT,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=16,
        projection_dim=tiny.TEXT,
    )
    return tiny.seeded(transformers.CLIPTextModelWithProjection, config=config)


def pooled(names):
    return {name: tiny.numbers(1, 1, tiny.TEXT, seed=k) for k, name in enumerate(names)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_stable_cascade(dtype):
    # half networks are told half times, and so are their steps
    pipe = diffusers.StableCascadePriorPipeline(
        tokenizer=None,
        text_encoder=text_encoder(),  # its dtype is asked for
        prior=cascade_network(
            in_channels=16,
            out_channels=16,
            clip_image_in_channels=tiny.TEXT,
            clip_text_in_channels=tiny.TEXT,
        ),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        feature_extractor=None,
        image_encoder=None,
    ).to(dtype)
    names = ("prompt_embeds", "negative_prompt_embeds")
    call = {name: tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=k) for k, name in enumerate(names)}
    call |= pooled(("prompt_embeds_pooled", "negative_prompt_embeds_pooled"))
    call = {name: value.to(dtype) for name, value in call.items()}
    call |= {"height": 128, "width": 128, "num_inference_steps": 5, "output_type": "pt"}
    assert same(pipe, **call) <= (TOLERANCE if dtype == torch.float32 else 0.05)


def test_unclip():
    network = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "resnet_time_scale_shift": "scale_shift",
    }
    up = {
        "sample_size": 32,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "in_channels": 6,
        "out_channels": 3,
    }
    unclip = diffusers.UnCLIPScheduler
    pipe = diffusers.UnCLIPPipeline(
        prior=tiny.seeded(
            diffusers.PriorTransformer,
            num_attention_heads=2,
            attention_head_dim=4,
            embedding_dim=tiny.TEXT,
            num_layers=1,
            num_embeddings=tiny.TOKENS,
        ),
        decoder=tiny.seeded(
            diffusers.UNet2DConditionModel,
            sample_size=16,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            cross_attention_dim=tiny.TEXT,
            attention_head_dim=4,
            class_embed_type="identity",
            **network,
        ),
        text_encoder=None,
        tokenizer=None,
        text_proj=tiny.seeded(
            diffusers.pipelines.deprecated.unclip.UnCLIPTextProjModel,
            clip_embeddings_dim=tiny.TEXT,
            time_embed_dim=32,
            cross_attention_dim=tiny.TEXT,
        ),
        super_res_first=tiny.seeded(diffusers.UNet2DModel, **network, **up),
        super_res_last=tiny.seeded(diffusers.UNet2DModel, **network, **up),
        prior_scheduler=unclip(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=unclip(variance_type="learned_range"),
        super_res_scheduler=unclip(),
    )
    text = tiny.numbers(1, tiny.TEXT, seed=1), tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=2)
    gap = same(
        pipe,
        ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"),
        text_model_output=text,
        text_attention_mask=torch.ones(1, tiny.TOKENS, dtype=torch.bool),
        prior_num_inference_steps=4,
        decoder_num_inference_steps=4,
        super_res_num_inference_steps=3,
        prior_guidance_scale=1.0,
        decoder_guidance_scale=1.0,
        output_type="np",
    )
    assert gap <= TOLERANCE


def test_sana_sprint():
    transformer = tiny.seeded(
        diffusers.SanaTransformer2DModel,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=tiny.TEXT,
        sample_size=4,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    pipe = diffusers.SanaSprintPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=diffusers.SCMScheduler(),
    )
    call = {
        "prompt_embeds": tiny.numbers(2, tiny.TOKENS, tiny.TEXT, seed=1),
        "prompt_attention_mask": torch.ones(2, tiny.TOKENS),
        "height": 128,
        "width": 128,
        "use_resolution_binning": False,
        "output_type": "latent",
    }
    assert same(pipe, num_inference_steps=2, **call) <= TOLERANCE
    assert same(pipe, num_inference_steps=4, intermediate_timesteps=None, **call) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_repaint(eta):
    pipe = diffusers.RePaintPipeline(tiny.pixel_network(False), diffusers.RePaintScheduler())
    gap = same(
        pipe,
        image=2.0 * tiny.picture()[..., :16, :16] - 1.0,
        mask_image=tiny.mask()[..., 8:24, 8:24],
        num_inference_steps=6,
        eta=eta,
        jump_length=2,
        jump_n_sample=2,
        output_type="np",
    )
    assert gap <= TOLERANCE


@pytest.mark.parametrize("kind", ["TCD", "DDIMParallel", "DDPMParallel"])
def test_stable_diffusion(kind):
    for name in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"):
        pipe = tiny.stable_diffusion(name)
        before = pipe.scheduler
        pipe.scheduler = getattr(diffusers, f"{kind}Scheduler")(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        )
        image = {"image": tiny.picture(), "strength": 0.6} if "Img2Img" in name else {}
        call = tiny.guided() | image | {"num_inference_steps": 5, "output_type": "latent"}
        if kind != "DDPMParallel":
            call["eta"] = 0.4
        gap = same(pipe, **call)
        pipe.scheduler = before
        assert gap <= TOLERANCE, name


def test_inversion_and_back():
    # DDIM with the inverse scheduler, then without: pictures and noises as the originals' are
    network = tiny.pixel_network(False)
    ends = []
    for wrap in (lambda s: s, DiffastScheduler.from_scheduler):
        options = {"clip_sample": False, "timestep_spacing": "trailing"}
        there = wrap(diffusers.DDIMInverseScheduler(**options))
        back = wrap(diffusers.DDIMScheduler(**options))
        x = 2.0 * tiny.picture()[..., :16, :16] - 1.0
        with torch.no_grad():
            for scheduler in (there, back):
                scheduler.set_timesteps(8)
                for t in scheduler.timesteps:
                    x = scheduler.step(network(x, t).sample, t, x).prev_sample
                ends.append(x)
    assert difference(ends[2], ends[0]) <= TOLERANCE
    assert difference(ends[3], ends[1]) <= TOLERANCE
