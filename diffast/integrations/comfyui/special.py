"""dpm_fast and dpm_adaptive, which ComfyUI gives two noise levels in place of the sigmas."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch

from diffast.integrations import k_diffusion
from diffast.integrations.comfyui.levels import CannotPlan, check_sigmas, means_nothing
from diffast.integrations.comfyui.originals import hand_over


def dpm_fast(noise: str, given: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """Returns the sampler function of DPM-Solver-fast: as many model calls as there are steps.

    It ends at the last sigma above 0, as ComfyUI's does.
    """

    def sample(model, x, low, high, steps, rest, options):
        if options:
            raise CannotPlan(f"the option {next(iter(options))} has no plan")
        return k_diffusion.sample_dpm_fast(model, x, low, high, steps, *rest)

    return _between("dpm_fast", sample, given)


def dpm_adaptive(noise: str, given: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """Returns the sampler function of DPM-Solver-23 with adaptive steps, for a batch of one.

    ComfyUI takes one step for a batch, from the error of all its samples, and conditions with a
    time range look at one time for the batch. So a larger batch runs as ComfyUI's own sampler.
    """

    def sample(model, x, low, high, steps, rest, options):
        if len(x) != 1:
            raise CannotPlan(f"a batch of {len(x)} has one step size for all of its samples")
        for option in options.keys() - _OPTIONS:
            raise CannotPlan(f"the option {option} has no plan")
        if options.get("eta") and (noise == "torch" or options.get("noise_sampler")):
            raise CannotPlan("eta above 0 has the package's own noise alone")
        made = k_diffusion.sample_dpm_adaptive(model, x, low, high, *rest, **options)
        return made if isinstance(made, torch.Tensor) else made[0]

    return _between("dpm_adaptive", sample, given)


_OPTIONS = {"order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety"}
_OPTIONS |= {"eta", "s_noise", "noise_sampler"}
SPECIAL = {"dpm_fast": dpm_fast, "dpm_adaptive": dpm_adaptive}


def _between(name, run, given):
    """Returns the sampler function from the first sigma to the last one above 0."""
    title = f"sample_diffast_{name}"

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **more):
        check_sigmas(title, sigmas)
        if len(sigmas) < 2:
            return x
        options = {k: v for k, v in {**given, **more}.items() if not means_nothing(k, v)}
        levels = sigmas.detach().double().cpu().tolist()
        low = levels[-1] if levels[-1] != 0.0 else levels[-2]
        way = f"the noise levels go from {levels[0]:g} to {low:g}"
        if not (0.0 < low < inf and 0.0 < levels[0] < inf):
            raise ValueError(f"{title}: {way}, but both have to be above 0 and finite")
        if levels[0] <= low and options.get("eta"):
            raise ValueError(f"{title}: {way}, but there is fresh noise on the way down alone")
        try:
            if levels[0] <= low:
                raise CannotPlan(f"{way}, and not down")
            rest = ({} if extra_args is None else extra_args, callback, disable)
            return run(model, x, low, levels[0], len(levels) - 1, rest, options)
        except CannotPlan as refused:
            arguments = (model, x, sigmas, extra_args, callback, disable)
            return hand_over(title, name, str(refused), arguments, options)

    sample.__name__ = sample.__qualname__ = title
    return sample
