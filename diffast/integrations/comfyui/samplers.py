"""ComfyUI sampler functions: the solver and the noise of each name.

As in ComfyUI, a model whose model_sampling has class CONST is a flow model, x = (1 - sigma) x0 +
sigma eps; its plan is for `df.schedules.flow()` (but see `_plan`). All others are x0 + sigma eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from diffast.integrations.sigma_model import drawn_by, flow_plan, levels_of, run, sigma_plan

# The start of a flow model whose solver needs a finite log-SNR, as ComfyUI's percent_to_sigma(...).
FLOW_START = 1e-4

NOISES = ("counter", "torch")


class Entry(NamedTuple):
    """The solver of a name.

    Args:
        solver: name in `df.solvers`.
        options: the builder's.
        flow_solver: another one for flow models.
        by_sigma: whether the solver's own time variable is sigma/alpha, see `_plan`.
        nudged: whether ComfyUI's sampler of that name starts a flow model just below sigma = 1.
        stochastic: whether it takes eta and s_noise.
        discard_penultimate: whether KSampler leaves out the last sigma above 0, as for ComfyUI's.
    """

    solver: str
    options: Mapping[str, Any] = {}
    flow_solver: str | None = None
    by_sigma: bool = False
    nudged: bool = False
    stochastic: bool = False
    discard_penultimate: bool = False


SAMPLERS: dict[str, Entry] = {
    "euler": Entry("euler"),
    "heun": Entry("heun", by_sigma=True),
    "dpm_2": Entry("dpm_2", by_sigma=True, discard_penultimate=True),
    "lms": Entry("lms", by_sigma=True),
    "dpmpp_2m": Entry("dpmpp_2m"),
    "res_multistep": Entry("dpmpp_2m", {"kind": "heun"}),
    "ipndm": Entry("ipndm", by_sigma=True),
    "ipndm_v": Entry("ipndm_v", {"form": "compat"}, by_sigma=True),
    "deis": Entry("deis", {"clock": "sigma"}, by_sigma=True),
    "gradient_estimation": Entry("gradient_estimation", by_sigma=True),
    "uni_pc": Entry("unipc", {"variant": "bh1"}, discard_penultimate=True),
    "uni_pc_bh2": Entry("unipc", {"variant": "bh2"}, discard_penultimate=True),
    "euler_ancestral": Entry("euler_ancestral", flow_solver="flow_ancestral", stochastic=True),
    "dpm_2_ancestral": Entry("dpm_2_ancestral", stochastic=True, discard_penultimate=True),
    "dpmpp_2s_ancestral": Entry("dpmpp_2s_ancestral", stochastic=True),
    "dpmpp_sde": Entry("dpmpp_sde", nudged=True, stochastic=True),
    "dpmpp_2m_sde": Entry("dpmpp_2m_sde", nudged=True, stochastic=True),
    "dpmpp_2m_sde_heun": Entry("dpmpp_2m_sde", {"kind": "heun"}, nudged=True, stochastic=True),
    "dpmpp_3m_sde": Entry("dpmpp_3m_sde", nudged=True, stochastic=True),
    "seeds_2": Entry("seeds_2", nudged=True, stochastic=True),
    "seeds_3": Entry("seeds_3", nudged=True, stochastic=True),
    "er_sde": Entry("er_sde", nudged=True),
    "sa_solver": Entry("sa_solver", nudged=True),
    "ddpm": Entry("ddpm"),
    "lcm": Entry("lcm"),
}


def is_flow(model_sampling: Any) -> bool:
    """Returns whether ComfyUI's model_sampling is that of a flow model."""
    from comfy.model_sampling import CONST  # pyright: ignore[reportMissingImports]: ComfyUI's own

    return isinstance(model_sampling, CONST)


def sampler(name: str, noise: str = "counter", **options: Any) -> Callable[..., torch.Tensor]:
    """Returns a sampler function for KSAMPLER: fn(model, x, sigmas, extra_args, callback, disable).

    Args:
        name: of `SAMPLERS`.
        noise: "counter": the package's noise, keyed by extra_args["seed"] and the sample's place
            in the batch, the same on every device and in a batch of any size. "torch": what
            ComfyUI's default_noise_sampler draws.
        options: the builder's, beside those of the name.

    Raises:
        ValueError: for an unknown name or noise.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler: name = {name!r}, but these are known: {', '.join(SAMPLERS)}")
    return _function(f"sample_diffast_{name}", SAMPLERS[name], noise, options)


def churn_sampler(base: str, noise: str = "counter", **options: Any) -> Callable[..., torch.Tensor]:
    """Returns the sampler function of `df.solvers.churn`, see `sampler`.

    Args:
        base: "euler", "heun" or "dpm_2".
        noise: as for `sampler`.
        options: s_churn, s_tmin, s_tmax, s_noise.

    Raises:
        ValueError: for an unknown noise.
    """
    entry = Entry("churn", {"base": base})
    return _function(f"sample_diffast_churn_{base}", entry, noise, options)


def _function(title, entry, noise, options):
    if noise not in NOISES:
        raise ValueError(f"sampler: noise = {noise!r}, but it must be one of {', '.join(NOISES)}")

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **more):
        if len(sigmas) < 2:
            return x
        model_sampling = model.inner_model.inner_model.model_sampling
        chosen = {**entry.options, **options, **more}
        flow = is_flow(model_sampling)
        if flow and entry.nudged:
            sigmas = _below_one(sigmas, model_sampling)
        levels = levels_of(title, sigmas)
        plan = _plan(entry, flow, levels, chosen)
        seed = (extra_args or {}).get("seed")
        draw = None
        if noise == "torch":
            draw = drawn_by(torch_noise(x, seed), plan, sigmas)
        return run(model, x, plan, levels, sigmas, extra_args, callback, disable, draw, seed or 0)

    sample.__name__ = sample.__qualname__ = title
    return sample


def _plan(entry, flow, levels, options):
    """Returns the plan for the model's kind.

    The flow's equation is dx/dsigma = (x - x0) / sigma, as that of x0 + sigma eps. Solvers in steps
    of sigma/alpha therefore take the plan of the latter, in steps of sigma, as in ComfyUI: the
    flow's sigma/alpha is infinite at sigma = 1.
    """
    if flow and not entry.by_sigma:
        return flow_plan(entry.flow_solver or entry.solver, levels, **options)
    return sigma_plan(entry.solver, levels, **options)


def _below_one(sigmas, model_sampling):
    """Returns the sigmas, the first one moved as in ComfyUI where its log-SNR is infinite."""
    first = float(sigmas[0])
    if first < 1.0:
        return sigmas
    moved = float(model_sampling.percent_to_sigma(FLOW_START))
    return torch.cat([sigmas.new_tensor([moved]), sigmas[1:]])


def torch_noise(x, seed):
    """Returns ComfyUI's default noise sampler: a generator on x's device, seed + 1 on the CPU."""
    generator = None
    if seed is not None:
        generator = torch.Generator(device=x.device)
        generator.manual_seed(seed + (x.device.type == "cpu"))

    def normal(sigma, sigma_next):
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    return normal
