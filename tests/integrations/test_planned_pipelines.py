"""Pipelines that run a plan: the latents of df.sample with the pipeline's network."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

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
from tuned_plans import tuned, two_inputs  # noqa: E402

import diffast as df  # noqa: E402
from diffast.integrations import from_diffusers  # noqa: E402
from diffast.integrations.diffusers import (  # noqa: E402
    DiffastScheduler,
    PlanScheduler,
    accelerate,
    pipeline_denoiser,
)
from diffast.integrations.diffusers.convention import convention_of  # noqa: E402
from diffast.model.fingerprint import fingerprint  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
CALLS = 4
LATENT = {"output_type": "latent", "num_inference_steps": CALLS}


def text(seed=1, pooled=False, negative=True):
    """Embeddings of a prompt."""
    given = {"prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=seed)}
    if negative:
        given["negative_prompt_embeds"] = tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=seed + 10)
    if pooled:
        for name in list(given):
            given[name.replace("prompt_embeds", "pooled_prompt_embeds")] = tiny.numbers(
                1, tiny.TEXT, seed=seed + 20
            )
    return given


def side(**more):
    return {"height": tiny.SIDE, "width": tiny.SIDE, **more}


CASES = {
    "unet": (tiny.stable_diffusion, lambda seed=1: text(seed) | {"guidance_scale": 4.0}),
    "unet, unguided": (
        tiny.stable_diffusion,
        lambda seed=1: text(seed, negative=False) | {"guidance_scale": 1.0},
    ),
    "SD3": (tiny.stable_diffusion_3, lambda seed=1: side(**text(seed, pooled=True))),
    "Flux": (tiny.flux, lambda seed=1: side(**text(seed, pooled=True, negative=False))),
    "DDPM": (tiny.ddpm, lambda seed=1: {}),
    "learned variance": (lambda: tiny.ddpm(True), lambda seed=1: {}),
}
SCALES = {"unet": 4.0, "unet, unguided": 1.0, "SD3": 7.0, "Flux": 1.0}


def fresh(pipe):
    """The pipeline with a scheduler of its own: other tests replace those of the cached ones."""
    pipe = copy.copy(pipe)
    if isinstance(pipe, diffusers.DDPMPipeline):
        pipe.scheduler = diffusers.DDPMScheduler()
    elif hasattr(pipe, "transformer"):
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    else:
        pipe.scheduler = diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True)
    return pipe


def pipeline(name="unet"):
    return fresh(CASES[name][0]())


def draw(pipe, call):
    kind = {"output_type": "np"} if isinstance(pipe, diffusers.DDPMPipeline) else {}
    return torch.as_tensor(tiny.draw(pipe, **LATENT | kind, **call))


def start_of(pipe, plan):
    """The latents that the pipeline starts from."""
    generator = tiny.generator()
    if isinstance(pipe, diffusers.FluxPipeline):
        x = torch.randn((1, 4, tiny.SIDE // 2, tiny.SIDE // 2), generator=generator)
        return pipe._pack_latents(x, 1, *x.shape[1:])
    if isinstance(pipe, diffusers.DDPMPipeline):
        return torch.randn((1, 3, 16, 16), generator=generator)
    x = torch.randn((1, 4, tiny.SIDE // 2, tiny.SIDE // 2), generator=generator)
    flow = isinstance(pipe, diffusers.StableDiffusion3Pipeline)
    return x if flow else x * plan.initial_scale


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_with_a_plan_draws_what_df_sample_draws(name):
    pipe, call = pipeline(name), CASES[name][1]()
    denoiser = pipeline_denoiser(pipe, [call] if call else None)
    assert denoiser.guidance == SCALES.get(name, 1.0)
    plan = tuned(denoiser.schedule, CALLS)
    report = accelerate(pipe, plan=plan, quiet=True)
    assert f"num_inference_steps={CALLS}" in str(report) and report.after == "plan tuned"
    got = draw(pipe, call)
    want = df.sample(denoiser, plan, x=start_of(pipe, plan)).x
    if isinstance(pipe, diffusers.DDPMPipeline):  # which returns pictures
        want = (want / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert got.std() > 0.05
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["EulerDiscrete", "DPMSolverMultistep", "DDIM", "UniPCMultistep"])
def test_any_scheduler_can_be_replaced(kind):
    """The plan is for the network: which scheduler was there changes nothing."""
    pipe, plan = pipeline(), None
    drawn = []
    for scheduler in (pipe.scheduler, getattr(diffusers, f"{kind}Scheduler")()):
        options = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
        if "clip_sample" in scheduler.config:
            options["clip_sample"] = False  # what a scheduler does to x0 is kept
        pipe.scheduler = type(scheduler).from_config(scheduler.config, **options)
        plan = plan or tuned(convention_of(pipe.scheduler).schedule, CALLS)
        accelerate(pipe, plan=plan, quiet=True)
        drawn.append(draw(pipe, tiny.guided()))
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-4)


def planned(**fields):
    pipe = pipeline()
    plan = tuned(convention_of(pipe.scheduler).schedule, CALLS)
    return pipe, replace(plan, **fields) if fields else plan


def test_another_number_of_steps_is_refused_and_the_sentence_says_which():
    pipe, plan = planned()
    accelerate(pipe, plan=plan, quiet=True)
    with pytest.raises(
        ValueError, match="is 50, but the plan tuned makes 4 .*num_inference_ste.*4"
    ):
        tiny.draw(pipe, output_type="latent", **tiny.guided())
    for given in ({"timesteps": [9, 5]}, {"sigmas": [3.0, 2.9, 0.1, 0.0]}):
        with pytest.raises(ValueError, match="given, but the plan tuned has .* of its own"):
            pipe.scheduler.set_timesteps(**given)
    with pytest.raises(ValueError, match="num_inference_steps is 3"):
        pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 3, 3))


def test_a_run_that_starts_in_the_middle_is_refused_if_the_plan_remembers():
    pipe, plan = planned()
    img2img = fresh(tiny.stable_diffusion("StableDiffusionImg2ImgPipeline"))
    options = {**LATENT, **tiny.guided(), "image": tiny.picture()}
    accelerate(img2img, plan=plan, quiet=True)
    with pytest.raises(ValueError, match="start at call 2 of the plan tuned, .*strength=1"):
        tiny.draw(img2img, strength=0.5, **options)
    assert tiny.draw(img2img, strength=1.0, **options).isfinite().all()
    schedule = plan.schedule
    euler = df.solvers.euler(schedule, df.grids.uniform_time(schedule, CALLS))
    accelerate(img2img, plan=euler, quiet=True)  # each call stands for itself
    assert tiny.draw(img2img, strength=0.5, **options).isfinite().all()


def test_inpainting_noises_the_known_part_to_the_levels_of_the_plan():
    _, plan = planned()
    pipe = fresh(tiny.stable_diffusion("StableDiffusionInpaintPipeline"))
    accelerate(pipe, plan=plan, quiet=True)
    options = {**LATENT, **tiny.guided(), "image": tiny.picture(), "mask_image": tiny.mask()}
    assert tiny.draw(pipe, strength=1.0, **options).isfinite().all()
    x0, noise = tiny.numbers(1, 4, 2, 2), tiny.numbers(1, 4, 2, 2, seed=1)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(CALLS)
    for i, level in enumerate([(plan.schedule.alpha(plan.start), plan.initial_scale)]):
        alpha, sigma = map(float, level)
        made = scheduler.add_noise(x0, noise, scheduler.timesteps[i : i + 1])
        torch.testing.assert_close(made, alpha * x0 + sigma * noise)
    alpha, sigma = plan.levels[1, plan.rows.index("x")]
    made = scheduler.add_noise(x0, noise, scheduler.timesteps[2:3])
    torch.testing.assert_close(made, float(alpha) * x0 + float(sigma) * noise)


def test_guidance_scales_of_a_plan_reach_the_pipeline_call_by_call():
    scales = np.array([1.0, 5.0, 3.0, 2.0])
    pipe, plan = planned(guidance=scales)
    report = accelerate(pipe, plan=plan, quiet=True)
    assert "guidance scales 1 to 5 are the plan's" in str(report)
    call = tiny.guided()
    got = draw(pipe, call)
    denoiser = pipeline_denoiser(pipe, [call])
    want = df.sample(denoiser, plan, x=start_of(pipe, plan)).x
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="guidance_scale is 1.0: call .* with one above 1"):
        draw(pipe, call | {"guidance_scale": 1.0})


def test_guidance_scales_are_refused_where_a_pipeline_keeps_one_scale():
    class Local(diffusers.StableDiffusionPipeline):
        def __call__(self, **options):
            return None

    pipe, plan = planned(guidance=np.full(CALLS, 2.0))
    pipe.__class__ = Local
    before = pipe.scheduler
    with pytest.raises(ValueError, match="Local takes one scale for the whole run: tune without"):
        accelerate(pipe, plan=plan, quiet=True)
    assert pipe.scheduler is before
    pipe, plan = planned(guidance=np.full(CALLS, 0.5))
    with pytest.raises(ValueError, match="guides with scales from 1 on alone"):
        accelerate(pipe, plan=plan, quiet=True)


def test_plans_that_do_not_fit_are_refused_and_the_pipeline_stays_as_it_was():
    pipe, plan = planned()
    before = pipe.scheduler
    other = df.schedules.from_betas(np.linspace(1e-4, 0.012, 1000))
    refused = [
        (tuned(other, CALLS), "the plan is for FromBetas.* but the pipeline's network for FromB"),
        (tuned(df.schedules.flow(), CALLS), "the plan is for Flow.* but the pipeline's network"),
        (two_inputs(plan.schedule), "calls the network on 2 inputs at once, but a pipeline"),
        (replace(plan, made_for={"predicts": "v"}), "predicts 'v', but that of the pipeline pred"),
        ([1.0], "plan is a list, but a df.Plan or the path of its file"),
    ]
    for wrong, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            accelerate(pipe, plan=wrong, quiet=True)
        assert pipe.scheduler is before
    with pytest.raises(FileNotFoundError):
        accelerate(pipe, plan="/nowhere/plan.json", quiet=True)
    flow = fresh(tiny.stable_diffusion_3())
    late = df.solvers.euler(df.schedules.flow(), [0.8, 0.4, 0.0])
    with pytest.raises(ValueError, match="starts at sigma = 0.8, but a flow's pipeline starts"):
        accelerate(flow, plan=late, quiet=True)


def test_a_plan_of_other_weights_is_noted_and_runs():
    pipe, plan = planned(made_for={"predicts": "epsilon", "network": "0" * 16, "guidance": 4.0})
    notes = str(accelerate(pipe, plan=plan, quiet=True))
    assert "the plan was made for a network with the fingerprint 0000" in notes
    assert "made for guidance_scale=4" in notes
    assert draw(pipe, tiny.guided()).isfinite().all()


def test_a_file_a_saved_scheduler_and_a_copy_run_alike(tmp_path):
    pipe, plan = planned()
    plan.save(tmp_path / "plan.json")
    accelerate(pipe, plan=tmp_path / "plan.json", quiet=True)
    want = draw(pipe, tiny.guided())
    pipe.scheduler.save_pretrained(tmp_path)
    loaded = PlanScheduler.from_pretrained(tmp_path)
    assert (loaded.plan.matrix == plan.matrix).all()
    for scheduler in (loaded, copy.deepcopy(pipe.scheduler)):
        pipe.scheduler = scheduler
        assert torch.equal(draw(pipe, tiny.guided()), want)


def test_accelerate_leads_back_from_a_plan_and_on_to_another():
    pipe, plan = planned()
    config = dict(pipe.scheduler.config)
    accelerate(pipe, plan=plan, quiet=True)
    accelerate(pipe, plan=tuned(plan.schedule, 3), quiet=True)
    assert len(pipe.scheduler) == 3
    accelerate(pipe, quiet=True)
    assert isinstance(pipe.scheduler, DiffastScheduler)
    assert isinstance(pipe.scheduler, diffusers.PNDMScheduler)
    assert {k: v for k, v in pipe.scheduler.config.items() if k in config and k[0] != "_"} == {
        k: v for k, v in config.items() if k[0] != "_"
    }


def test_stochastic_plans_draw_from_the_generator_or_from_the_counter():
    pipe, plan = planned()
    schedule = plan.schedule
    plan = df.solvers.dpmpp_2m_sde(schedule, df.grids.uniform_logsnr(schedule, CALLS))
    for noise in ("generator", "counter"):
        accelerate(pipe, noise=noise, plan=plan, quiet=True)
        first, again = draw(pipe, tiny.guided()), draw(pipe, tiny.guided())
        assert torch.equal(first, again) and first.isfinite().all()


def test_steps_out_of_turn_and_options_without_a_place_are_refused():
    pipe, plan = planned()
    accelerate(pipe, plan=plan, quiet=True)
    scheduler = pipe.scheduler
    scheduler.set_timesteps(CALLS)
    x = tiny.numbers(1, 4, 4, 4)
    with pytest.raises(ValueError, match="eta is 0.5, but the plan tuned has no such option"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5)
    for t in scheduler.timesteps:
        out = scheduler.step(x, t, x, eta=0.0)
        assert out.pred_original_sample.shape == x.shape
    with pytest.raises(ValueError, match="step 4, but 4 were set"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_schedulers_whose_network_is_not_known_are_refused():
    for scheduler, sentence in (
        (diffusers.LCMScheduler(), "networks that were distilled to few steps"),
        (diffusers.EDMEulerScheduler(), "no betas of its own"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "no betas of its own"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convention_of(scheduler)


def test_a_pipeline_is_saved_and_loaded_with_its_plan_and_an_edited_one_is_refused(tmp_path):
    pipe = fresh(tiny.ddpm())
    plan = tuned(convention_of(pipe.scheduler).schedule, CALLS)
    made = replace(plan, made_for={"predicts": "epsilon"})
    accelerate(pipe, plan=made, quiet=True)
    pipe.save_pretrained(tmp_path)
    loaded = tiny.quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
    torch.testing.assert_close(draw(loaded, {}), draw(pipe, {}), rtol=1e-4, atol=1e-4)
    assert "in the place of DDPMScheduler" in repr(loaded.scheduler)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["_diffast"]["plan"]["times"][1] += 1.0
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="plan of the config: .*they were changed"):
        PlanScheduler.from_pretrained(tmp_path / "scheduler")
    with pytest.raises(ValueError, match="the config has no plan: use accelerate"):
        PlanScheduler.from_config(diffusers.DDIMScheduler().config)


def test_a_compiled_loop_and_gradients():
    pipe, plan = planned()
    accelerate(pipe, plan=plan, quiet=True)
    scheduler, start = pipe.scheduler, tiny.numbers(1, 4, 4, 4)

    def denoise(x, t, weight=1.0):
        output = torch.tanh(weight * scheduler.scale_model_input(x, t))
        return scheduler.step(output, t, x, return_dict=False)[0]

    def run(function):
        scheduler.set_timesteps(CALLS)
        x = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = function(x, t)
        return x

    with torch.no_grad():
        want = run(denoise)
        torch.testing.assert_close(run(torch.compile(denoise, backend="eager")), want)
    weight = torch.tensor(1.0, requires_grad=True)
    run(lambda x, t: denoise(x, t, weight)).sum().backward()
    steps = [run(lambda x, t, w=w: denoise(x, t, w)).double().sum() for w in (0.999, 1.001)]
    assert float(weight.grad) == pytest.approx(float(steps[1] - steps[0]) / 0.002, rel=0.02)


@pytest.mark.parametrize(
    ("name", "scale"), [("unet", 7.5), ("SD3", 7.0), ("Flux", 1.0), ("DDPM", 1.0)]
)
def test_a_number_of_calls_takes_the_plan_to_start_with(name, scale):
    pipe = pipeline(name)
    schedule = convention_of(pipe.scheduler).schedule
    report = accelerate(pipe, calls=CALLS, quiet=True)
    want = df.plan(schedule, CALLS, guidance=scale)
    assert pipe.scheduler.plan.name == want.name and want.name in str(report)
    assert (pipe.scheduler.plan.matrix == want.matrix).all()
    assert draw(pipe, CASES[name][1]()).isfinite().all()
    accelerate(pipe, calls=CALLS, guidance=1.0, quiet=True)
    assert pipe.scheduler.plan.name == df.plan(schedule, CALLS).name
    with pytest.raises(TypeError, match="a plan and calls = 4 are given: give one"):
        accelerate(pipe, plan=want, calls=4)
    with pytest.raises(TypeError, match="guidance = 2.0 is given, but it is for calls="):
        accelerate(pipe, guidance=2.0)


@pytest.mark.parametrize("name", ["unet", "SD3"])
def test_the_plan_to_start_with_runs_in_a_pipeline(name):
    """df.plan for the network in the pipeline, with its guidance; a result in a plan's place."""
    pipe, call = pipeline(name), CASES[name][1]()
    denoiser = pipeline_denoiser(pipe, [call])
    plan = df.plan(denoiser, CALLS)
    accelerate(pipe, plan=plan, quiet=True)
    want = df.sample(denoiser, plan, x=start_of(pipe, plan)).x
    torch.testing.assert_close(draw(pipe, call), want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="plan is a SimpleNamespace, .*: give its .plan"):
        accelerate(pipe, plan=SimpleNamespace(plan=plan), quiet=True)


@pytest.mark.parametrize("name", ["unet", "SD3", "DDPM"])
def test_a_plan_made_with_from_diffusers_is_one_for_the_pipeline(name):
    """The same schedule, prediction and fingerprint, whichever way the network was read."""
    pipe = pipeline(name)
    network = getattr(pipe, "transformer", None) or pipe.unet
    denoiser = from_diffusers(network, pipe.scheduler)
    made_for = {"predicts": denoiser.predicts, "network": fingerprint(denoiser.network)}
    plan = replace(tuned(denoiser.schedule, CALLS), made_for=made_for)
    report = accelerate(pipe, plan=plan, quiet=True)
    assert made_for["network"] and "fingerprint" not in str(report)
    assert draw(pipe, CASES[name][1]()).isfinite().all()
