"""tune(pipe): what a pipeline gives its network is found by running it; the plan goes back in."""

import copy
from dataclasses import replace
from types import SimpleNamespace

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
from few_candidates import few  # noqa: E402
from test_planned_pipelines import CASES, draw, pipeline, start_of, text  # noqa: E402
from tuned_plans import tuned  # noqa: E402

import diffast as df  # noqa: E402
from diffast.integrations.diffusers import accelerate, pipeline_denoiser, tune  # noqa: E402
from diffast.integrations.diffusers.recording import record  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
QUICK = {"samples": 4, "held_out": 4, "iterations": 1, "starts": 1, "progress": False}
QUICK |= {"measured_grids": False, "compare": (), "tolerance": 0.05}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is measured before learning is not what these tests are about."""
    few(monkeypatch)


class Network(torch.nn.Module):
    """A network of a formula, that takes what pipelines of several kinds give theirs."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, sample, timestep, label=None, added=None, count=None, return_dict=False):
        x = sample[:, :2]
        t = torch.as_tensor(timestep).float().reshape(-1, 1, 1, 1) / 1000
        rest = sample[:, 2:].sum(1, keepdim=True)
        out = self.gain * torch.tanh(x + t) + 0.1 * rest
        for value in (label, (added or {}).get("label")):
            out = out if value is None else out + 0.1 * value.reshape(-1, 1, 1, 1)
        return (out,)


class Pipe:
    """A pipeline's loop, with a way of guidance; the scheduler is diffusers'."""

    def __init__(self, guidance="one call", change=lambda out: out, **network):
        self.unet = Network()
        self.scheduler = diffusers.DDIMScheduler(clip_sample=False)
        self.guidance, self.change, self.network = guidance, change, network

    def __call__(self, num_inference_steps=4, num_images_per_prompt=1, label=1.0, scale=3.0):
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(num_images_per_prompt, 2, 4, 4) * self.scheduler.init_noise_sigma
        labels = [torch.full((len(x),), value) for value in (0.0, label)]
        for i, t in enumerate(self.scheduler.timesteps):
            out = self._output(self.scheduler.scale_model_input(x, t), t, labels, scale, i)
            x = self.scheduler.step(self.change(out), t, x, return_dict=False)[0]
        return (x,)

    def _output(self, x, t, labels, scale, i):
        more = {name: value(i, x) for name, value in self.network.items()}
        if self.guidance == "one call":
            x, label = torch.cat([x] * 2), torch.cat(labels)
            u, c = self.unet(x, t, added={"label": label}, **more)[0].chunk(2)
        elif self.guidance == "conditional first":
            x, label = torch.cat([x] * 2), torch.cat(labels[::-1])
            c, u = self.unet(x, t, label=label, **more)[0].chunk(2)
        elif self.guidance == "two calls":
            c, u = (self.unet(x, t.expand(len(x)), label=k, **more)[0] for k in labels[::-1])
        else:
            extra = torch.cat([x, torch.full_like(x, 0.5)], dim=1)
            return self.unet(extra, t, label=labels[1], **more)[0]
        return u + scale * (c - u)


@pytest.mark.parametrize(
    ("guidance", "path"),
    [("one call", "added.label"), ("conditional first", "label"), ("two calls", "label")],
)
def test_branches_and_scale_are_found_in_any_order(guidance, path):
    found = record(Pipe(guidance), {"label": 2.0, "scale": 4.5})
    assert found.scale == pytest.approx(4.5) and found.sign == 1.0
    assert found.cond[path].tolist() == [2.0] and found.uncond[path].tolist() == [0.0]
    assert found.shape == (2, 4, 4) and (found.slope, found.shift) == (1.0, 0.0)


@pytest.mark.parametrize("guidance", ["one call", "conditional first", "two calls", "extra"])
def test_the_denoiser_is_the_network_in_the_pipeline(guidance):
    """The same latents from the pipeline's own DDIM, and from df.sample with DDIM's plan."""
    pipe = Pipe(guidance, change=lambda out: -out if guidance == "extra" else out)
    denoiser = pipeline_denoiser(pipe, [{"label": 2.0}])
    schedule = denoiser.schedule
    torch.manual_seed(3)
    want = pipe(label=2.0)[0]
    torch.manual_seed(3)
    x = torch.randn(1, 2, 4, 4)
    times = [*pipe.scheduler.timesteps.tolist(), -1.0]
    got = df.sample(denoiser, df.solvers.ddim(schedule, times), x=x).x
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_pipeline_is_left_as_it_was_and_prompts_are_rows():
    pipe = Pipe()
    before = pipe.scheduler
    denoiser = pipeline_denoiser(pipe, [{"label": float(k)} for k in range(3)])
    assert pipe.scheduler is before and not pipe.unet._forward_hooks
    assert denoiser.conditions["added.label"].tolist() == [0.0, 1.0, 2.0]
    assert denoiser.unconditional["added.label"].tolist() == [0.0] * 3
    assert denoiser.guidance == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("pipe", "sentence"),
    [
        (Pipe(change=torch.tanh), "more than classifier-free guidance .* leave out guidance_resc"),
        (Pipe(change=lambda out: 2 * out), "more than classifier-free guidance"),
        (Pipe(count=lambda i, x: i), "argument count changes from step to step"),
        (Pipe(label=lambda i, x: x.new_full((6,), i)), "argument label changes from step to step"),
        (SimpleNamespace(scheduler=diffusers.DDIMScheduler()), "neither a unet nor a transform"),
    ],
)
def test_what_no_plan_can_say_is_refused_in_a_sentence(pipe, sentence):
    with pytest.raises(ValueError, match=sentence):
        tune(pipe, [{}], calls=3, **QUICK)


