"""Puts the samplers and schedules into the lists that ComfyUI's KSampler shows.

The schedules are spaced by the model's sigma/alpha. ComfyUI's own ones of that kind use sigma in
place of sigma/alpha, which differs on a flow model.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import torch

from diffast import grids, schedules
from diffast.integrations.comfyui.levels import FLOW_START, is_flow
from diffast.integrations.comfyui.samplers import NAMES, sampler
from diffast.integrations.comfyui.table import SAMPLERS

PREFIX = "diffast_"


def sigmas(grid, model_sampling, steps: int) -> torch.Tensor:
    """Returns [steps+1] noise levels for ComfyUI, 0 at the end.

    From the model's sigma_max to its sigma_min. A flow model starts at ComfyUI's sigma for 0.01 %
    instead of 1, whose log-SNR is infinite.

    Args:
        grid: `df.grids.uniform_logsnr` or another one of its signature.
        model_sampling: ComfyUI's, with sigma_min, sigma_max and percent_to_sigma.
        steps: number of steps.
    """
    low, high = float(model_sampling.sigma_min), float(model_sampling.sigma_max)
    if is_flow(model_sampling):
        high = min(high, float(model_sampling.percent_to_sigma(FLOW_START)))
        space = schedules.flow()
        ends = {"sigma_min": low / (1.0 - low), "sigma_max": high / (1.0 - high)}
    else:
        space, ends = schedules.edm(low, high), {}
    levels = np.asarray(grid(space, steps, **ends))
    return torch.tensor(levels, dtype=torch.float32)


SCHEDULES = {
    "logsnr": partial(sigmas, grids.uniform_logsnr),
    "kl_optimal": partial(sigmas, grids.kl_optimal),
}


def register() -> None:
    """Registers every sampler and schedule as `diffast_` + name; a second call changes nothing."""
    import comfy.samplers  # pyright: ignore[reportMissingImports]: ComfyUI's own
    from comfy.k_diffusion import sampling  # pyright: ignore[reportMissingImports]: ComfyUI's own

    ksampler = comfy.samplers.KSampler
    for name in NAMES:
        # KSampler looks for the function `sample_` + name in that module.
        setattr(sampling, f"sample_{PREFIX}{name}", sampler(name))
        _append(ksampler.SAMPLERS, PREFIX + name)
        _append(comfy.samplers.SAMPLER_NAMES, PREFIX + name)
        if name in SAMPLERS and SAMPLERS[name].discard_penultimate:
            ksampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS.add(PREFIX + name)
    if not hasattr(comfy.samplers, "SchedulerHandler"):  # ComfyUI of 2024: its list is fixed
        logging.warning("diffast: this ComfyUI takes no schedulers, so there are samplers alone")
        return
    for name, handler in SCHEDULES.items():
        handler = comfy.samplers.SchedulerHandler(handler, use_ms=True)
        comfy.samplers.SCHEDULER_HANDLERS[PREFIX + name] = handler
        _append(ksampler.SCHEDULERS, PREFIX + name)
        _append(comfy.samplers.SCHEDULER_NAMES, PREFIX + name)


def _append(names: list, name: str) -> None:
    """In ComfyUI, KSampler's list and the module's are one object; here they may be two."""
    if name not in names:
        names.append(name)
