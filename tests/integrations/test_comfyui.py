"""The ComfyUI package in a stand-in for ComfyUI: its registration points, run end to end.

Only what a custom node meets is there: the lists, KSAMPLER and its wrapping of the model, the
schedule handlers, and the two kinds of model sampling.
"""

import importlib
import sys

import numpy as np
import pytest
import torch
from comfy_stand_in import (
    PARTS,
    SHAPE,
    Const,
    Eps,
    Guider,
    all_names,
    generate,
    latents,
    named,
    sigmas_of,
)

import diffast as df
from diffast import ops
from diffast.integrations.k_diffusion import get_sigmas_karras
from diffast.solvers import SOLVERS


def test_registers_names_schedules_and_nodes_once(comfy):
    names = all_names(comfy)
    assert {"diffast_euler", "diffast_dpmpp_2m_sde", "diffast_uni_pc"} <= set(names)
    assert comfy.samplers.KSampler.SAMPLERS[:2] == ["euler", "dpm_2"]
    discarding = comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    assert {"diffast_dpm_2", "diffast_dpm_2_ancestral", "diffast_uni_pc"} <= discarding
    assert "diffast_heun" not in discarding
    importlib.import_module("diffast.integrations.comfyui.register").register()
    assert all_names(comfy) == names and len(set(names)) == len(names)
    assert comfy.samplers.SCHEDULER_NAMES == ["simple", "diffast_logsnr", "diffast_kl_optimal"]
    assert set(comfy.NODE_CLASS_MAPPINGS) == set(comfy.NODE_DISPLAY_NAME_MAPPINGS)
    for name, node in comfy.NODE_CLASS_MAPPINGS.items():
        made = "MODEL" if name == "DiffastGuidance" else "SAMPLER"
        assert node.RETURN_TYPES[0] == made and hasattr(node, node.FUNCTION)


def test_every_name_stands_for_a_known_solver(comfy):
    table = sys.modules["diffast.integrations.comfyui.table"].SAMPLERS
    for entry in table.values():
        assert callable(entry.solver) or entry.solver in SOLVERS
        assert entry.flow is None or callable(entry.flow) or entry.flow in SOLVERS


# lcm wants a consistency model, not a denoiser; dpm_fast calls at other levels, and dpm_adaptive is
# ComfyUI's own for three samples. Some put the noise of x0 + sigma eps on a flow, as in ComfyUI.
NOT_SAMPLERS = {Eps: {"diffast_lcm", "diffast_dpm_fast", "diffast_dpm_adaptive"}}
NOT_SAMPLERS[Const] = {"diffast_ddpm", "diffast_res_multistep_ancestral", *NOT_SAMPLERS[Eps]}
NOT_SAMPLERS[Const] |= {"diffast_res_multistep_ancestral_cfg_pp"}


@pytest.mark.parametrize("kind", [Eps, Const])
def test_every_sampler_runs_through_ksampler_and_samples_the_latents(comfy, kind):
    steps = 60
    for name in all_names(comfy):
        if name.endswith("_gpu") or name in NOT_SAMPLERS[kind]:
            continue
        sigmas = torch.linspace(1.0, 0.0, steps + 1)  # ComfyUI's "simple" for a flow model
        if kind is Eps:
            sigmas = get_sigmas_karras(steps, 0.03, 14.6)
        seen = []
        out, guider = generate(
            comfy,
            named(comfy, name),
            kind(),
            sigmas=sigmas,
            callback=lambda i, denoised, x, total, seen=seen: seen.append(i),
        )
        assert seen == list(range(steps)), name
        assert out.dtype == torch.float32 and out.shape == SHAPE, name
        assert out.isfinite().all(), name
        # of 768 numbers; their spread is sqrt(0.3^2 + 0.5^2)
        assert abs(float(out.mean()) - 0.3) < 0.08, (name, float(out.mean()))
        assert abs(float(out.std()) - 0.583) < 0.06, (name, float(out.std()))
        dtypes, _, options, seeds = zip(*guider.calls, strict=True)
        assert set(dtypes) == {torch.float32} and set(seeds) == {5}, name
        listener = ["sampler_post_cfg_function"] if name.endswith("_cfg_pp") else []
        assert options[0] == [*listener, "transformer_options"], name


@pytest.mark.parametrize("kind", [Eps, Const])
def test_euler_is_comfyuis_formula(comfy, kind):
    sigmas = sigmas_of(comfy, kind())
    out, guider = generate(comfy, named(comfy, "diffast_euler"), kind(), sigmas=sigmas)
    x = kind().noise_scaling(sigmas[0], *latents())
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        denoised = Guider(kind())(x, sigma.expand(3), {}, 0)
        x = x + (x - denoised) / sigma * (following - sigma)
    torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)
    assert [call[1] for call in guider.calls] == [[float(s)] * 3 for s in sigmas[:-1]]


