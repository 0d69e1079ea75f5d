"""Real pipelines that share a scheduler, change it, or keep latents in another dtype."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
import diffusers_pipelines as tiny  # noqa: E402
from diffusers_cases import LEADING, ONE_OF_EACH, SD, Case  # noqa: E402
from diffusers_loop import difference  # noqa: E402
from test_more_pipelines import wan  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler, accelerate, accelerated  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
TOLERANCE = 1e-4
SHARED = [
    Case("PNDM-sd", "PNDM", {**LEADING, "skip_prk_steps": True}),
    Case("Euler-sd", "EulerDiscrete", SD),
    Case("UniPC-sd", "UniPCMultistep", SD),
]
REST = [c for c in ONE_OF_EACH if c.kind in ("DDIM", "DPMSolverMultistep", "DEISMultistep")]


@pytest.mark.parametrize(
    "case", [*SHARED, *(pytest.param(c, marks=pytest.mark.slow) for c in REST)], ids=lambda c: c.id
)
def test_image_to_image_then_text_to_image(case):
    """What one pipeline tells a scheduler must not stay for the other."""
    results = []
    for change in (False, True):
        words = copy.copy(tiny.stable_diffusion())
        words.scheduler = case.original()
        if change:
            accelerate(words, quiet=True)
        picture = tiny.quiet(
            diffusers.StableDiffusionImg2ImgPipeline(
                **words.components, requires_safety_checker=False
            )
        )
        assert picture.scheduler is words.scheduler
        options = {"output_type": "latent", **tiny.guided()}
        found = []
        for _ in range(2):
            start = {"image": tiny.picture(), "strength": 0.6, "num_inference_steps": 8}
            found.append(tiny.draw(picture, **start, **options))
            found.append(tiny.draw(words, num_inference_steps=6, **options))
        words.scheduler.config.use_karras_sigmas = True  # by attribute, between two runs
        found.append(tiny.draw(words, num_inference_steps=6, **options))
        results.append(found)
    for want, got in zip(*results, strict=True):
        assert difference(got, want) <= TOLERANCE


@pytest.mark.slow
def test_float32_latents_of_a_half_network():
    pipe, call = wan()
    tiny.quiet(pipe).to(torch.bfloat16)
    call = {name: v.bfloat16() if torch.is_tensor(v) else v for name, v in call.items()}
    latents = tiny.numbers(1, 16, 2, 2, 2, seed=7)
    original = pipe.scheduler
    options = {"num_inference_steps": 6, "output_type": "latent", "latents": latents, **call}
    want = tiny.draw(pipe, **options)
    pipe.scheduler = type(original).from_config(original.config)
    with accelerated(pipe):
        assert isinstance(pipe.scheduler, DiffastScheduler)
        got = tiny.draw(pipe, **options)
    assert got.dtype == want.dtype
    assert difference(got, want) <= 8 * torch.finfo(torch.bfloat16).eps
