"""Pipelines that write to their scheduler, share it, copy it or have two: the same pictures."""

import copy
import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
import diffusers_more_pipelines as more  # noqa: E402
import diffusers_pipelines as tiny  # noqa: E402
from diffusers_cases import SD  # noqa: E402
from diffusers_loop import difference  # noqa: E402
from test_more_pipelines import wan  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler, accelerate  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
TOLERANCE = 1e-4
HALF = 8 * torch.finfo(torch.bfloat16).eps
LATENT = {"output_type": "latent", "num_inference_steps": 6}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def scheduler_of(kind, **options):
    return getattr(diffusers, f"{kind}Scheduler")(**options)


def gap(want, got):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert want.isfinite().all() and want.std() > 1e-2
    return difference(got, want)


def check(pipe, call, handed=None, tolerance=TOLERANCE):
    """The same result; `handed` is why the original's code has run, None: fused steps have."""
    want, got, ours, _ = more.compared(pipe, lambda: tiny.draw(pipe, **call))
    assert gap(want, got) <= tolerance
    for scheduler in ours.values():
        why = scheduler._handed
        assert why is None if handed is None else handed in why
    return want


def halved(pipe, call):
    """A half-precision network and what it is told; the latents stay as the pipeline makes them."""
    pipe.to(torch.bfloat16)
    return {
        name: value.bfloat16() if torch.is_tensor(value) and "prompt_embeds" in name else value
        for name, value in call.items()
    }


