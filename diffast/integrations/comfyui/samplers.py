"""ComfyUI sampler functions, each one a plan that `df.sample` runs.

Everything is read when the function is called: the sigmas, model_sampling and its class, the
options. What a plan cannot do runs as ComfyUI's own sampler of that name, with a
`HandedOverWarning`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from diffast import schedules, solvers
from diffast.integrations.comfyui.levels import (
    CannotPlan,
    below_one,
    check_sigmas,
    is_flow,
    levels_of,
    means_nothing,
)
from diffast.integrations.comfyui.originals import hand_over
from diffast.integrations.comfyui.running import run
from diffast.integrations.comfyui.special import SPECIAL
from diffast.integrations.comfyui.table import SAMPLERS, Entry
from diffast.integrations.sigma_model import drawn_by
from diffast.plans import Plan
from diffast.solvers.core.stability import unchecked

NOISES = ("counter", "torch")
NAMES = (*SAMPLERS, *SPECIAL)
# Steps that end between these shares of the schedule have noise, in sa_solver.
NOISY = (0.2, 0.8)
_UNI_PC_SCALE = 1.0 - 0.001  # by which ComfyUI divides a flow's sample, whose last sigma it changes


def sampler(name: str, noise: str = "counter", **options: Any) -> Callable[..., torch.Tensor]:
    """Returns a sampler function for KSAMPLER: fn(model, x, sigmas, extra_args, callback, disable).

    Args:
        name: of `NAMES`.
        noise: "counter": the package's noise, keyed by extra_args["seed"] and the sample's place
            in the batch, the same on every device and in a batch of any size. "torch": what
            ComfyUI's default_noise_sampler draws.
        options: as ComfyUI's sampler of that name takes them: eta, s_noise, noise_sampler, ...

    Raises:
        ValueError: for an unknown name or noise.
    """
    if name not in NAMES:
        raise ValueError(f"sampler: name = {name!r}, but these are known: {', '.join(NAMES)}")
    check_noise(noise)
    if name in SPECIAL:
        return SPECIAL[name](noise, options)
    return _function(name, SAMPLERS[name], noise, options)


def check_noise(noise: str) -> None:
    """Raises ValueError for an unknown noise."""
    if noise not in NOISES:
        raise ValueError(f"sampler: noise = {noise!r}, but it must be one of {', '.join(NOISES)}")


def churn_sampler(base: str, noise: str = "counter", **options: Any) -> Callable[..., torch.Tensor]:
    """Returns the sampler function of `df.solvers.churn`, see `sampler`.

    Args:
        base: "euler", "heun" or "dpm_2".
        noise: as for `sampler`.
        options: s_churn, s_tmin, s_tmax, s_noise.

    Raises:
        ValueError: for an unknown noise.
    """
    names = ("s_churn", "s_tmin", "s_tmax", "s_noise")
    takes = {name: name for name in names}
    check_noise(noise)
    entry = Entry("churn", {"base": base}, takes=takes, original="")
    return _function(f"churn_{base}", entry, noise, options)


def _function(name, entry, noise, options):
    title = f"sample_diffast_{name}"
    original = name if entry.original is None else entry.original

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **more):
        check_sigmas(title, sigmas)
        if len(sigmas) < 2:
            return x
        given = {**options, **more}
        extra_args = {} if extra_args is None else extra_args
        if name == "ddim":
            _random_inpainting(model, extra_args)
        try:
            kept = _kept_sigmas(entry, model, sigmas)
            plan, levels, flow = _prepared(title, name, entry, model, kept, given)
        except CannotPlan as refused:
            arguments = (model, x, sigmas, extra_args, callback, disable)
            return hand_over(title, original, str(refused), arguments, given)
        seed = extra_args.get("seed")
        draw = given.get("noise_sampler")
        if draw is None and noise == "torch":
            draw = torch_noise(x, seed)
        if draw is not None:
            draw = _spared(drawn_by(draw, plan, kept), entry.spare)
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ()))
        arguments = (sigmas, kept, extra_args, callback, disable)
        out = run(title, entry, model, x, plan, levels, arguments, draw, seed)
        if flow and name in ("uni_pc", "uni_pc_bh2") and levels[-1] == 0.0:
            out = out / _UNI_PC_SCALE
        return out

    sample.__name__ = sample.__qualname__ = title
    return sample


def model_sampling_of(model: Any) -> Any:
    """Returns the model_sampling that the loaded model has now."""
    guider = model.inner_model
    inner = getattr(guider, "inner_model", None)
    if inner is not None and hasattr(inner, "model_sampling"):
        return inner.model_sampling
    return guider.model_patcher.get_model_object("model_sampling")


def _kept_sigmas(entry, model, sigmas):
    """Returns the sigmas that the sampler steps through."""
    model_sampling = model_sampling_of(model)
    if entry.nudged and is_flow(model_sampling):
        return below_one(sigmas, model_sampling)
    return sigmas


def _prepared(title, name, entry, model, sigmas, given):
    """Returns (plan, levels, whether the model is a flow).

    Raises:
        CannotPlan: what only ComfyUI's own sampler can do.
    """
    model_sampling = model_sampling_of(model)
    flow = is_flow(model_sampling)
    on_flow = flow and (entry.flow is not None or not entry.by_sigma)
    levels = levels_of(title, sigmas, on_flow)
    if len(levels) < entry.needs:
        raise CannotPlan(f"it needs {entry.needs - 1} steps, but there is {len(levels) - 1}")
    if name == "lcm":
        _check_scaling(model_sampling, flow)
    own = _options(entry, given, model_sampling, flow)
    if name.startswith("sa_solver"):
        own["interval"] = tuple(float(model_sampling.percent_to_sigma(p)) for p in NOISY)
    if own.get("eta", 1.0) not in (0.0, 1.0) and entry.branches and levels[0] == 1.0 and on_flow:
        raise CannotPlan(f"eta = {own['eta']:g} has no limit at sigma = 1")
    solver = entry.flow if on_flow and entry.flow is not None else entry.solver
    try:
        return _built(solver, levels, on_flow, tuple(sorted(own.items()))), levels, flow
    except (ValueError, TypeError) as error:
        raise CannotPlan(str(error)) from None


@lru_cache(maxsize=64)
def _built(solver, levels, on_flow, options) -> Plan:
    if on_flow:
        space = schedules.flow()
    else:
        above = [level for level in levels[1:] if level > 0.0]
        space = schedules.edm(above[-1] if above else 0.5 * levels[0], levels[0])
    build = solvers.get(solver) if isinstance(solver, str) else solver
    with unchecked():  # the sampler and the levels are what the caller's program asks for
        return build(space, np.array(levels), **dict(options))


def _options(entry: Entry, given: Mapping[str, Any], model_sampling: Any, flow: bool) -> dict:
    """Returns the builder's options."""
    own = dict(entry.options)
    for option, value in given.items():
        if option == "noise_sampler":
            continue
        if option in entry.takes:
            own[entry.takes[option]] = value
        elif not means_nothing(option, value):
            raise CannotPlan(f"the option {option} = {value!r} has no plan")
    scale = float(getattr(model_sampling, "noise_scale", 1.0))
    scaled = entry.noise_scale == "all" or (entry.noise_scale == "flow" and flow)
    if scaled and scale != 1.0:
        if "s_noise" not in entry.takes:
            raise CannotPlan(f"model_sampling.noise_scale = {scale:g} has no plan")
        own["s_noise"] = own.get("s_noise", 1.0) * scale
    return own


