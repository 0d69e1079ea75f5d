"""diffast's samplers, schedulers and nodes in ComfyUI: how to install them, and what appears.

To install, put the package into ComfyUI's environment and make one file with one line:

    ComfyUI/custom_nodes/diffast/__init__.py:
        from diffast.integrations.comfyui import *

    python examples/comfyui_nodes.py

shows what that line registers. Outside ComfyUI this program makes a stand-in for ComfyUI: the lists
and classes that a custom node uses.
"""

import importlib.util
import sys
import types
from typing import Any, NamedTuple

import torch


class KSAMPLER:
    """What ComfyUI makes of a sampler function. The real one also knows masks and previews."""

    def __init__(self, sampler_function):
        """Keeps the function."""
        self.sampler_function = sampler_function


class SchedulerHandler(NamedTuple):
    """A function that makes the sigmas of a model."""

    handler: Any
    use_ms: bool = True


def stand_in():
    """Puts as much of ComfyUI into sys.modules as the custom node looks at."""
    names = ("comfy", "comfy.samplers", "comfy.model_sampling", "comfy.k_diffusion")
    for name in (*names, "comfy.k_diffusion.sampling"):
        sys.modules[name] = types.ModuleType(name)
    comfy = sys.modules["comfy"]
    comfy.samplers, comfy.k_diffusion = sys.modules["comfy.samplers"], sys.modules[names[3]]
    comfy.k_diffusion.sampling = sys.modules["comfy.k_diffusion.sampling"]
    sys.modules["comfy.model_sampling"].CONST = type("CONST", (), {})  # the flow models' class
    ksampler = types.SimpleNamespace(
        SAMPLERS=["euler"], SCHEDULERS=["simple"], DISCARD_PENULTIMATE_SIGMA_SAMPLERS=set()
    )
    for name, value in {
        "KSampler": ksampler,
        "KSAMPLER": KSAMPLER,
        "SchedulerHandler": SchedulerHandler,
        "SAMPLER_NAMES": ksampler.SAMPLERS,
        "SCHEDULER_NAMES": ksampler.SCHEDULERS,
        "SCHEDULER_HANDLERS": {},
    }.items():
        setattr(comfy.samplers, name, value)


if importlib.util.find_spec("comfy") is None:
    stand_in()

import comfy.samplers  # noqa: E402

# 1. The line of custom_nodes/diffast/__init__.py. It registers everything when it is imported.
from diffast.integrations.comfyui import *  # noqa: E402, F403

# 2. What KSampler's lists now offer.
samplers = [name for name in comfy.samplers.KSampler.SAMPLERS if name.startswith("diffast_")]
schedulers = [name for name in comfy.samplers.KSampler.SCHEDULERS if name.startswith("diffast_")]
print(f"{len(samplers)} samplers: {', '.join(samplers[:5])}, ...")
print(f"schedulers: {', '.join(schedulers)}")
print(f"nodes: {', '.join(NODE_DISPLAY_NAME_MAPPINGS.values())}")  # noqa: F405


# 3. A node makes a SAMPLER, here run on a model whose pictures are N(0.5, 0.1^2) in every pixel.
class Model:
    """What a sampler is handed: it returns the denoised x and knows the model's sampling."""

    def __init__(self):
        """Says that this is no flow model."""
        sampling = types.SimpleNamespace(sigma_min=0.03, sigma_max=14.6)
        inner = types.SimpleNamespace(model_sampling=sampling)
        self.inner_model = types.SimpleNamespace(inner_model=inner)

    def __call__(self, x, sigma, seed=None):
        """Returns the mean of the clean picture, given x at noise level sigma [B]."""
        level = sigma.reshape(-1, 1, 1, 1) ** 2
        return (0.5 * level + x * 0.1**2) / (level + 0.1**2)


node = NODE_CLASS_MAPPINGS["DiffastStochasticSampler"]()  # noqa: F405
(made,) = node.make("dpmpp_2m_sde", eta=1.0, s_noise=1.0, noise="counter")
sigmas = torch.cat([torch.logspace(1.16, -1.5, 30), torch.zeros(1)])
x = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * sigmas[0]
out = made.sampler_function(Model(), x, sigmas, extra_args={"seed": 5}, disable=True)
print(f"pixels of N(0.5, 0.1^2), sampled: mean {out.mean():.3f}, deviation {out.std():.3f}")
