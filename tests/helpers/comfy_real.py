"""The real ComfyUI with a model of a few numbers: its KSAMPLER, CFGGuider, KSampler and lists.

Needs a package that has ComfyUI's `comfy` (such as notcomfy 0.1.0, ComfyUI of November 2024), which
the project does not depend on.
"""

import importlib.util
import sys
import types

import torch


def found():
    """Returns whether ComfyUI can be imported."""
    if "comfy" in sys.modules:
        return hasattr(sys.modules["comfy"], "__file__")
    spec = importlib.util.find_spec("comfy")
    return spec is not None and importlib.util.find_spec("comfy.samplers") is not None


def load():
    """Returns ComfyUI's module `comfy`, for the CPU, with the package registered in it."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.model_base
    import comfy.model_patcher
    import comfy.samplers

    import diffast.integrations.comfyui

    assert diffast.integrations.comfyui.NODE_CLASS_MAPPINGS
    return comfy


class Net(torch.nn.Module):
    """Numbers in the place of a U-Net: bounded, smooth in x, guided by the context.

    It does not look at the time: ComfyUI rounds a level between two steps to the nearest of 1,000
    times, and float32 may round it to the other one.
    """

    dtype = torch.float32

    def forward(self, x, t, context=None, control=None, transformer_options=None, **_):
        """Returns [B, C, H, W]."""
        pull = context.float().mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        mixed = 0.5 * x + 0.3 * x.roll(1, -1) + pull
        return torch.tanh(mixed) + 0.1 * torch.sin(3.0 * x)


def model_of(comfy, kind, shift=None):
    """Returns a ModelPatcher of the small model: kind "EPS", "V_PREDICTION", "FLOW", "EDM", ..."""
    from comfy import latent_formats

    config = types.SimpleNamespace(
        unet_config={"disable_unet_model_creation": True},
        latent_format=latent_formats.LatentFormat(),
        manual_cast_dtype=None,
        sampling_settings={} if shift is None else {"shift": shift},
        memory_usage_factor=0.01,
        custom_operations=None,
        optimizations={},
        scaled_fp8=None,
    )
    model = comfy.model_base.BaseModel(config, getattr(comfy.model_base.ModelType, kind))
    model.diffusion_model = Net()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def conditions(value):
    """Returns a CONDITIONING of one entry."""
    return [[torch.full((1, 4, 8), value), {}]]


def generate(comfy, patcher, sampler, sigmas, rows=2, cfg=3.0, seed=7, latent=0.0, **more):
    """Returns the samples of ComfyUI's CFGGuider with a SAMPLER."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((rows, 4, 8, 8), generator=generator)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(conditions(0.4), conditions(-0.3))
    guider.set_cfg(cfg)
    image = torch.full_like(noise, latent)
    more = {"disable_pbar": True, **more}
    return guider.sample(noise, image, sampler, sigmas, seed=seed, **more)
