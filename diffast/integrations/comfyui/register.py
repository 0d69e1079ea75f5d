"""Puts the samplers and schedules into the lists that ComfyUI's KSampler shows."""

from __future__ import annotations

from diffast.integrations.comfyui.samplers import SAMPLERS, sampler
from diffast.integrations.comfyui.schedules import SCHEDULES

PREFIX = "diffast_"


def register() -> None:
    """Registers every sampler and schedule as `diffast_` + name; a second call changes nothing."""
    import comfy.samplers  # pyright: ignore[reportMissingImports]: ComfyUI's own
    from comfy.k_diffusion import sampling  # pyright: ignore[reportMissingImports]: ComfyUI's own

    ksampler = comfy.samplers.KSampler
    for name, entry in SAMPLERS.items():
        # KSampler looks for the function `sample_` + name in that module.
        setattr(sampling, f"sample_{PREFIX}{name}", sampler(name))
        _append(ksampler.SAMPLERS, PREFIX + name)
        _append(comfy.samplers.SAMPLER_NAMES, PREFIX + name)
        if entry.discard_penultimate:
            ksampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS.add(PREFIX + name)
    for name, handler in SCHEDULES.items():
        handler = comfy.samplers.SchedulerHandler(handler, use_ms=True)
        comfy.samplers.SCHEDULER_HANDLERS[PREFIX + name] = handler
        _append(ksampler.SCHEDULERS, PREFIX + name)
        _append(comfy.samplers.SCHEDULER_NAMES, PREFIX + name)


def _append(names: list, name: str) -> None:
    """In ComfyUI, KSampler's list and the module's are one object; here they may be two."""
    if name not in names:
        names.append(name)
