"""accelerate(pipe) on real pipelines of diffusers: the same latents with the drop-in inside."""

import functools

import numpy as np
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
from diffusers_cases import CASES, FLOWS, ONE_OF_EACH, SD, Case  # noqa: E402
from diffusers_loop import difference, rounded_otherwise  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler, accelerate  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
TOLERANCE = 1e-4
STEPS = 5
# What the pipelines for latents can hand on: no arguments of set_timesteps, of those of step eta.
LATENT = [
    case
    for case in CASES
    if case not in FLOWS and not case.learned and not case.timing and set(case.stepping) <= {"eta"}
]
ONE_LATENT = [case for case in ONE_OF_EACH if case in LATENT]
# EDM's start elsewhere than these pipelines think; LMS: see test_diffusers_mended
FROM_PICTURES = [
    case for case in ONE_LATENT if not case.kind.startswith("EDM") and case.kind != "LMSDiscrete"
]
FLOW = [case for case in FLOWS if not case.timing]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def assert_same(pipe, case, **options):
    """The same call before and after accelerate, with the same seed."""
    pipe.scheduler = case.original()
    want = tiny.draw(pipe, **options)
    pipe.scheduler = case.original()  # the first has a run behind it
    report = accelerate(pipe)
    assert isinstance(pipe.scheduler, type(case.original()))
    assert f"{case.kind}Scheduler" in str(report)
    got = tiny.draw(pipe, **options)
    got, want = (torch.as_tensor(np.asarray(x)) for x in (got, want))
    gap = difference(got, want)
    if gap > TOLERANCE:
        bound = uncertainty(pipe, case, want, options)
        assert gap <= bound, (gap, bound)


def uncertainty(pipe, case, want, options):
    """How far the original's answer moves when what its steps are given is rounded otherwise.

    Eight times that, for a step rounds often. The network's answers are moved too: Heun's second
    slope is a difference of two latents, which loses digits that no rounding between steps shows.
    """
    gaps = []
    for seed in range(2):
        touch = rounded_otherwise(seed)
        pipe.scheduler = original = case.original()
        original.step = touched(original.step, touch)
        moved = tiny.draw(pipe, **options)
        gaps.append(difference(torch.as_tensor(np.asarray(moved)), want))
    return 8 * max(gaps)


def touched(step, touch):
    """A scheduler's step whose model output and sample are touched first."""

    @functools.wraps(step)  # pipelines look at its signature
    def with_touch(model_output, timestep, sample, *args, **options):
        return step(touch(model_output), timestep, touch(sample), *args, **options)

    return with_touch


def latent(case, **options):
    return {"num_inference_steps": STEPS, "output_type": "latent", **case.stepping, **options}


# "learned" needs a network that was: the square root of its answer is taken
@each([c for c in CASES if c.kind == "DDPM" and c.config.get("variance_type") != "learned"])
def test_ddpm(case):
    pipe = tiny.ddpm(case.learned)
    assert_same(pipe, case, batch_size=2, num_inference_steps=STEPS, output_type="np")


@each(LATENT)
def test_stable_diffusion(case):
    assert_same(tiny.stable_diffusion(), case, **latent(case), **tiny.guided())


@each(ONE_LATENT)
def test_pictures_too(case):
    options = latent(case, output_type="np", num_images_per_prompt=2, guidance_rescale=0.5)
    assert_same(tiny.stable_diffusion(), case, **options, **tiny.guided())


@pytest.mark.parametrize("strength", [0.5, 1.0])
@each(FROM_PICTURES)
def test_image_to_image(case, strength):
    pipe = tiny.stable_diffusion("StableDiffusionImg2ImgPipeline")
    options = latent(case, num_inference_steps=10, strength=strength, image=tiny.picture())
    assert_same(pipe, case, **options, **tiny.guided())


@each(FROM_PICTURES)
def test_inpainting(case):
    pipe = tiny.stable_diffusion("StableDiffusionInpaintPipeline")
    options = latent(case, num_inference_steps=10, strength=0.7)
    pictures = {"image": tiny.picture(), "mask_image": tiny.mask()}
    assert_same(pipe, case, **options, **pictures, **tiny.guided())


