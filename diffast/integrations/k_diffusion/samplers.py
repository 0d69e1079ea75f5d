"""k-diffusion's samplers except the adaptive one; see the package."""

from __future__ import annotations

import numpy as np
import torch

from diffast import grids, schedules
from diffast.integrations.sigma_model import (
    drawn_by,
    drawn_each_step,
    levels_of,
    run,
    sigma_plan,
)
from diffast.solvers.ode.singlestep import fast_orders


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in sigma^(1/rho), then 0 (Karras et al. 2022); [n+1]."""
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.karras(space, n, rho=rho), device)


def get_sigmas_exponential(n, sigma_min, sigma_max, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in log sigma, then 0; [n+1]."""
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.exponential(space, n), device)


def get_sigmas_polyexponential(n, sigma_min, sigma_max, rho=1.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels from sigma_max to sigma_min, then 0; [n+1].

    log sigma = log sigma_min + u^rho log(sigma_max / sigma_min), u from 1 to 0 in even steps.
    """
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.polyexponential(space, n, rho=rho), device)


def get_sigmas_vp(n, beta_d=19.9, beta_min=0.1, eps_s=1e-3, device="cpu") -> torch.Tensor:
    """Returns sigma/alpha of `df.schedules.vp_linear` at n even times from 1 to eps_s, then 0."""
    space = schedules.vp_linear(beta_min, beta_min + beta_d)
    levels = np.exp(-space.lam(np.linspace(1.0, eps_s, n)))
    return _float32(np.append(levels, 0.0), device)


def _float32(levels, device):
    return torch.tensor(levels, dtype=torch.float32, device=device)


def sample_euler(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=float("inf"),
    s_noise=1.0,
):
    """Returns samples of Euler's method with churn (algorithm 2 of Karras et al. 2022)."""
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    return _churned("euler", churn, model, x, sigmas, extra_args, callback, disable)


def sample_heun(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=float("inf"),
    s_noise=1.0,
):
    """Returns samples of Heun's method with churn (Karras et al. 2022, algorithm 2)."""
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    return _churned("heun", churn, model, x, sigmas, extra_args, callback, disable)


def sample_dpm_2(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=float("inf"),
    s_noise=1.0,
):
    """Returns samples of DPM-Solver-2 with churn: the slope at the middle of log sigma."""
    churn = (s_churn, s_tmin, s_tmax, s_noise)
    return _churned("dpm_2", churn, model, x, sigmas, extra_args, callback, disable)


def sample_euler_ancestral(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of Euler steps below each level and fresh noise up to it."""
    options = {"eta": eta, "s_noise": s_noise}
    return _noised(
        "euler_ancestral", options, noise_sampler, model, x, sigmas, extra_args, callback, disable
    )


def sample_dpm_2_ancestral(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of DPM-Solver-2 steps below each level and fresh noise up to it."""
    options = {"eta": eta, "s_noise": s_noise}
    return _noised(
        "dpm_2_ancestral", options, noise_sampler, model, x, sigmas, extra_args, callback, disable
    )


def sample_dpmpp_2s_ancestral(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of DPM-Solver++(2S) steps below each level and fresh noise up to it."""
    options = {"eta": eta, "s_noise": s_noise}
    return _noised(
        "dpmpp_2s_ancestral",
        options,
        noise_sampler,
        model,
        x,
        sigmas,
        extra_args,
        callback,
        disable,
    )


def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4):
    """Returns samples of the linear multistep method (Adams-Bashforth in sigma)."""
    options = {"order": order}
    return _plain("lms", options, model, x, sigmas, extra_args, callback, disable)


def sample_dpm_fast(
    model,
    x,
    sigma_min,
    sigma_max,
    n,
    extra_args=None,
    callback=None,
    disable=None,
    eta=0.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of DPM-Solver-fast: n model calls in steps of order 3, the last ones lower.

    Raises:
        ValueError: for eta > 0, which this has no plan for; levels that are not
            0 < sigma_min < sigma_max.
    """
    if eta != 0.0:
        raise ValueError(f"sample_dpm_fast: eta = {eta}, but it must be 0")
    orders = tuple(fast_orders(n))
    space = schedules.edm(float(sigma_min), float(sigma_max))
    levels = tuple(grids.uniform_logsnr(space, len(orders), to_zero=False).tolist())
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigmas = torch.tensor(levels, dtype=dtype, device=x.device)

    def with_times(info):
        assert callback is not None  # see below
        callback(info | {"t": -info["sigma"].log(), "t_up": -info["sigma_hat"].log()})

    seen = None if callback is None else with_times
    plan = sigma_plan("dpm_fast", levels, orders=orders)
    return run(model, x, plan, levels, sigmas, extra_args, seen, disable)


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Returns samples of DPM-Solver++(2M)."""
    return _plain("dpmpp_2m", {}, model, x, sigmas, extra_args, callback, disable)


def sample_dpmpp_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
    r=1 / 2,
):
    """Returns samples of DPM-Solver++ (stochastic), two calls a step."""
    options = {"eta": eta, "s_noise": s_noise, "r": r}
    return _on_path(
        "dpmpp_sde", options, noise_sampler, model, x, sigmas, extra_args, callback, disable
    )


def sample_dpmpp_2m_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
    solver_type="midpoint",
):
    """Returns samples of DPM-Solver++(2M) SDE."""
    options = {"eta": eta, "s_noise": s_noise, "kind": solver_type}
    return _on_path(
        "dpmpp_2m_sde", options, noise_sampler, model, x, sigmas, extra_args, callback, disable
    )


def sample_dpmpp_3m_sde(
    model,
    x,
    sigmas,
    extra_args=None,
    callback=None,
    disable=None,
    eta=1.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of DPM-Solver++(3M) SDE."""
    options = {"eta": eta, "s_noise": s_noise}
    return _on_path(
        "dpmpp_3m_sde", options, noise_sampler, model, x, sigmas, extra_args, callback, disable
    )


def _plain(solver, options, model, x, sigmas, extra_args, callback, disable, **noise):
    """Returns the samples of a plan; x where there is no step."""
    levels = levels_of(f"sample_{solver}", sigmas)
    if len(levels) < 2:
        return x
    plan = sigma_plan(solver, levels, **options)
    return run(model, x, plan, levels, sigmas, extra_args, callback, disable, **noise)


def _noised(solver, options, noise_sampler, model, x, sigmas, extra_args, callback, disable):
    """Returns the samples of a plan with `noise_sampler`, by default torch's generator."""
    levels = levels_of(f"sample_{solver}", sigmas)
    if len(levels) < 2:
        return x
    plan = sigma_plan(solver, levels, **options)
    noise_sampler = noise_sampler or (lambda sigma, sigma_next: torch.randn_like(x))
    draw = drawn_by(noise_sampler, plan, sigmas)
    return run(model, x, plan, levels, sigmas, extra_args, callback, disable, draw)


def _on_path(solver, options, noise_sampler, model, x, sigmas, extra_args, callback, disable):
    """Returns the samples of a plan with `noise_sampler`, by default on the package's paths."""
    rest = (model, x, sigmas, extra_args, callback, disable)
    if noise_sampler is not None:
        return _noised(solver, options, noise_sampler, *rest)
    seed = (extra_args or {}).get("seed")
    seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    return _plain(solver, options, *rest, seed=seed, path=True)


def _churned(base, churn, model, x, sigmas, extra_args, callback, disable):
    """Returns the samples of a churned plan, or of the plain one where s_churn is 0."""
    s_churn, s_tmin, s_tmax, s_noise = (float(number) for number in churn)
    levels = levels_of(f"sample_{base}", sigmas)
    if s_churn == 0.0 or len(levels) < 2:
        return _plain(base, {}, model, x, sigmas, extra_args, callback, disable)
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    plan = sigma_plan("churn", levels, base=base, **options)
    draw = drawn_each_step(lambda: torch.randn_like(x), plan, levels)
    return run(model, x, plan, levels, sigmas, extra_args, callback, disable, draw)
