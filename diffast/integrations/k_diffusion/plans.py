"""Plans, those made for a network among them, run on a k-diffusion model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch

from diffast.executors.context import size_of
from diffast.integrations.sigma_model import drawn_by
from diffast.integrations.sigma_plans import (
    check_network,
    in_sigma_space,
    levels_before_calls,
    plan_of,
    run_plan,
)
from diffast.plans import Plan

# Below this many numbers the spread of x says too little, and below this level data count too.
_LEAST_NUMBERS, _NOISY = 32, 3.0


def get_sigmas_plan(plan: Plan | str | PathLike, device: Any = "cpu") -> torch.Tensor:
    """Returns the noise levels sigma / alpha of the states before a plan's calls, then 0; [n+1].

    The first one is the deviation of the initial noise: x = torch.randn(..) * sigmas[0].

    Args:
        plan: a plan, or the path of its file.
        device: of the result.

    Raises:
        ValueError: something else than a plan; one that starts where alpha is 0.
    """
    moved = in_sigma_space("get_sigmas_plan", plan_of("get_sigmas_plan", plan))
    return torch.tensor(levels_before_calls(moved), dtype=torch.float32, device=device)


def sample_plan(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    plan: Plan | str | PathLike,
    extra_args: dict | None = None,
    callback: Callable[[dict], Any] | None = None,
    disable: bool | None = None,
    noise_sampler: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Returns samples [B, ...] of a plan, made for a network by `df.tune` or any other.

    A plan for a variance-preserving schedule runs on x0 + sigma eps, as k-diffusion wraps such
    networks: the samples are those of `df.sample` with the network itself.

    Args:
        model: called as model(x, sigma [B], **extra_args); returns the denoised x.
        x: initial noise [B, ...] of deviation `get_sigmas_plan(plan)[0]`.
        plan: a plan, or the path of its file.
        extra_args: passed to the model. Where the plan has a guidance scale for each call, these
            replace extra_args["cond_scale"], which has to be there.
        callback: called once a call with {'x', 'i', 'sigma', 'sigma_hat', 'denoised'}.
        disable: True for no progress bar.
        noise_sampler: for stochastic plans: returns N(0, 1) for two noise levels; None: normals
            of torch's generator.

    Raises:
        ValueError: something else than a plan; one that starts where alpha is 0; guidance scales
            for a model without cond_scale.
    """
    who = "sample_plan"
    own = plan_of(who, plan)
    check_network(who, own, model)
    moved = in_sigma_space(who, own)
    levels = levels_before_calls(moved)
    _warn_of_noise(who, x, moved, levels[0])
    sigmas = torch.tensor(levels, dtype=torch.float32, device=x.device)
    draw = None
    if moved.stochastic:
        normal = noise_sampler or (lambda sigma, sigma_next: torch.randn_like(x))
        draw = drawn_by(normal, moved, sigmas)

    def guide(scale: float, arguments: dict) -> None:
        arguments["cond_scale"] = scale

    guided = guide if "cond_scale" in (extra_args or {}) else None
    given = extra_args, callback, disable
    return run_plan(who, model, x, moved, levels, sigmas, *given, draw, guide=guided)


def _warn_of_noise(who: str, x: torch.Tensor, plan: Plan, sigma: float) -> None:
    """Warns where x has not the deviation of the plan's first level.

    A plan made for a network may start below the model's sigma_max, by which x is usually scaled.
    """
    if x.numel() < _LEAST_NUMBERS:
        return
    size, far = size_of(x), 1.2 + 3.0 * (len(x) / x.numel()) ** 0.5
    if sigma > _NOISY and not sigma / far <= size <= sigma * far:
        warnings.warn(
            f"{who}: x has root mean square {size:.3g}, but plan {plan.name} starts from noise of "
            f"deviation {sigma:.3g}: multiply normals by get_sigmas_plan(plan)[0]",
            stacklevel=3,
        )
