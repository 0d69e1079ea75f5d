"""Guidance rules against diffusers' guiders on random outputs, over the steps of a run."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import diffast as df

pytest.importorskip("diffusers", minversion="0.42")
guiders = pytest.importorskip("diffusers.guiders")

G = df.guidance
# The state is 0 at first, so that steps can be told from states.
pytestmark = pytest.mark.filterwarnings("ignore:.*")
FLOW = df.schedules.flow()
STEPS = 5
GRID = np.linspace(1.0, 0.0, STEPS + 1)
SHAPE = (3, 2, 16, 16)


def outputs(branches):
    """Returns random outputs of the branches for every step; they resemble one another."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(STEPS, 1, *SHAPE, generator=generator)
    own = torch.randn(STEPS, branches, *SHAPE, generator=generator)
    return shared + 0.4 * own + 0.1


class Playback:
    """A network that returns given outputs, whatever its input; branches tell which."""

    def __init__(self, made):
        self.made, self.calls, self.rows = made, [], []

    def __call__(self, x, t, which):
        step = int(round((1.0 - float(t[0])) * STEPS))
        self.calls.append(step)
        self.rows.append(len(x))
        found = [self.made[step, int(w), b % SHAPE[0]] for b, w in enumerate(which.reshape(-1))]
        return torch.stack(found).to(x.dtype)


def close(got, want):
    """Asserts differences below 1e-5 of the largest number: both sides round in float32."""
    assert want.isfinite().all()
    assert float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())


def flag(branch):
    return {"which": torch.full((1, 1), float(branch))}


def guided(rule, made, dtype=torch.float32, **how):
    """Returns the velocities that the run's steps were made of: x_(k+1) = x_k + h v."""
    network = Playback(made)
    denoiser = df.Denoiser(
        network, FLOW, "flow", conditions=flag(0), unconditional=flag(1), guidance=rule, **how
    )
    seen = []
    df.sample(
        denoiser,
        df.solvers.euler(FLOW, GRID),
        x=torch.zeros(SHAPE, dtype=dtype),
        callback=lambda p: seen.append(p.x.clone()) or False,
    )
    points = [torch.zeros(SHAPE, dtype=dtype), *seen]
    return torch.stack(
        [(b - a) * -STEPS for a, b in zip(points, points[1:], strict=False)]
    ), network


def theirs(guider, made, extra=None):
    """Returns their predictions for every step."""
    found = []
    for step in range(STEPS):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=None)
        if hasattr(guider, "momentum_buffer") and step == 0:
            guider.prepare_inputs({})
        given = {"pred_cond": made[step, 0], "pred_uncond": made[step, 1]}
        if extra is not None:
            given[extra] = made[step, 2]
        found.append(guider.forward(**given).pred)
    return torch.stack(found)