@pytest.mark.parametrize("kind", [Eps, Const])
@pytest.mark.parametrize("name", ["heun", "dpm_2", "ipndm", "gradient_estimation"])
def test_solvers_in_sigma_are_comfyuis_on_flow_models_too(comfy, name, kind):
    sigmas = sigmas_of(comfy, kind()).double()
    if kind is Const:
        sigmas = torch.linspace(1.0, 0.0, 7, dtype=torch.float64)
    out, _ = generate(comfy, named(comfy, f"diffast_{name}"), kind(), sigmas=sigmas)
    x = kind().noise_scaling(sigmas[0], *latents()).double()
    model, slopes = Guider(kind()), []

    def slope(x, sigma):
        return (x - model(x, sigma.expand(3), {}, 0)) / sigma

    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        slopes = [slope(x, sigma), *slopes][:4]
        mean = slopes[0]
        if following > 0.0:
            if name == "heun":
                mean = (mean + slope(x + (following - sigma) * mean, following)) / 2
            elif name == "dpm_2":
                middle = (sigma * following).sqrt()
                mean = slope(x + (middle - sigma) * mean, middle)
            elif name == "gradient_estimation":
                mean = mean + (2.0 - 1.0) * (mean - slopes[min(1, len(slopes) - 1)])
            else:
                even = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
                even[4] = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
                mean = sum(b * d for b, d in zip(even[len(slopes)], slopes, strict=True))
        x = x + (following - sigma) * mean
    torch.testing.assert_close(out.double(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("kind", [Eps, Const])
def test_2m_sde_is_comfyuis_formula_with_comfyuis_noise(comfy, kind, eta):
    """In half log-SNR lam; a flow model starts at percent_to_sigma(1e-4), not at 1."""
    node = comfy.NODE_CLASS_MAPPINGS["DiffastStochasticSampler"]()
    (sampler,) = node.make("dpmpp_2m_sde", eta, 1.0, "torch")
    sigmas = sigmas_of(comfy, kind())
    if kind is Const:
        sigmas[0] = 1.0
    out, _ = generate(comfy, sampler, kind(), sigmas=sigmas)
    x = kind().noise_scaling(sigmas[0], *latents()).double()
    generator = torch.Generator().manual_seed(5 + 1)
    sigmas = sigmas.double()
    if kind is Const:
        sigmas[0] = 0.9999
    alpha = kind().level(sigmas)[0]
    lam = (alpha / sigmas).log()
    old = None
    for i in range(6):
        denoised = Guider(kind())(x, sigmas[i].expand(3), {}, 0)
        if sigmas[i + 1] == 0:
            x = denoised
            break
        h = lam[i + 1] - lam[i]
        gain = -alpha[i + 1] * torch.expm1(-h - eta * h)
        x = sigmas[i + 1] / sigmas[i] * torch.exp(-eta * h) * x + gain * denoised
        if old is not None:
            x = x + 0.5 * gain * h / (lam[i] - lam[i - 1]) * (denoised - old)
        fresh = torch.randn(SHAPE, generator=generator)
        x = x + fresh * sigmas[i + 1] * torch.sqrt(-torch.expm1(-2 * eta * h))
        old = denoised
    torch.testing.assert_close(out.double(), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_euler_ancestral_of_flow_models_is_comfyuis_formula(comfy, eta):
    """Down to sigma_t (1 + (sigma_t / sigma_s - 1) eta), then noise up to the alpha of sigma_t."""
    node = comfy.NODE_CLASS_MAPPINGS["DiffastStochasticSampler"]()
    (sampler,) = node.make("euler_ancestral", eta, 1.0, "torch")
    sigmas = torch.linspace(1.0, 0.0, 7, dtype=torch.float64)
    out, _ = generate(comfy, sampler, Const(), sigmas=sigmas)
    x, generator = latents()[0].double(), torch.Generator().manual_seed(5 + 1)
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        denoised = Guider(Const())(x, s.expand(3), {}, 0)
        down = t * (1.0 + (t / s - 1.0) * eta)
        x = down / s * x + (1.0 - down / s) * denoised
        if t > 0.0:
            grow = (1.0 - t) / (1.0 - down)
            fresh = torch.randn(SHAPE, generator=generator)
            x = grow * x + fresh * torch.sqrt(t**2 - (grow * down) ** 2)
    torch.testing.assert_close(out.double(), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Eps, Const])
@pytest.mark.parametrize("name", ["diffast_dpmpp_2m_sde", "diffast_euler_ancestral"])
def test_counter_noise_does_not_know_the_batch(comfy, name, kind):
    full, _ = generate(comfy, named(comfy, name), kind())
    alone, _ = generate(comfy, named(comfy, name), kind(), rows=1)
    other, _ = generate(comfy, named(comfy, name), kind(), seed=2**64 - 1)
    torch.testing.assert_close(full[:1], alone, rtol=0, atol=0)
    assert float((full - other).abs().max()) > 0.01


def test_counter_noise_is_the_packages(comfy):
    sigmas = sigmas_of(comfy, Eps())
    out, _ = generate(comfy, named(comfy, "diffast_euler_ancestral"), Eps(), sigmas=sigmas)
    schedule = df.schedules.edm(float(sigmas[-2]), float(sigmas[0]))
    plan = df.solvers.euler_ancestral(schedule, sigmas.double().numpy())
    denoiser = df.Denoiser(lambda x, t: Guider(Eps())(x, t, {}, 0), schedule, predicts="x0")
    noise, _ = latents()
    wanted = df.sample(denoiser, plan, x=noise * sigmas[0], seed=5).x
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    assert not torch.equal(ops.normal(SHAPE, seed=5), ops.normal(SHAPE, seed=6))


def test_nodes_make_samplers_with_their_options(comfy):
    nodes = comfy.NODE_CLASS_MAPPINGS
    plain = nodes["DiffastSampler"]
    names, noises = (given[0] for given in plain.INPUT_TYPES()["required"].values())
    assert "heun" in names and "euler_ancestral" not in names and noises == ["counter", "torch"]
    (heun,) = plain().make("heun", "counter")
    (churned,) = nodes["DiffastChurnSampler"]().make("heun", 0.5, 0.1, 5.0, 1.0, "counter")
    (calm,) = nodes["DiffastStochasticSampler"]().make("euler_ancestral", 0.0, 1.0, "counter")
    by_name = generate(comfy, named(comfy, "diffast_heun"), Eps())[0]
    by_node = generate(comfy, heun, Eps())[0]
    torch.testing.assert_close(by_node, by_name, rtol=0, atol=0)
    assert float((generate(comfy, churned, Eps())[0] - by_node).abs().max()) > 0.01
    euler = generate(comfy, named(comfy, "diffast_euler"), Eps())[0]
    torch.testing.assert_close(generate(comfy, calm, Eps())[0], euler, rtol=0, atol=1e-5)
    for node in nodes.values():  # what ComfyUI's graph sends is what the method takes
        wanted = node.INPUT_TYPES()["required"]
        assert set(wanted) == set(
            node.make.__code__.co_varnames[1 : node.make.__code__.co_argcount]
        )


def test_extra_options_of_ksampler_reach_the_builder(comfy):
    function = comfy.modules["comfy.k_diffusion.sampling"].sample_diffast_euler_ancestral
    calm = comfy.samplers.KSAMPLER(function, {"eta": 0.0})
    euler = generate(comfy, named(comfy, "diffast_euler"), Eps())[0]
    torch.testing.assert_close(generate(comfy, calm, Eps())[0], euler, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="eta = 3"):
        generate(comfy, comfy.samplers.KSAMPLER(function, {"eta": 3.0}), Eps())


@pytest.mark.parametrize("kind", [Eps, Const])
def test_masks_and_previews_work(comfy, kind):
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., 4:] = 1.0
    seen = []
    out, _ = generate(
        comfy,
        named(comfy, "diffast_dpmpp_2m"),
        kind(),
        callback=lambda i, denoised, x, total: seen.append((i, denoised.shape, x.shape, total)),
        denoise_mask=mask,
    )
    assert seen == [(i, SHAPE, SHAPE, 6) for i in range(6)]
    assert float(out[..., :4].abs().max()) < 1e-6  # the latent image is 0 there
    assert float(out[..., 4:].abs().min()) > 0.0


def test_a_callback_that_raises_ends_the_run(comfy):
    class Interrupted(Exception):
        pass

    def stop(i, *_):
        if i == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        generate(comfy, named(comfy, "diffast_heun"), Eps(), callback=stop)


@pytest.mark.parametrize("name", ["diffast_logsnr", "diffast_kl_optimal"])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("kind", [Eps, Const])
def test_schedules_are_even_in_the_models_own_terms(comfy, kind, steps, name):
    sigmas = sigmas_of(comfy, kind(), name, steps)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    first = 0.9999 if kind is Const else 14.6
    assert float(sigmas[0]) == pytest.approx(first, rel=1e-6)
    if steps == 1:
        return
    assert float(sigmas[-2]) == pytest.approx(float(kind.sigma_min), rel=1e-5)
    alpha, level = kind().level(sigmas[:-1].double())
    even = (alpha / level).log() if name == "diffast_logsnr" else torch.atan2(level, alpha)
    gaps = even.diff().numpy()
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=2e-3)  # 1 - 0.9999 has 3 digits in float32


def test_empty_and_single_sigmas_return_the_input(comfy):
    function = comfy.modules["comfy.k_diffusion.sampling"].sample_diffast_heun
    x = torch.ones(1, 2)
    assert function(None, x, torch.tensor([])) is x
    assert function(None, x, torch.tensor([1.0])) is x


def test_unknown_names_are_refused(comfy):
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    with pytest.raises(ValueError, match="name = 'nothing', but these are known: euler"):
        make("nothing")
    with pytest.raises(ValueError, match="noise = 'white', but it must be one of counter, torch"):
        make("euler", "white")


def test_outside_comfyui_the_import_says_what_is_missing(monkeypatch):
    package = "diffast.integrations.comfyui"
    monkeypatch.setitem(sys.modules, "comfy", None)  # even where ComfyUI is installed
    for name in (package, *(f"{package}.{part}" for part in PARTS)):
        sys.modules.pop(name, None)
    with pytest.raises(ImportError, match="comfy"):
        importlib.import_module(package)