def test_custom_times():
    pipe = tiny.stable_diffusion()
    case = Case("", "EulerDiscrete", SD)
    for times in ({"timesteps": [999, 700, 300]}, {"sigmas": [14.0, 3.0, 0.5, 0.0]}):
        assert_same(pipe, case, output_type="latent", **times, **tiny.guided())


def pooled(**options):
    return {"pooled_prompt_embeds": tiny.numbers(1, tiny.TEXT, seed=5), **options}


@each(FLOW)
def test_stable_diffusion_3(case):
    negative = {"negative_pooled_prompt_embeds": tiny.numbers(1, tiny.TEXT, seed=6)}
    options = latent(case, height=tiny.SIDE, width=tiny.SIDE)
    assert_same(tiny.stable_diffusion_3(), case, **options, **tiny.guided(), **pooled(**negative))


# the pipeline makes the sigmas itself, and FlowMatchHeun takes none
@each(
    [
        *(case for case in FLOW if case.kind == "FlowMatchEulerDiscrete"),
        Case("mu", "FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}),
    ]
)
def test_flux(case):
    options = latent(case, height=tiny.SIDE, width=tiny.SIDE, guidance_scale=3.0)
    embeddings = {"prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=1)}
    assert_same(tiny.flux(), case, **options, **embeddings, **pooled())


@each(ONE_LATENT)
def test_callbacks_see_the_same(case):
    pipe, seen = tiny.stable_diffusion(), []

    def keep(pipe, index, timestep, tensors):
        seen.append((index, float(timestep), tensors["latents"].clone()))
        return tensors

    for change in (False, True):
        pipe.scheduler = case.original()
        if change:
            accelerate(pipe)
        tiny.draw(pipe, **latent(case, callback_on_step_end=keep), **tiny.guided())
    half = len(seen) // 2
    assert len(seen) == 2 * half > 0
    for want, got in zip(seen[:half], seen[half:], strict=True):
        assert got[0] == want[0]
        assert got[1] == pytest.approx(want[1], rel=1e-6)
        assert difference(got[2], want[2]) <= TOLERANCE


@each(ONE_LATENT)
def test_noise_by_counter(case):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = case.original()
    accelerate(pipe, noise="counter")
    one, again = (tiny.draw(pipe, **latent(case), **tiny.guided()) for _ in range(2))
    assert torch.isfinite(one).all()
    assert torch.equal(one, again)


@each([Case("multistep", "DPMSolverMultistep", SD), Case("euler", "EulerAncestralDiscrete", SD)])
def test_saved_and_loaded(case, tmp_path):
    pipe = tiny.stable_diffusion()
    pipe.scheduler = case.original()
    accelerate(pipe)
    want = tiny.draw(pipe, **latent(case), **tiny.guided())
    pipe.save_pretrained(tmp_path)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    again = tiny.quiet(diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, **absent))
    assert type(again.scheduler) is type(pipe.scheduler)
    assert torch.equal(tiny.draw(again, **latent(case), **tiny.guided()), want)
    # and back to diffusers' own
    again.scheduler = type(case.original()).from_config(again.scheduler.config)
    assert type(again.scheduler) is type(case.original())
    assert difference(tiny.draw(again, **latent(case), **tiny.guided()), want) <= TOLERANCE


def test_a_config_names_its_class(tmp_path):
    original = diffusers.UniPCMultistepScheduler(**SD)
    original.save_pretrained(tmp_path)
    config = diffusers.UniPCMultistepScheduler.load_config(tmp_path)
    assert isinstance(DiffastScheduler.from_config(config), diffusers.UniPCMultistepScheduler)


def test_accelerate_twice():
    pipe = tiny.stable_diffusion()
    pipe.scheduler = diffusers.DDIMScheduler(**SD)
    accelerate(pipe)
    first = type(pipe.scheduler)
    accelerate(pipe)
    assert type(pipe.scheduler) is first


def test_a_class_it_does_not_know():
    class Strange(diffusers.DDIMScheduler):
        def step(self, *args, **kwargs):
            raise NotImplementedError

    pipe = tiny.stable_diffusion()
    pipe.scheduler = kept = Strange()
    with pytest.raises(ValueError, match="Strange"):
        accelerate(pipe)
    assert pipe.scheduler is kept
