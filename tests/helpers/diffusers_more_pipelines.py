"""Further tiny pipelines of diffusers: video, two networks, two pipelines in one."""

from types import SimpleNamespace

import diffusers
import torch
import transformers
from diffusers_pipelines import (
    SIDE,
    TEXT,
    TOKENS,
    autoencoder,
    guided,
    numbers,
    picture,
    quiet,
    seeded,
)

from diffast.integrations.diffusers import DiffastScheduler, accelerate

FRAMES = 5


def compared(pipe, run, **options):
    """(what the pipeline draws, what it draws accelerated, its drop-ins, the report).

    The pipeline is left as it was, and it has to draw the same thing once more then.
    """
    quiet(pipe)
    before = {name: part for name, part in pipe.components.items() if _is_scheduler(part)}
    want = run()
    report = accelerate(pipe, quiet=True, **options)
    ours = {name: pipe.components[name] for name in before}
    got = run()
    accelerate(pipe, undo=True, quiet=True)
    assert all(pipe.components[name] is part for name, part in before.items())
    assert torch.equal(torch.as_tensor(run()), torch.as_tensor(want))
    assert all(isinstance(part, DiffastScheduler) for part in ours.values())
    return want, got, ours, report


def _is_scheduler(part):
    return isinstance(part, diffusers.SchedulerMixin)


class Unasked:
    """In the place of a checker of pictures and prompts: latents and embeddings are not checked."""

    def to(self, device):
        """Nothing of it is on a device."""


# --- SDXL ---------------------------------------------------------------------------------------


def xl_network(numbers_of_time):
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
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * numbers_of_time + TEXT,
    )


def xl_base_and_refiner(scheduler):
    """StableDiffusionXLPipeline and ...Img2ImgPipeline that share one scheduler object."""
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    base = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(), unet=xl_network(6), scheduler=scheduler, **nothing, add_watermarker=False
    )
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        unet=xl_network(5),
        scheduler=scheduler,
        requires_aesthetics_score=True,
        add_watermarker=False,
        **nothing,
    )
    return quiet(base), quiet(refiner)


def xl_text():
    pooled = {
        "pooled_prompt_embeds": numbers(1, TEXT, seed=5),
        "negative_pooled_prompt_embeds": numbers(1, TEXT, seed=6),
    }
    return guided() | pooled


ENCODER = {
    "hidden_size": TEXT,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": TEXT,
}


def vision_config():
    return transformers.CLIPVisionConfig(image_size=8, patch_size=4, **ENCODER)


# --- Kandinsky 2.2 ------------------------------------------------------------------------------


class Letters:
    """A tokenizer: one number a letter."""

    model_max_length = TOKENS
    added_tokens_encoder = {}
    tokenize = list

    def __call__(self, prompts, padding, return_tensors, **options):
        prompts = [prompts] if isinstance(prompts, str) else prompts
        ids = [[ord(letter) % 13 + 1 for letter in each[:TOKENS]] for each in prompts]
        size = TOKENS if padding == "max_length" else max(map(len, ids))
        masks = [[1] * len(each) + [0] * (size - len(each)) for each in ids]
        ids = [each + [0] * (size - len(each)) for each in ids]
        return SimpleNamespace(
            input_ids=torch.tensor(ids).reshape(len(ids), size),
            attention_mask=torch.tensor(masks).reshape(len(ids), size),
        )


def text_config():
    return transformers.CLIPTextConfig(
        vocab_size=16,
        max_position_embeddings=TOKENS,
        bos_token_id=None,
        eos_token_id=15,
        **ENCODER,
    )