def _check_scaling(model_sampling, flow):
    """Refuses a model whose noise is put on otherwise than x0 + sigma z or the flow's way."""
    one, sigma = torch.ones(1), torch.tensor(0.5)
    made = [model_sampling.noise_scaling(sigma, *pair) for pair in ((one, 0 * one), (0 * one, one))]
    wanted = (0.5, 0.5 if flow else 1.0)
    if any(float(m) != w for m, w in zip(made, wanted, strict=True)):
        raise CannotPlan("its model_sampling.noise_scaling is one of its own")


def _random_inpainting(model, extra_args):
    """Gives the masked part fresh noise of its own, as ComfyUI's ddim does."""
    if extra_args.get("denoise_mask") is None or getattr(model, "noise", None) is None:
        return
    generator = torch.manual_seed(extra_args.get("seed", 41) + 1)
    fresh = torch.randn(model.noise.shape, generator=generator, device="cpu")
    model.noise = fresh.to(model.noise)


def _spared(draw, spare):
    """Returns `draw` that throws away so many normals after the one of each second stage."""
    if not spare:
        return draw

    def drawing(stage):
        made = draw(stage)
        for _ in range(spare):
            draw(stage)
        return made

    return drawing


def torch_noise(x, seed):
    """Returns ComfyUI's default noise sampler: a generator on x's device, seed + 1 on the CPU."""
    generator = None
    if seed is not None:
        generator = torch.Generator(device=x.device)
        generator.manual_seed(seed + (x.device.type == "cpu"))

    def normal(sigma, sigma_next):
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    return normal