def guider(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(guiders, name)(**options)


@pytest.fixture(autouse=True)
def norms_of_images(monkeypatch):
    """Their MambO-G asks torch.norm for the norm over three axes, which torch 2.13 refuses."""
    module = pytest.importorskip("diffusers.guiders.magnitude_aware_guidance")
    own = SimpleNamespace(norm=torch.linalg.vector_norm, exp=torch.exp)
    monkeypatch.setattr(module, "torch", own)


CASES = {
    "cfg": ("ClassifierFreeGuidance", {"guidance_scale": 5.0}, lambda: G.cfg(5.0)),
    "cfg, original": (
        "ClassifierFreeGuidance",
        {"guidance_scale": 4.0, "use_original_formulation": True},
        lambda: G.cfg(5.0),
    ),
    "cfg, rescale": (
        "ClassifierFreeGuidance",
        {"guidance_scale": 5.0, "guidance_rescale": 0.7},
        lambda: G.rescale(0.7, 5.0),
    ),
    "cfg, start and stop": (
        "ClassifierFreeGuidance",
        {"guidance_scale": 5.0, "start": 0.2, "stop": 0.8, "guidance_rescale": 0.3},
        lambda: G.interval(G.rescale(0.3, 5.0), 0.3, 0.9, by="time"),
    ),
    "apg, their defaults": (
        "AdaptiveProjectedGuidance",
        {"guidance_scale": 5.0},
        lambda: G.apg(5.0, eta=1.0, norm_threshold=15.0, base="uncond"),
    ),
    "apg, original, all": (
        "AdaptiveProjectedGuidance",
        {
            "guidance_scale": 4.0,
            "adaptive_projected_guidance_momentum": -0.5,
            "adaptive_projected_guidance_rescale": 6.0,
            "eta": 0.25,
            "guidance_rescale": 0.4,
            "use_original_formulation": True,
        },
        lambda: G.rescale(0.4, G.apg(5.0, eta=0.25, norm_threshold=6.0, momentum=-0.5)),
    ),
    "apg, momentum within an interval": (
        "AdaptiveProjectedGuidance",
        {
            "guidance_scale": 5.0,
            "adaptive_projected_guidance_momentum": -0.75,
            "adaptive_projected_guidance_rescale": 9.0,
            "eta": 0.0,
            "start": 0.2,
        },
        lambda: G.interval(
            G.apg(5.0, norm_threshold=9.0, momentum=-0.75, base="uncond"), 0.0, 0.9, by="time"
        ),
    ),
    "zero star": (
        "ClassifierFreeZeroStarGuidance",
        {"guidance_scale": 5.0},
        lambda: G.cfg_zero_star(5.0),
    ),
    "zero star, original, rescale": (
        "ClassifierFreeZeroStarGuidance",
        {
            "guidance_scale": 4.0,
            "zero_init_steps": 0,
            "guidance_rescale": 0.5,
            "use_original_formulation": True,
        },
        lambda: G.rescale(0.5, G.cfg_zero_star(5.0, zero_init_steps=0)),
    ),
    "tcfg": ("TangentialClassifierFreeGuidance", {"guidance_scale": 5.0}, lambda: G.tcfg(5.0)),
    "tcfg, original, rescale": (
        "TangentialClassifierFreeGuidance",
        {"guidance_scale": 4.0, "guidance_rescale": 0.5, "use_original_formulation": True},
        lambda: G.rescale(0.5, G.tcfg(5.0)),
    ),
    "mambo": ("MagnitudeAwareGuidance", {"guidance_scale": 5.0}, lambda: G.mambo(5.0)),
    "mambo, original, rescale": (
        "MagnitudeAwareGuidance",
        {
            "guidance_scale": 4.0,
            "alpha": 3.0,
            "guidance_rescale": 0.5,
            "use_original_formulation": True,
        },
        lambda: G.rescale(0.5, G.mambo(5.0, 3.0)),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_equals_the_guider_of_diffusers(name):
    theirs_name, options, rule = CASES[name]
    made = outputs(2)
    want = theirs(guider(theirs_name, **options), made)
    got, _ = guided(rule(), made)
    close(got, want)


@pytest.mark.parametrize("rescaled", [0.0, 0.6])
def test_equals_autoguidance(rescaled):
    made = outputs(2)
    config = guiders.auto_guidance.AutoGuidance
    want = config.__new__(config)  # its constructor wants layers to drop, which no output shows
    want.__dict__ |= {"guidance_scale": 3.0, "guidance_rescale": rescaled}
    want.__dict__ |= {"use_original_formulation": False, "_enabled": True, "_start": 0.0}
    want.__dict__ |= {"_stop": 1.0, "auto_guidance_config": []}
    weak = Playback(made)
    rule = G.autoguidance(weak, 3.0, conditions=flag(1))
    got, strong = guided(G.rescale(rescaled, rule), made)
    close(got, theirs(want, made))
    assert strong.rows == weak.rows == [SHAPE[0]] * STEPS


THIRD = {
    "PerturbedAttentionGuidance": ("perturbed_guidance_scale", "pred_cond_skip"),
    "SkipLayerGuidance": ("skip_layer_guidance_scale", "pred_cond_skip"),
    "SmoothedEnergyGuidance": ("seg_guidance_scale", "pred_cond_seg"),
}


def _after_the_first_step(scale):
    """Returns a scale as their guiders have it: none in step 0, whatever `start` says."""
    return lambda t: scale if t < 1.0 else 0.0


@pytest.mark.parametrize("name", list(THIRD))
@pytest.mark.parametrize("rescaled", [0.0, 0.6])
def test_equals_guidance_by_a_third_branch(name, rescaled):
    made = outputs(3)
    scale, extra = THIRD[name]
    options = {scale: 2.0, "guidance_scale": 4.0, "guidance_rescale": rescaled}
    kind = getattr(guiders, name)
    arguments = kind.__init__.__wrapped__.__code__.co_varnames
    layers = next(a for a in arguments if a.endswith("layers"))
    begins = [a for a in arguments if a.endswith("_start")]
    ends = [a for a in arguments if a.endswith("_stop")]
    options |= {layers: [0]} | dict.fromkeys(begins, 0.0) | dict.fromkeys(ends, 1.0)
    want = theirs(guider(name, **options), made, extra)
    away = _after_the_first_step(2.0)
    rule = G.rescale(rescaled, G.perturbed(away, conditions=flag(2), scale=4.0))
    got, network = guided(rule, made)
    close(got, want)
    assert network.rows == [2 * SHAPE[0], *[3 * SHAPE[0]] * (STEPS - 1)]
    own = Playback(made)
    perturbed = G.perturbed(away, network=lambda x, t, which: own(x, t, which + 2), scale=4.0)
    got, network = guided(G.rescale(rescaled, perturbed), made)
    close(got, want)
    assert network.rows == [2 * SHAPE[0]] * STEPS
    assert own.rows == [SHAPE[0]] * (STEPS - 1)


def test_their_third_branch_without_cfg_is_ours_with_a_scale_one_less():
    """p + s (c - p) there, where c + s (c - p) is meant with classifier-free guidance."""
    made = outputs(3)
    options = {"skip_layer_guidance_layers": [0], "skip_layer_guidance_start": 0.0}
    options |= {"skip_layer_guidance_stop": 1.0, "guidance_scale": 1.0}
    want = theirs(
        guider("SkipLayerGuidance", skip_layer_guidance_scale=2.5, **options),
        made,
        "pred_cond_skip",
    )
    got, network = guided(G.perturbed(_after_the_first_step(1.5), conditions=flag(2)), made)
    close(got, want)
    assert network.rows == [SHAPE[0], *[2 * SHAPE[0]] * (STEPS - 1)]


@pytest.mark.parametrize("scales", [(10.0, 5.0), (7.0, 4.0, 2.0)])
@pytest.mark.parametrize("rescaled", [0.0, 0.6])
def test_equals_frequency_decoupled_guidance(scales, rescaled):
    pytest.importorskip("kornia")
    made = outputs(2)
    options = {"guidance_scales": list(scales), "guidance_rescale": rescaled}
    want = theirs(guider("FrequencyDecoupledGuidance", **options), made)
    got, _ = guided(G.rescale(rescaled, G.fdg(scales)), made)
    close(got, want)


@pytest.mark.parametrize("maximum", [1.0, 1.6])
def test_dynamic_threshold_is_that_of_their_schedulers(maximum):
    schedulers = pytest.importorskip("diffusers")
    scheduler = schedulers.DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=maximum
    )
    made = outputs(2)
    x0 = 3.0 * made[0, 1] - 2.0 * made[0, 0]
    want = scheduler._threshold_sample(x0)
    denoiser = df.Denoiser(
        Playback(made),
        FLOW,
        "x0",
        conditions=flag(1),
        unconditional=flag(0),
        guidance=G.dynamic_threshold(0.9, maximum, 3.0),
    )
    got = df.sample(denoiser, df.solvers.euler(FLOW, [1.0, 0.0]), x=torch.zeros(SHAPE)).x
    close(got, want)