def sdxl():
    """SDXL, whose network takes a dict of added conditions."""
    network = tiny.seeded(
        diffusers.UNet2DConditionModel,
        **{
            **{k: v for k, v in tiny.latent_network().config.items() if k[0] != "_"},
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 4 * 6 + tiny.TEXT,
        },
    )
    texts = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2")}
    options = {"vae": tiny.autoencoder(), "add_watermarker": False, **texts}
    scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")
    return tiny.quiet(
        diffusers.StableDiffusionXLPipeline(unet=network, scheduler=scheduler, **options)
    )


def test_added_conditions_and_another_scheduler_with_sigmas():
    pipe, call = sdxl(), CASES["SD3"][1]()
    denoiser = pipeline_denoiser(pipe, [call], {"guidance_scale": 6.0})
    assert set(denoiser.conditions) == {
        "encoder_hidden_states",
        "added_cond_kwargs.text_embeds",
        "added_cond_kwargs.time_ids",
    }
    plan = tuned(denoiser.schedule, 4)
    accelerate(pipe, plan=plan, quiet=True)
    got = draw(pipe, call | {"guidance_scale": 6.0})
    want = df.sample(denoiser, plan, x=start_of(pipe, plan)).x
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="add up to 0.9.*leave out guidance_rescale"):
        pipeline_denoiser(pipe, [call], {"guidance_scale": 6.0, "guidance_rescale": 0.1})


def test_half_precision_finds_the_same():
    pipe = copy.deepcopy(pipeline("unet"))
    pipe.unet.to(torch.bfloat16)
    call = {name: value.bfloat16() for name, value in text().items()}
    denoiser = pipeline_denoiser(pipe, [call], {"guidance_scale": 5.3})
    assert denoiser.guidance == 5.3 and denoiser.dtype == torch.bfloat16
    assert denoiser.conditions["encoder_hidden_states"].dtype == torch.bfloat16


def test_two_directions_are_refused_before_the_work():
    with pytest.raises(ValueError, match="'directions', .* but a pipeline calls its network on o"):
        tune(Pipe(), [{}], calls=4, freedom=["levels", "directions"], **QUICK)


def test_prompts_that_differ_in_more_than_their_rows_are_refused():
    pipe = pipeline("unet")
    longer = {
        name: tiny.numbers(1, 2 * tiny.TOKENS, tiny.TEXT)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    for other, sentence in (
        (longer, r"differ in the shape of .* encoder_hidden_states: \(1, 5, 8\) and \(1, 10, 8\)"),
        (text(2) | {"guidance_scale": 2.0}, "differ in scale: 7.5 and 2.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tune(pipe, [text(), other], **QUICK)
    with pytest.raises(ValueError, match="prompts is empty"):
        tune(pipe, [], **QUICK)
    with pytest.raises(ValueError, match="a prompt is a int, but a prompt, or"):
        tune(pipe, [3], **QUICK)


def test_clipping_after_guidance_is_refused_and_without_guidance_it_is_kept():
    pipe = Pipe()
    pipe.scheduler = diffusers.DDIMScheduler(clip_sample=True)
    with pytest.raises(ValueError, match="limits x0 .* switch it off in the scheduler's config"):
        tune(pipe, [{}], **QUICK)
    pipe.guidance = "extra"
    denoiser = pipeline_denoiser(pipe, [{}])
    assert denoiser.x0(torch.full((1, 2, 4, 4), 50.0), 500.0).abs().max() <= 1.0 + 1e-5


@pytest.mark.parametrize(
    "name", ["Flux", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "DDPM"))]
)
def test_a_tuned_plan_goes_back_into_the_pipeline(name, tmp_path):
    pipe, calls = pipeline(name), [call for call in map(CASES[name][1], (1, 2)) if call]
    result = tune(pipe, calls or None, calls=4, **QUICK)
    assert result.plan.nfe == 4 and result.error <= result.best_standard.error
    # a flow's pipeline starts from noise of deviation 1
    assert ("start" in result.plan.made_for["freedom"]) == (name != "Flux")
    assert result.plan.made_for["network"] and result.plan.made_for["guidance"] == (
        4.0 if name == "unet" else 1.0
    )
    result.save(tmp_path / "four.json")
    report = accelerate(pipe, plan=tmp_path / "four.json", quiet=True)
    assert "fingerprint" not in str(report)  # it is that network's
    got = draw(pipe, calls[0] if calls else {})
    denoiser = pipeline_denoiser(pipe, calls[:1] or None)
    want = df.sample(denoiser, result.plan, x=start_of(pipe, result.plan)).x
    if name == "DDPM":
        want = (want / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    fine_tuned = copy.copy(pipe)
    part = "transformer" if name == "Flux" else "unet"
    network = copy.deepcopy(getattr(pipe, part))
    with torch.no_grad():
        next(network.parameters()).add_(0.01)
    setattr(fine_tuned, part, network)
    assert "fingerprint" in str(accelerate(fine_tuned, plan=result.plan, quiet=True))
    other = replace(result.plan, made_for={"predicts": "v"})
    with pytest.raises(ValueError, match="predicts 'v'"):
        accelerate(pipe, plan=other, quiet=True)


def test_a_file_of_a_run_with_other_prompts_is_refused(tmp_path):
    pipe, options = Pipe("extra"), {**QUICK, "resume": tmp_path / "work.json", "iterations": 0}
    first = tune(pipe, [{"label": 1.0}], 3, **options)
    again = tune(pipe, [{"label": 1.0}], 3, **options)
    assert (first.plan.matrix == again.plan.matrix).all()
    with pytest.raises(ValueError, match="of a run with conditions = .* but conditions is .* now"):
        tune(pipe, [{"label": 2.0}], 3, **options)