def kandinsky():
    """KandinskyV22CombinedPipeline: a prior and a decoder, with a scheduler each."""
    prior = seeded(
        diffusers.PriorTransformer,
        num_attention_heads=2,
        attention_head_dim=4,
        embedding_dim=TEXT,
        num_layers=1,
        num_embeddings=TOKENS,
    )
    unet = seeded(
        diffusers.UNet2DConditionModel,
        in_channels=4,
        out_channels=8,  # the upper half is the variance
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=TEXT,
        encoder_hid_dim=TEXT,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    movq = seeded(
        diffusers.VQModel,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        num_vq_embeddings=8,
    )
    learned = {"variance_type": "learned_range", "clip_sample": False}
    return diffusers.KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=diffusers.DDPMScheduler(**learned, beta_start=0.00085, beta_end=0.012),
        movq=movq,
        prior_prior=prior,
        prior_image_encoder=seeded(
            transformers.CLIPVisionModelWithProjection, config=vision_config()
        ),
        prior_text_encoder=seeded(transformers.CLIPTextModelWithProjection, config=text_config()),
        prior_tokenizer=Letters(),
        prior_scheduler=diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample=True,
            clip_sample_range=5.0,
        ),
        prior_image_processor=transformers.CLIPImageProcessorPil(),
    )


# --- video --------------------------------------------------------------------------------------


def cosmos_network():
    return seeded(
        diffusers.CosmosTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=1,
        text_embed_dim=TEXT,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,  # else it asks for torchvision
    )


def wan_autoencoder():
    return seeded(diffusers.AutoencoderKLWan, base_dim=3, dim_mult=[1] * 4, num_res_blocks=1)


def cosmos_world():
    """CosmosTextToWorldPipeline: an EDM scheduler that steps twice a time step."""
    vae = seeded(
        diffusers.AutoencoderKLCosmos,
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras"
    )
    pipe = diffusers.CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=cosmos_network(),
        vae=vae,
        scheduler=scheduler,
        safety_checker=Unasked(),
    )
    return pipe, guided() | {"height": 32, "width": 32, "num_frames": 9}


def cosmos_picture():
    """Cosmos2TextToImagePipeline: EDM levels on a flow scheduler, whose last one is written."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipe = diffusers.Cosmos2TextToImagePipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=cosmos_network(),
        vae=wan_autoencoder(),
        scheduler=scheduler,
        safety_checker=Unasked(),
    )
    return pipe, guided() | {"height": 32, "width": 32}


def ltx_condition(scheduler):
    """LTXConditionPipeline: every token has a time of its own."""
    transformer = seeded(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=TEXT,
    )
    vae = seeded(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    pipe = diffusers.LTXConditionPipeline(
        scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer
    )
    masks = {f"{n}prompt_attention_mask": torch.ones(1, TOKENS) for n in ("", "negative_")}
    return pipe, guided() | masks | {"height": 64, "width": 64, "num_frames": 9}


def chronoedit(scheduler):
    """ChronoEditPipeline: frames are dropped in the middle of a run, histories with them."""
    transformer = seeded(
        diffusers.ChronoEditTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        image_dim=TEXT,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
    )
    pipe = diffusers.ChronoEditPipeline(
        tokenizer=None,
        text_encoder=None,
        image_encoder=seeded(transformers.CLIPVisionModel, config=vision_config()),
        image_processor=transformers.CLIPImageProcessorPil(size=8, crop_size=8),
        transformer=transformer,
        vae=wan_autoencoder(),
        scheduler=scheduler,
    )
    call = guided() | {"image": picture()[..., :16, :16], "height": 16, "width": 16}
    return pipe, call | {"num_frames": 13}


def animatediff(scheduler):
    """AnimateDiffPipeline: a U-Net with motion modules."""
    channels = (8, 16)
    unet = seeded(
        diffusers.UNet2DConditionModel,
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=TEXT,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    motion = seeded(
        diffusers.MotionAdapter,
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=autoencoder(),
        text_encoder=seeded(transformers.CLIPTextModel, config=text_config()),
        tokenizer=Letters(),
        unet=unet,
        motion_adapter=motion,
        scheduler=scheduler,
    )
    return quiet(pipe), guided() | {"height": 16, "width": 16}


def skyreels(scheduler):
    """SkyReelsV2DiffusionForcingPipeline: each frame has a copy of the scheduler."""
    transformer = seeded(
        diffusers.SkyReelsV2Transformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        inject_sample_info=True,
        rope_max_seq_len=32,
    )
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=wan_autoencoder(),
        scheduler=scheduler,
    )
    return pipe, guided() | {"height": 16, "width": 16, "num_frames": 17, "prompt": None}
