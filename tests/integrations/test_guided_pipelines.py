"""Guidance terms in diffusers' pipelines: the latents of df.sample with the same terms."""

import copy

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

import diffast as df  # noqa: E402
from diffast.integrations.diffusers import accelerate, pipeline_denoiser  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
CALLS = 4
SEEN = []


def pull(x, t):
    SEEN.append(t.tolist())
    return 0.5 - x


def far(x0, t):
    return (x0 - 0.3).square().flatten(1).sum(1)


GUIDES = [
    df.guidance.gradient(pull, lambda t: 0.1 if t > 300 else 0.05),
    df.guidance.loss(far, 0.04, through="x0"),
]


def call():
    embeds = {"prompt_embeds": tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=1)}
    embeds["negative_prompt_embeds"] = tiny.numbers(1, tiny.TOKENS, tiny.TEXT, seed=11)
    return embeds | {"guidance_scale": 4.0}


def pipeline(**config):
    pipe = copy.copy(tiny.stable_diffusion())
    pipe.scheduler = diffusers.DDIMScheduler(**config)
    return pipe


@pytest.mark.parametrize(
    ("config", "clamp"),
    [
        ({"clip_sample": False}, None),
        ({"clip_sample": True, "clip_sample_range": 0.8}, (-0.8, 0.8)),
    ],
)
def test_a_pipeline_with_terms_draws_what_df_sample_draws(config, clamp):
    pipe = pipeline(**config)
    denoiser = pipeline_denoiser(pipeline(clip_sample=False), [call()])
    plan = df.solvers.dpmpp_2m(
        denoiser.schedule, df.grids.uniform_time(denoiser.schedule, CALLS, start=900)
    )
    report = accelerate(pipe, plan=plan, guides=GUIDES, quiet=True)
    assert "guidance.gradient, guidance.loss; they are not saved" in str(report)
    SEEN.clear()
    options = {"output_type": "latent", "num_inference_steps": CALLS}
    got = torch.as_tensor(tiny.draw(pipe, **options, **call()))
    assert [t for (t,) in SEEN] == plan.call_times.tolist()
    start = torch.randn((1, 4, tiny.SIDE // 2, tiny.SIDE // 2), generator=tiny.generator())
    terms = df.Denoiser(
        denoiser.network,
        denoiser.schedule,
        denoiser.predicts,
        conditions=denoiser.conditions,
        unconditional=denoiser.unconditional,
        guidance=denoiser.guidance,
        guides=GUIDES,
    )
    want = df.sample(terms, plan, x=start * plan.initial_scale, clamp=clamp).x
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # as pipelines without terms
    plain = df.sample(denoiser, plan, x=start * plan.initial_scale, clamp=clamp).x
    assert float((plain - want).abs().max()) > 0.01


def test_an_output_that_has_a_gradient_has_it_through_the_step():
    """The same step as without a graph; the terms themselves are not differentiated."""
    pipe = pipeline(clip_sample=False)
    schedule = pipeline_denoiser(pipe, [call()]).schedule
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, CALLS, start=900))
    accelerate(pipe, plan=plan, guides=GUIDES, quiet=True)
    sample, output = tiny.numbers(1, 4, 8, 8, seed=3), tiny.numbers(1, 4, 8, 8, seed=4)
    made = []
    for graph in (False, True):
        pipe.scheduler.set_timesteps(CALLS)
        given = output.clone().requires_grad_(graph)
        made.append(pipe.scheduler.step(given, pipe.scheduler.timesteps[0], sample).prev_sample)
    torch.testing.assert_close(made[0], made[1].detach(), rtol=0, atol=1e-5)
    assert made[1].requires_grad


@pytest.mark.parametrize(
    ("options", "kind", "facts"),
    [
        ({"guides": GUIDES}, TypeError, "2 guidance terms are given, but the latents of DDIM"),
        (
            {"guides": [df.guidance.loss(far)], "calls": 4},
            ValueError,
            r"term 1 \(guidance.loss\) is taken through the network, but a pipeline hands its",
        ),
        ({"guides": [pull], "calls": 4}, ValueError, "guides holds a function, but terms are made"),
    ],
)
def test_terms_that_a_pipeline_cannot_have(options, kind, facts):
    pipe = pipeline()
    before = pipe.scheduler
    with pytest.raises(kind, match=facts):
        accelerate(pipe, quiet=True, **options)
    assert pipe.scheduler is before


def test_plans_that_weigh_one_branch_are_refused():
    schedule = pipeline_denoiser(pipeline(clip_sample=False), [call()]).schedule
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, CALLS, start=900))
    with pytest.raises(ValueError, match="weighs d_uncond, the x0 estimate of one branch alone"):
        accelerate(pipeline(), plan=df.solvers.cfg_plus_plus(plan), quiet=True)


def test_plans_that_weigh_gradients_themselves_are_refused():
    schedule = pipeline_denoiser(pipeline(clip_sample=False), [call()]).schedule
    stages = df.plans.registers.Stages(schedule, 900.0)
    a, s, b, r = (float(f(t)) for t in (900.0, 300.0) for f in (schedule.alpha, schedule.sigma))
    stages.add(900.0, 300.0, {"x": r / s, "d": b - a * r / s, "g1": 0.1})
    with pytest.raises(ValueError, match="weighs gradients of guidance terms by itself"):
        accelerate(pipeline(), plan=stages.plan("pulled", 1), quiet=True)