@pytest.mark.parametrize("kind", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "PNDM"])
@pytest.mark.parametrize("shared", [True, False], ids=["one object", "one config"])
def test_sdxl_base_and_refiner(kind, shared):
    """The base ends early, the refiner goes on there, and neither leaves a trace for the next."""
    options = SD | ({"skip_prk_steps": True} if kind == "PNDM" else {})
    call = more.xl_text() | {"num_inference_steps": 8, "output_type": "latent"}
    results = []
    for change in (False, True):
        base, refiner = more.xl_base_and_refiner(scheduler_of(kind, **options))
        if not shared:
            refiner.scheduler = type(base.scheduler).from_config(base.scheduler.config)
        if change and shared:
            # both pipelines at once, as one in a dict: one drop-in for the one object
            holder = diffusers.DiffusionPipeline.__new__(diffusers.DiffusionPipeline)
            vars(holder)["both"] = {"base": base, "refiner": refiner}
            accelerate(holder, quiet=True)
            assert base.scheduler is refiner.scheduler
        elif change:
            accelerate(base, quiet=True)
            # as people make one scheduler from another's config
            refiner.scheduler = type(base.scheduler).from_config(base.scheduler.config)
        if change:
            assert all(isinstance(p.scheduler, DiffastScheduler) for p in (base, refiner))
        found = []
        for _ in range(2):
            found.append(tiny.draw(base, denoising_end=0.7, **call))
            found.append(tiny.draw(refiner, image=found[-1], denoising_start=0.7, **call))
        found.append(tiny.draw(base, **call))
        found.append(tiny.draw(refiner, image=tiny.picture(), strength=0.5, **call))
        results.append(found)
    assert base.scheduler._handed is None and refiner.scheduler._handed is None
    assert max(gap(*pair) for pair in zip(*results, strict=True)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_kandinsky_combined(kind):
    pipe = more.kandinsky()
    if kind == "DDIM":
        pipe.scheduler = scheduler_of(kind, clip_sample=False)
        pipe.decoder_pipe.scheduler = pipe.scheduler
    call = {"prompt": "a dog", "height": 64, "width": 64, "output_type": "pt"}
    call |= {"num_inference_steps": 5, "prior_num_inference_steps": 4}
    inner = pipe.prior_pipe.scheduler, pipe.decoder_pipe.scheduler
    want, got, ours, report = more.compared(pipe, lambda: tiny.draw(pipe, **call))
    assert gap(want, got) <= TOLERANCE
    assert {name for name, _, _ in report.replaced} == {
        "scheduler",
        "prior_scheduler",
        "prior_pipe.scheduler",
        "decoder_pipe.scheduler",
    }
    for scheduler in ours.values():  # the pipelines inside have run these very ones
        assert scheduler._handed is None and scheduler._run.ended
    assert (pipe.prior_pipe.scheduler, pipe.decoder_pipe.scheduler) == inner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cosmos_text_to_world(dtype):
    """Each time step is taken twice, for x0 of both branches and for the latents."""
    pipe, call = more.cosmos_world()
    if dtype != torch.float32:
        call = halved(pipe, call)
    check(pipe, call | LATENT, tolerance=TOLERANCE if dtype == torch.float32 else HALF)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cosmos_predict2_text_to_image(dtype):
    """EDM's levels, from 80 on, on a scheduler for flows; the pipeline writes the last of them."""
    pipe, call = more.cosmos_picture()
    if dtype != torch.float32:
        call = halved(pipe, call)
    tolerance = TOLERANCE if dtype == torch.float32 else HALF
    check(pipe, call | LATENT, handed="80.0", tolerance=tolerance)
    sigmas = pipe.scheduler.sigmas
    assert sigmas[0] == 80.0 and sigmas[-1] == sigmas[-2] > 0


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("strength", [None, 0.7, 1.0])
def test_ltx_condition(strength, stochastic):
    """Each token has its own time; those of the given frame stand at the strength's."""
    scheduler = scheduler_of("FlowMatchEulerDiscrete", stochastic_sampling=stochastic)
    pipe, call = more.ltx_condition(scheduler)
    if strength is not None:
        image = tiny.numbers(1, 3, 64, 64, seed=4).sigmoid()
        call |= {"image": image, "strength": strength, "image_cond_noise_scale": 0.1}
    check(pipe, call | LATENT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_chronoedit_drops_frames(dtype):
    pipe, call = more.chronoedit(scheduler_of("UniPCMultistep", **FLOW))
    if dtype != torch.float32:
        call = halved(pipe, call)
    tolerance = TOLERANCE if dtype == torch.float32 else HALF
    whole = check(pipe, call | LATENT | {"enable_temporal_reasoning": False}, None, tolerance)
    call |= {"enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 3}
    cut = check(pipe, call | LATENT, "model_outputs was read between two steps", tolerance)
    assert whole.shape == cut.shape and not torch.equal(whole, cut)


@pytest.mark.parametrize("kind", ["UniPCMultistep", "DPMSolverMultistep"])
def test_wan_keeps_float32_latents_for_a_half_network(kind):
    """The pipeline makes them in float32, and the scheduler never rounds them to the network's."""
    pipe, call = wan()
    pipe.scheduler = scheduler_of(kind, **FLOW)
    call = halved(pipe, call)
    assert check(pipe, call | LATENT, tolerance=HALF).dtype == torch.float32


FREE = ["DDIM", "EulerDiscrete", "DPMSolverMultistep"]


@pytest.mark.parametrize("kind", FREE)
def test_animatediff_with_free_noise(kind):
    pipe, call = more.animatediff(scheduler_of(kind, beta_schedule="linear"))
    pipe.enable_free_noise(context_length=4, context_stride=2)
    size = {name: call[name] for name in ("height", "width")}
    check(pipe, size | LATENT | {"num_frames": 8, "prompt": {0: "a dog", 7: "a cat"}})


REMEMBERED = {
    "DPMSolverMultistep": ("model_outputs", "lower_order_nums"),
    "UniPCMultistep": (
        *("model_outputs", "timestep_list", "lower_order_nums"),
        *("last_sample", "this_order"),
    ),
    "DEISMultistep": ("model_outputs", "lower_order_nums"),
    "EulerDiscrete": (),
}


@pytest.mark.parametrize("how", ["attributes", "copies"])
@pytest.mark.parametrize("kind", REMEMBERED)
def test_windows_of_animatediff_with_histories_of_their_own(kind, how):
    """Windows of a long video take their step in turn, each with its own memory."""
    pipe, call = more.animatediff(scheduler_of(kind, beta_schedule="linear"))
    windows = [slice(0, 2), slice(2, 4)]
    text = call["prompt_embeds"].expand(2, -1, -1)  # one a frame

    @torch.no_grad()
    def run():
        scheduler = pipe.scheduler
        scheduler.set_timesteps(6)
        x = tiny.numbers(1, 4, 4, 8, 8, seed=7) * scheduler.init_noise_sigma
        names = ("_step_index", *REMEMBERED[kind]) if how == "attributes" else ()
        start = {name: copy.copy(getattr(scheduler, name, None)) for name in names}
        memory = [{n: copy.copy(v) for n, v in start.items()} for _ in windows]
        each = [copy.deepcopy(scheduler) for _ in windows]
        for t in scheduler.timesteps:
            parts = []
            for i, window in enumerate(windows):
                mine = each[i] if how == "copies" else scheduler
                if how == "attributes":
                    for name, value in memory[i].items():
                        setattr(mine, name, value)
                part = x[:, :, window]
                seen = mine.scale_model_input(part, t)
                output = pipe.unet(seen, t, encoder_hidden_states=text).sample
                parts.append(mine.step(output, t, part, return_dict=False)[0])
                if how == "attributes":
                    memory[i] = {n: copy.copy(getattr(mine, n)) for n in names}
            x = torch.cat(parts, dim=2)
        if how == "copies":
            assert all(getattr(s, "_handed", None) is None for s in each)
        return x

    want, got, ours, _ = more.compared(pipe, run)
    assert gap(want, got) <= TOLERANCE
    if how == "attributes":
        why = ours["scheduler"]._handed
        assert why is None if kind == "EulerDiscrete" else "between two steps" in why


@pytest.mark.parametrize("dynamic", [True, False], ids=["mu", "shift"])
def test_flux_from_a_picture(dynamic):
    options = {"use_dynamic_shifting": True} if dynamic else {"shift": 2.0}
    text = tiny.flux()
    pipe = diffusers.FluxImg2ImgPipeline(
        **text.components | {"scheduler": scheduler_of("FlowMatchEulerDiscrete", **options)}
    )
    call = {
        "prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=1),
        "pooled_prompt_embeds": tiny.numbers(1, tiny.TEXT, seed=2),
        **dict.fromkeys(("height", "width"), tiny.SIDE),
    }
    check(pipe, call | LATENT | {"image": tiny.picture(), "strength": 0.6})


def pair_of_texts():
    """Embeddings of a prompt and its negative, single ones and pooled ones."""
    call = dict.fromkeys(("height", "width"), tiny.SIDE)
    for k, sign in enumerate(("", "negative_")):
        call[f"{sign}prompt_embeds"] = tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=2 * k)
        call[f"{sign}pooled_prompt_embeds"] = tiny.numbers(1, tiny.TEXT, seed=2 * k + 1)
    return call


@pytest.mark.parametrize("when", ["before", "between"])
def test_sd3_with_a_shift_that_is_set(when):
    """set_shift counts from the next set_timesteps on; before and after accelerate."""
    call = pair_of_texts()
    results = []
    for change in (False, True):
        pipe = diffusers.StableDiffusion3Pipeline(
            **tiny.stable_diffusion_3().components
            | {"scheduler": scheduler_of("FlowMatchEulerDiscrete")}
        )
        tiny.quiet(pipe)
        if when == "before":
            pipe.scheduler.set_shift(5.0)
        if change:
            accelerate(pipe, quiet=True)
        found = [tiny.draw(pipe, **call, **LATENT)]
        if when == "between":
            pipe.scheduler.set_shift(5.0)
        results.append([*found, tiny.draw(pipe, **call, **LATENT)])
    assert isinstance(pipe.scheduler, DiffastScheduler) and pipe.scheduler._handed is None
    assert max(gap(*pair) for pair in zip(*results, strict=True)) <= TOLERANCE
    if when == "between":
        assert difference(*results[1]) > 1e-3  # the shift was seen


@pytest.mark.parametrize("kind", ["UniPCMultistep", "PNDM", "DDIM"])
def test_a_whole_pipeline_is_saved_and_loaded(kind, tmp_path):
    options = {"skip_prk_steps": True} if kind == "PNDM" else {}
    before = tiny.stable_diffusion()
    pipe = diffusers.StableDiffusionPipeline(
        **before.components | {"scheduler": scheduler_of(kind, **options)},
        requires_safety_checker=False,
    )
    tiny.quiet(pipe)
    call = tiny.guided() | LATENT
    want = tiny.draw(pipe, **call)
    accelerate(pipe, quiet=True)
    assert gap(want, tiny.draw(pipe, **call)) <= TOLERANCE
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path, text_encoder=None, tokenizer=None
    )
    tiny.quiet(loaded)
    assert index["scheduler"][1] == f"Diffast{kind}Scheduler"
    assert isinstance(loaded.scheduler, DiffastScheduler)
    assert gap(want, tiny.draw(loaded, **call)) <= TOLERANCE
    accelerate(loaded, quiet=True)
    assert isinstance(loaded.scheduler, DiffastScheduler)
    assert gap(want, tiny.draw(loaded, **call)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["UniPCMultistep", "DPMSolverMultistep"])
@pytest.mark.parametrize("ar_step", [0, 2])
def test_skyreels_copies_its_scheduler_for_each_frame(kind, ar_step):
    """With ar_step frames start one after another, each with its own copy and its own step.

    Each frame is written into the latents that its step was given, which UniPC remembers.
    """
    pipe, call = more.skyreels(scheduler_of(kind, **FLOW))
    call |= {"ar_step": ar_step, "base_num_frames": 17}
    check(pipe, call | LATENT)


def test_a_modular_pipeline():
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
        StableDiffusion3T2ICoreDenoiseStep as Blocks,
    )

    pipe = Blocks().init_pipeline()
    original = scheduler_of("FlowMatchEulerDiscrete", shift=3.0)
    transformer = tiny.stable_diffusion_3().transformer
    pipe.update_components(transformer=transformer, scheduler=original)

    def run():
        call = pair_of_texts() | {"num_inference_steps": 6, "output": "latents"}
        return pipe(generator=tiny.generator(), **call)

    want, got, _, report = more.compared(pipe, run)
    assert gap(want, got) <= TOLERANCE
    assert len(report.replaced) == 1
