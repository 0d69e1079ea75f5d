"""The samplers inside the real ComfyUI: KSampler, CFGGuider, masks, previews, cancelling.

Runs where a package with ComfyUI's `comfy` is installed (notcomfy 0.1.0 has that of November 2024).
"""

import warnings

import comfy_real
import comfy_runs
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not comfy_real.found(), reason="ComfyUI is not installed"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),  # ComfyUI's own
]

KINDS = ["EPS", "V_PREDICTION", "EDM", "FLOW"]
# Names whose numbers ComfyUI has changed since: on flow models, and in the step into sigma = 0.
SINCE_ON_FLOWS = {"dpm_2_ancestral", "euler_cfg_pp", "euler_ancestral_cfg_pp"}
SINCE_ON_FLOWS |= {f"dpmpp_{n}_sde{g}" for n in ("2m", "3m") for g in ("", "_gpu")}
SINCE_ON_FLOWS |= {"dpmpp_sde", "dpmpp_sde_gpu"}
SINCE_INTO_0 = {"lms", "ipndm", "ipndm_v"}
SINCE = {"dpmpp_2s_ancestral_cfg_pp"}
NOT_ALONE = {"dpm_fast", "dpm_adaptive"}


@pytest.fixture(scope="module")
def comfy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return comfy_real.load()


@pytest.fixture
def normals(comfy, monkeypatch):
    """The default noise sampler in place of the Brownian tree, and seeded for all."""
    from comfy.k_diffusion import sampling

    def plain(x, *_, seed=None, **__):
        generator = torch.Generator().manual_seed(7 + 1)
        return lambda sigma, following: torch.randn(x.shape, dtype=x.dtype, generator=generator)

    monkeypatch.setattr(sampling, "BrownianTreeNoiseSampler", plain)
    monkeypatch.setattr(sampling, "default_noise_sampler", plain)


