"""Pipelines of diffusers around tiny networks with random weights, made on the spot."""

from functools import cache

import diffusers
import numpy as np
import torch

SIDE = 32  # pixels; latents are half of it
TEXT = 8  # numbers a token
TOKENS = 5


def seeded(make, **config):
    """The network of a config, with the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**config).eval()


def autoencoder(channels=4):
    return seeded(
        diffusers.AutoencoderKL,
        block_out_channels=(8, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        shift_factor=0.1,
    )


def pixel_network(learned):
    return seeded(
        diffusers.UNet2DModel,
        sample_size=16,
        in_channels=3,
        out_channels=6 if learned else 3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )


def latent_network():
    return seeded(
        diffusers.UNet2DConditionModel,
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=TEXT,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


@cache
def ddpm(learned=False):
    return quiet(diffusers.DDPMPipeline(pixel_network(learned), diffusers.DDPMScheduler()))


@cache
def stable_diffusion(name="StableDiffusionPipeline"):
    """StableDiffusionPipeline, ...Img2ImgPipeline or ...InpaintPipeline, prompts as embeddings."""
    return quiet(
        getattr(diffusers, name)(
            vae=autoencoder(),
            text_encoder=None,
            tokenizer=None,
            unet=latent_network(),
            scheduler=diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


@cache
def stable_diffusion_3():
    transformer = seeded(
        diffusers.SD3Transformer2DModel,
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        out_channels=4,
        pos_embed_max_size=SIDE,
    )
    texts = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=autoencoder(),
            **texts,
        )
    )


@cache
def flux():
    transformer = seeded(
        diffusers.FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    )
    texts = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2")}
    return quiet(
        diffusers.FluxPipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=autoencoder(),
            **texts,
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture():
    """[1, 3, SIDE, SIDE] in [0, 1]."""
    return torch.sigmoid(numbers(1, 3, SIDE, SIDE, seed=4))


def mask():
    """The left half is to be painted."""
    return torch.from_numpy(np.arange(SIDE) < SIDE // 2).float().expand(1, 1, SIDE, SIDE).clone()


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def guided():
    """A prompt and its negative, as embeddings."""
    return {
        "prompt_embeds": numbers(1, TOKENS, TEXT, seed=1),
        "negative_prompt_embeds": numbers(1, TOKENS, TEXT, seed=2),
        "guidance_scale": 3.0,
    }


def draw(pipe, **options):
    """The pictures or latents of one call, all generators seeded anew.

    Not all pipelines hand theirs to step, which then draws from torch's own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return pipe(generator=generator(), **options)[0]
