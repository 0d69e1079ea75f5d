"""Pipelines that no code here knows by name: what is recorded of them runs a plan alike."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
import diffusers_pipelines as tiny  # noqa: E402
from tuned_plans import tuned  # noqa: E402

import diffast as df  # noqa: E402
from diffast.integrations.diffusers import accelerate, pipeline_denoiser  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
CALLS = 4


def text(negative=True):
    names = ["prompt_embeds", *["negative_prompt_embeds"] * negative]
    return {name: tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=n) for n, name in enumerate(names)}


def none(*parts):
    return dict.fromkeys(parts)


def pixart():
    """A transformer with a learned variance and masks; scheduler of the DPM family."""
    transformer = tiny.seeded(
        diffusers.PixArtTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=16,
        caption_channels=tiny.TEXT,
    )
    pipe = diffusers.PixArtAlphaPipeline(
        vae=tiny.autoencoder(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        **none("text_encoder", "tokenizer"),
    )
    masks = {
        f"{name}prompt_attention_mask": torch.ones(1, tiny.TOKENS) for name in ("", "negative_")
    }
    sizes = {"height": tiny.SIDE, "width": tiny.SIDE, "use_resolution_binning": False}
    return pipe, text() | masks | sizes | none("prompt", "negative_prompt")


def wan():
    """Video latents of five dimensions, a call for each branch, UniPC on a flow with a shift."""
    transformer = tiny.seeded(
        diffusers.WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=tiny.TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = tiny.seeded(
        diffusers.AutoencoderKLWan, base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, **none("tokenizer", "text_encoder")
    )
    return pipe, text() | {"height": 16, "width": 16, "num_frames": 5}


def inpainting():
    """A U-Net that is given a mask and the masked latents beside the latents."""
    config = {k: v for k, v in tiny.latent_network().config.items() if k[0] != "_"}
    network = tiny.seeded(diffusers.UNet2DConditionModel, **config | {"in_channels": 9})
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=tiny.autoencoder(),
        unet=network,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        requires_safety_checker=False,
        **none("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    )
    given = {"image": tiny.picture(), "mask_image": tiny.mask()}
    given["masked_image_latents"] = tiny.numbers(1, 4, tiny.SIDE // 2, tiny.SIDE // 2)
    return pipe, text() | given | {"height": tiny.SIDE, "width": tiny.SIDE}


@pytest.mark.parametrize("make", [pixart, wan, inpainting])
def test_the_last_latents_are_those_of_df_sample(make, monkeypatch):
    pipe, call = make()
    tiny.quiet(pipe)
    denoiser = pipeline_denoiser(pipe, [call])
    plan = tuned(denoiser.schedule, CALLS)
    accelerate(pipe, plan=plan, quiet=True)
    kind, steps = type(pipe.scheduler), []
    step = kind.step

    def watched(self, output, t, sample, *rest, **options):
        result = step(self, output, t, sample, *rest, **options)
        steps.append((sample.clone(), result[0].clone()))
        return result

    monkeypatch.setattr(kind, "step", watched)
    tiny.draw(pipe, num_inference_steps=CALLS, output_type="latent", **call)
    want = df.sample(denoiser, plan, x=steps[0][0]).x
    assert len(steps) == CALLS and float(want.std()) > 0.1
    torch.testing.assert_close(steps[-1][1], want, rtol=1e-4, atol=1e-4)


def test_a_pipeline_that_keeps_both_branches_in_its_state_is_refused():
    network = tiny.seeded(
        diffusers.DiTTransformer2DModel,
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipe = diffusers.DiTPipeline(network, tiny.autoencoder(), scheduler)
    with pytest.raises(ValueError, match="DiTPipeline changes the network's output by more than"):
        pipeline_denoiser(tiny.quiet(pipe), [{"class_labels": [1]}])
