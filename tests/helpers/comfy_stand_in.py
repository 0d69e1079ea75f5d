"""A stand-in for ComfyUI: its registration points, KSAMPLER, and two kinds of model sampling."""

import sys
import types
from typing import NamedTuple

import torch

SHAPE = (3, 4, 8, 8)
PARTS = ("branches", "guidance", "levels", "nodes", "originals", "plans", "register")
PARTS += ("running", "samplers", "special", "table")


class Const:
    """A flow model: x = sigma noise + (1 - sigma) latent, its network predicts noise - latent."""

    sigma_min, sigma_max = torch.tensor(0.001), torch.tensor(1.0)

    def percent_to_sigma(self, percent):
        return 1.0 - percent

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)

    def level(self, sigma):
        return 1.0 - sigma, sigma


class Eps:
    """A model in x = latent + sigma noise."""

    sigma_min, sigma_max = torch.tensor(0.03), torch.tensor(14.6)

    def percent_to_sigma(self, percent):
        return 999999999.9 if percent <= 0.0 else float(self.sigma_max) * (1.0 - percent)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        scale = (1.0 + sigma**2) ** 0.5 if max_denoise else sigma
        return noise * scale + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent

    def level(self, sigma):
        return torch.ones_like(sigma), sigma


class Guider:
    """What a sampler calls `model.inner_model`: the guided denoiser of the loaded model."""

    def __init__(self, model_sampling):
        self.inner_model = types.SimpleNamespace(
            model_sampling=model_sampling,
            scale_latent_inpaint=lambda x, sigma, noise, latent_image, denoise_mask: (
                model_sampling.noise_scaling(sigma.reshape(-1, 1, 1, 1), noise, latent_image)
            ),
        )
        self.calls, self.apart = [], 0.0

    def __call__(self, x, sigma, model_options, seed):
        self.calls.append((x.dtype, sigma.tolist(), sorted(model_options), seed))
        alpha, noise = self.inner_model.model_sampling.level(sigma.reshape(-1, 1, 1, 1))
        spread = alpha**2 * 0.3**2 + noise**2  # latents N(-0.2, 0.3^2) or N(0.8, 0.3^2)
        mean = torch.sigmoid(alpha * (x - alpha * 0.3) / spread) - 0.2
        denoised = mean + alpha * 0.3**2 / spread * (x - alpha * mean)
        for listen in model_options.get("sampler_post_cfg_function", ()):
            # Without a condition the mean is 0.3: the gain of the guidance is in `apart`.
            blank = denoised + self.apart * (0.3 - mean)
            denoised = listen({"denoised": denoised, "uncond_denoised": blank})
        return denoised


def make_comfy():
    """Returns the stand-in's modules by name."""
    names = ("comfy", "comfy.samplers", "comfy.model_sampling", "comfy.k_diffusion")
    comfy, samplers, model_sampling, k_diffusion = (types.ModuleType(name) for name in names)
    patcher = types.ModuleType("comfy.model_patcher")

    def set_model_options_post_cfg_function(options, function, disable_cfg1_optimization=False):
        kept = [*options.get("sampler_post_cfg_function", []), function]
        return {**options, "sampler_post_cfg_function": kept}

    patcher.set_model_options_post_cfg_function = set_model_options_post_cfg_function
    comfy.model_patcher = patcher
    sampling = types.ModuleType("comfy.k_diffusion.sampling")
    comfy.__path__ = k_diffusion.__path__ = []
    comfy.samplers, comfy.model_sampling, comfy.k_diffusion = samplers, model_sampling, k_diffusion
    k_diffusion.sampling = sampling
    model_sampling.CONST = Const

    class SchedulerHandler(NamedTuple):
        handler: object
        use_ms: bool = True

    class InpaintModel:
        def __init__(self, model, noise, latent_image):
            self.inner_model, self.noise, self.latent_image = model, noise, latent_image

        def __call__(self, x, sigma, denoise_mask, model_options, seed=None):
            if denoise_mask is not None:
                kept = self.inner_model.inner_model.scale_latent_inpaint(
                    x=x,
                    sigma=sigma,
                    noise=self.noise,
                    latent_image=self.latent_image,
                    denoise_mask=denoise_mask,
                )
                x = x * denoise_mask + kept * (1.0 - denoise_mask)
            out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
            if denoise_mask is not None:
                out = out * denoise_mask + self.latent_image * (1.0 - denoise_mask)
            return out

    class KSAMPLER:
        def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
            self.sampler_function, self.extra_options = sampler_function, extra_options or {}

        def sample(
            self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None
        ):
            extra_args["denoise_mask"] = denoise_mask
            model_sampling = model_wrap.inner_model.model_sampling
            model = InpaintModel(model_wrap, noise, latent_image)
            x = model_sampling.noise_scaling(sigmas[0], noise, latent_image)
            total = len(sigmas) - 1
            out = self.sampler_function(
                model,
                x,
                sigmas,
                extra_args=extra_args,
                callback=lambda d: callback and callback(d["i"], d["denoised"], d["x"], total),
                disable=True,
                **self.extra_options,
            )
            return model_sampling.inverse_noise_scaling(sigmas[-1], out)

    class KSampler:
        pass

    samplers.SAMPLER_NAMES = KSampler.SAMPLERS = ["euler", "dpm_2"]
    samplers.SCHEDULER_HANDLERS = {}
    samplers.SCHEDULER_NAMES = KSampler.SCHEDULERS = ["simple"]
    KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS = {"dpm_2"}
    samplers.KSampler, samplers.KSAMPLER = KSampler, KSAMPLER
    samplers.SchedulerHandler = SchedulerHandler
    modules = (comfy, samplers, model_sampling, k_diffusion, sampling, patcher)
    return {module.__name__: module for module in modules}


def stand_in(monkeypatch):
    """ComfyUI's stand-in with the custom node freshly imported into it."""
    modules = make_comfy()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    package = "diffast.integrations.comfyui"
    for name in (package, *(f"{package}.{part}" for part in PARTS)):
        monkeypatch.delitem(sys.modules, name, raising=False)
    custom_node = {}
    exec("from diffast.integrations.comfyui import *", custom_node)
    yield types.SimpleNamespace(**custom_node, samplers=modules["comfy.samplers"], modules=modules)
    for name in (package, *(f"{package}.{part}" for part in PARTS)):
        sys.modules.pop(name, None)


def named(comfy, name):
    """What KSampler does with a name of its list."""
    assert name in comfy.samplers.KSampler.SAMPLERS
    function = getattr(comfy.modules["comfy.k_diffusion.sampling"], f"sample_{name}")
    return comfy.samplers.KSAMPLER(function)


def sigmas_of(comfy, model_sampling, name="diffast_logsnr", steps=6):
    handler = comfy.samplers.SCHEDULER_HANDLERS[name]
    assert handler.use_ms and name in comfy.samplers.KSampler.SCHEDULERS
    return handler.handler(model_sampling, steps)


def latents(rows=3, value=0.0):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SHAPE, generator=generator)[:rows], torch.full(SHAPE, value)[:rows]


def generate(comfy, sampler, model_sampling, seed=5, rows=3, sigmas=None, callback=None, **more):
    guider = Guider(model_sampling)
    noise, latent = latents(rows)
    if sigmas is None:
        sigmas = sigmas_of(comfy, model_sampling)
    extra_args = {"model_options": {"transformer_options": {}}, "seed": seed}
    out = sampler.sample(guider, sigmas, extra_args, callback, noise, latent, **more)
    return out, guider


def all_names(comfy):
    return [name for name in comfy.samplers.KSampler.SAMPLERS if name.startswith("diffast_")]
