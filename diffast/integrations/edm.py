"""EDM's sampler by its own name and signature (Karras et al. 2022), run as a plan.

Example, in place of `edm_sampler` of EDM's generate.py:
    from diffast.integrations.edm import edm_sampler
    images = edm_sampler(net, latents, class_labels, randn_like=rng.randn_like, num_steps=18)
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch

from diffast import grids, schedules
from diffast.executors.sequential import sample
from diffast.integrations.sigma_model import DrawnEachStep, sigma_plan
from diffast.integrations.sigma_plans import (
    in_sigma_space,
    levels_before_calls,
    plan_of,
    run_plan,
)
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan


def edm_sampler(
    net,
    latents: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    randn_like=torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,  # noqa: N803
    S_min: float = 0.0,  # noqa: N803
    S_max: float = float("inf"),  # noqa: N803
    S_noise: float = 1.0,  # noqa: N803
    plan: Plan | str | PathLike | None = None,
) -> torch.Tensor:
    """Returns samples [B, ...] float64 by algorithm 2: Heun's method with churn, float64 state.

    With churn, randn_like is called once a step, with a float64 tensor like latents, whether or
    not the step uses it: the same numbers as in EDM's loop, for a StackedRandomGenerator too. At
    S_churn = 0 it is not called.

    Args:
        net: called as net(x, sigma, class_labels), x float64 [B, ...], sigma a float64 scalar;
            its sigma_min, sigma_max and round_sigma bound and round the noise levels.
        latents: N(0, 1), [B, ...].
        class_labels: passed on.
        randn_like: returns N(0, 1) shaped as its argument.
        num_steps: number of steps.
        sigma_min: least noise level of a call.
        sigma_max: noise level at the start.
        rho: see `df.grids.karras`.
        S_churn: total amount of added noise.
        S_min: least noise level that gets any.
        S_max: largest noise level that gets any.
        S_noise: scale of the added noise.
        plan: one made for the network, or the path of its file, in place of algorithm 2: num_steps,
            sigma_min, sigma_max and rho are then not used. None: algorithm 2.

    Raises:
        ValueError: for levels out of order, or churned levels that the net rounds: its levels are
            few, so that noise cannot be raised to where a step wants it. With a plan: S_churn
            beside it, levels that the net rounds, a start where alpha is 0.
    """
    if plan is not None:
        if S_churn:
            raise ValueError(f"edm_sampler: S_churn = {S_churn:g}, but a plan is given beside it")
        return _planned(net, latents, class_labels, randn_like, plan)
    low, high = max(sigma_min, float(net.sigma_min)), min(sigma_max, float(net.sigma_max))
    levels = grids.karras(schedules.edm(low, high), num_steps, rho=rho)
    levels = (*_rounded(net, levels[:-1], latents.device).tolist(), 0.0)
    if S_churn:
        churn = {"s_churn": S_churn, "s_tmin": S_min, "s_tmax": S_max, "s_noise": S_noise}
        plan = sigma_plan("churn", levels, base="heun", **churn)
        _check_rounding(net, plan.call_times, latents.device, "S_churn raises the noise to")
    else:
        plan = sigma_plan("heun", levels)
    start = latents.to(torch.float64)
    draw = DrawnEachStep(lambda: randn_like(start).to(torch.float64), plan, levels)

    def network(x, t):
        with torch.inference_mode(False), torch.no_grad():
            return net(x, t[0], class_labels)

    noise: dict[str, Any] = {"noise": draw} if S_churn else {}
    with torch.no_grad():
        denoiser = Denoiser(network, plan.schedule, predicts="x0")
        return sample(denoiser, plan, x=start * levels[0], **noise).x


def _planned(net, latents, class_labels, randn_like, plan) -> torch.Tensor:
    """Returns the samples of a plan [B, ...] float64."""
    who = "edm_sampler"
    moved = in_sigma_space(who, plan_of(who, plan))
    told = moved.times[moved.called.reshape(moved.times.shape)]
    _check_rounding(net, told, latents.device, "the plan tells the net")
    start = latents.to(torch.float64)
    levels = levels_before_calls(moved)
    sigmas = torch.tensor(levels, dtype=torch.float64, device=latents.device)

    def model(x, sigma):
        return net(x, sigma[0], class_labels)

    draw = (lambda stage: randn_like(start).to(torch.float64)) if moved.stochastic else None
    rest = {}, None, True, draw
    return run_plan(who, model, start * levels[0], moved, levels, sigmas, *rest)


def _rounded(net, levels, device) -> np.ndarray:
    levels = torch.tensor(levels, dtype=torch.float64, device=device)
    return net.round_sigma(levels).double().cpu().numpy()


def _check_rounding(net, times, device, what):
    rounded = _rounded(net, times, device)
    wrong = rounded != times
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"edm_sampler: {what} {times[i]:g}, but the net's round_sigma makes that {rounded[i]:g}"
        )