def both(comfy, name, patcher, sigmas, **more):
    """Returns the samples of the package and of ComfyUI."""
    from diffast.integrations.comfyui.samplers import sampler

    ours = comfy.samplers.KSAMPLER(sampler(name, "torch"), {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = comfy_real.generate(comfy, patcher, ours, sigmas.clone(), **more)
    own = comfy.samplers.sampler_object(name)
    return made, comfy_real.generate(comfy, patcher, own, sigmas.clone(), **more)


def shared(comfy, flow, clean):
    """Returns the names that this ComfyUI has, with the numbers of today's."""
    from diffast.integrations.comfyui.samplers import SAMPLERS

    changed = SINCE | (SINCE_ON_FLOWS if flow else set()) | (SINCE_INTO_0 if clean else set())
    return [n for n in SAMPLERS if n in comfy.samplers.SAMPLER_NAMES and n not in changed]


def test_its_lists_have_the_packages_names(comfy):
    from diffast.integrations.comfyui.samplers import NAMES

    names = comfy.samplers.KSampler.SAMPLERS
    assert {f"diffast_{name}" for name in NAMES} <= set(names)
    own = [name for name in names if not name.startswith("diffast_")]
    assert set(own) <= set(NAMES)


@pytest.mark.parametrize("scheduler", ["normal", "karras", "sgm_uniform"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_name_gives_comfyuis_picture(comfy, normals, kind, scheduler):
    """In float32; ComfyUI's uni_pc solves for its weights in float32, which loses digits."""
    patcher = comfy_real.model_of(comfy, kind)
    model_sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, scheduler, 6)
    for name in shared(comfy, kind == "FLOW", True):
        made, wanted = both(comfy, name, patcher, sigmas)
        limit = 3e-2 if name.startswith("uni_pc") else 1e-4
        assert comfy_runs.relative(made, wanted) < limit, name


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_every_name_gives_comfyuis_numbers_in_float64(comfy, normals, kind, clean):
    """DEIS of ComfyUI has coefficients of float32 in some steps."""
    from diffast.integrations.comfyui.samplers import sampler

    flow = kind == "FLOW"
    levels = comfy_runs.LEVELS[flow]["full" if clean else "open"]
    sigmas, x = torch.tensor(levels, dtype=torch.float64), comfy_runs.start(levels)
    model_sampling = comfy_real.model_of(comfy, kind).get_model_object("model_sampling")
    for name in shared(comfy, flow, clean):
        extra_args = {"model_options": {}, "seed": 7}
        model = comfy_runs.Model(model_sampling)
        made = sampler(name, "torch")(model, x, sigmas, extra_args=dict(extra_args), disable=True)
        own = comfy.samplers.sampler_object(name).sampler_function
        wanted = own(
            model, x.clone(), sigmas.clone(), extra_args=extra_args, callback=None, disable=True
        )
        if flow and clean and name.startswith("uni_pc"):
            wanted = wanted / 0.999  # KSAMPLER's division by 1 - sigmas[-1], which it has changed
        limit = 1e-5 if name == "deis" else 1e-10
        assert comfy_runs.relative(made, wanted) < limit, name


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_masks_latents_cfg_1_and_cut_schedules(comfy, normals, kind):
    patcher = comfy_real.model_of(comfy, kind)
    model_sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", 10)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 3:] = 1.0
    for name in ("euler", "ddim", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_cfg_pp", "heunpp2"):
        for more in ({"cfg": 1.0}, {"denoise_mask": mask}, {"latent": 0.5, "denoise_mask": mask}):
            made, wanted = both(comfy, name, patcher, sigmas[-5:], **more)
            assert comfy_runs.relative(made, wanted) < 1e-4, (name, more.keys())
            made, wanted = both(comfy, name, patcher, sigmas[:-4], **more)  # ends above 0
            assert comfy_runs.relative(made, wanted) < 1e-4, (name, more.keys())


@pytest.mark.parametrize("denoise", [1.0, 0.45])
def test_ksampler_takes_the_packages_names(comfy, denoise):
    patcher = comfy_real.model_of(comfy, "EPS")
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    pictures = []
    for name in ("dpm_2", "diffast_dpm_2"):
        made = comfy.samplers.KSampler(patcher, 6, torch.device("cpu"), name, "karras", denoise)
        conditions = comfy_real.conditions(0.4), comfy_real.conditions(-0.2)
        latent = torch.full_like(noise, 0.3)
        pictures.append(made.sample(noise, *conditions, 4.0, latent, seed=3, disable_pbar=True))
    assert comfy_runs.relative(*pictures) < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_and_dpm_fast(comfy, order):
    patcher = comfy_real.model_of(comfy, "EPS")
    model_sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "karras", 7)
    for name, options in (("dpm_adaptive", {"order": order, "rtol": 0.01}), ("dpm_fast", {})):
        from diffast.integrations.comfyui.samplers import sampler

        ours = comfy.samplers.KSAMPLER(sampler(name), options, {})
        own = comfy.samplers.ksampler(name, options)
        made, wanted = (
            comfy_real.generate(comfy, patcher, each, sigmas.clone(), rows=1)
            for each in (ours, own)
        )
        assert comfy_runs.relative(made, wanted) < (0.02 if name == "dpm_adaptive" else 1e-4)


def test_what_no_plan_can_do_is_comfyuis_own_picture(comfy):
    from diffast.integrations.comfyui.samplers import sampler
    from diffast.integrations.handed_over import HandedOverWarning

    patcher = comfy_real.model_of(comfy, "EPS")
    model_sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "normal", 8)
    cases = [("euler", sigmas[:-1].flip(0)), ("dpmpp_2m", sigmas[[0, 2, 2, 5, 8]])]
    cases += [("heun", sigmas[:-1].flip(0)), ("uni_pc", sigmas[[0, 8]])]
    for name, given in cases:
        ours = comfy.samplers.KSAMPLER(sampler(name), {}, {})
        with pytest.warns(HandedOverWarning, match=f"own sampler {name} ran"):
            if name == "dpmpp_2m":  # a step of 0 in log sigma
                with pytest.raises(FloatingPointError, match="own dpmpp_2m gave inf or nan"):
                    comfy_real.generate(comfy, patcher, ours, given.clone())
                continue
            made = comfy_real.generate(comfy, patcher, ours, given.clone())
        own = comfy.samplers.sampler_object(name)
        wanted = comfy_real.generate(comfy, patcher, own, given.clone())
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_previews_and_cancelling(comfy):
    patcher = comfy_real.model_of(comfy, "FLOW")
    model_sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", 5)
    for name in (
        "diffast_dpmpp_2m",
        "diffast_euler_ancestral",
        "diffast_dpmpp_2s_ancestral_cfg_pp",
    ):
        seen, own = [], comfy.samplers.sampler_object(name)

        def callback(i, denoised, x, total, seen=seen):
            seen.append((i, tuple(x.shape), total))

        comfy_real.generate(comfy, patcher, own, sigmas, callback=callback)
        assert seen == [(i, (2, 4, 8, 8), 5) for i in range(5)]

        def stop(i, *_):
            if i == 2:
                raise comfy.model_management.InterruptProcessingException

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            comfy_real.generate(comfy, patcher, own, sigmas, callback=stop)


def test_a_patched_model_sampling_is_read_at_each_run(comfy, normals):
    patcher = comfy_real.model_of(comfy, "FLOW")
    shifted = comfy_real.model_of(comfy, "FLOW", shift=6.0).get_model_object("model_sampling")
    other = patcher.clone()
    other.add_object_patch("model_sampling", shifted)
    for model in (patcher, other, patcher):
        model_sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", 5)
        made, wanted = both(comfy, "dpmpp_2s_ancestral", model, sigmas)
        assert comfy_runs.relative(made, wanted) < 1e-4
