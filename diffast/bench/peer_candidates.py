"""The other tools' ways to follow the same flow, each with the settings that are tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from diffast.bench import peers
from diffast.bench.candidates import CALLS, TOLERANCES, Candidate, Outcome
from diffast.bench.problems import BETAS, SIGMA_MAX, SIGMA_MIN, Problem

# diffusers: class, options, network calls of a step, whether its state is alpha x (else x itself).
SCHEDULERS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "UniPC-2": ("UniPCMultistep", {}, 1, True),
    "DPM++ 2M": ("DPMSolverMultistep", {}, 1, True),
    "DPM++ 3M": ("DPMSolverMultistep", {"solver_order": 3}, 1, True),
    "UniPC-3": ("UniPCMultistep", {"solver_order": 3}, 1, True),
    "DEIS-2": ("DEISMultistep", {}, 1, True),
    "DEIS-3": ("DEISMultistep", {"solver_order": 3}, 1, True),
    "Heun": ("HeunDiscrete", {}, 2, False),
    "LMS": ("LMSDiscrete", {}, 1, False),
    "KDPM2": ("KDPM2Discrete", {}, 2, False),
    "DPM++ 2S": ("DPMSolverSinglestep", {}, 1, True),
}
SPACINGS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}


def _diffusers(kind: str, spacing: str) -> Candidate:
    name, options, each, scaled = SCHEDULERS[kind]
    made = getattr(peers.diffusers(), f"{name}Scheduler")(**BETAS, **options, **SPACINGS[spacing])

    def run(problem: Problem, calls: float) -> Outcome:
        made.set_timesteps(math.ceil(calls / each), device=problem.start.device)
        made.set_begin_index(0)
        made.is_scale_input_called = True  # the input is scaled below
        levels = made.sigmas.tolist()
        if abs(levels[0] / SIGMA_MAX - 1) > 1e-3:
            raise ValueError(f"{kind} begins at sigma {levels[0]:.4g}")

        def scale(sigma: float) -> float:
            return (1 + sigma * sigma) ** 0.5 if scaled else 1.0

        x = problem.start / scale(levels[0])
        for t, sigma in zip(made.timesteps, levels, strict=False):
            state = x * scale(sigma)
            noise = (state - problem.at(state, sigma)) / sigma
            x = made.step(noise, t, x, return_dict=False)[0]
        return x, None

    return Candidate("diffusers", f"{kind}, {spacing}", CALLS, run)


# k-diffusion: function, options, network calls of a step.
SAMPLERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dpmpp_2m": ("sample_dpmpp_2m", {}, 1),
    "dpmpp_3m_sde(eta=0)": ("sample_dpmpp_3m_sde", {"eta": 0.0}, 1),
    "heun": ("sample_heun", {}, 2),
    "lms": ("sample_lms", {}, 1),
    "dpm_2": ("sample_dpm_2", {}, 2),
    "dpmpp_2m_sde(eta=0)": ("sample_dpmpp_2m_sde", {"eta": 0.0}, 1),
    "dpmpp_2s_ancestral(eta=0)": ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, 2),
}


def _k_diffusion(sampler: str, grid: str) -> Candidate:
    module = peers.k_diffusion_sampling()
    name, options, each = SAMPLERS[sampler]
    function, levels_of = getattr(module, name), getattr(module, f"get_sigmas_{grid}")

    @cache  # as a plan is made once
    def sigmas_of(calls: float, device: torch.device) -> torch.Tensor:
        steps = max(2, round((calls - 1) / each) + 1)
        return levels_of(steps, SIGMA_MIN, SIGMA_MAX, device=device)

    def run(problem: Problem, calls: float) -> Outcome:
        sigmas = sigmas_of(calls, problem.start.device)
        extra = problem.conditions
        return function(problem, problem.start, sigmas, extra, disable=True, **options), None

    return Candidate("k-diffusion", f"{sampler}, {grid}", [n for n in CALLS if n >= 3], run)


def _k_diffusion_adaptive(order: int) -> Candidate:
    module = peers.k_diffusion_sampling()

    def run(problem: Problem, tolerance: float) -> Outcome:
        x = module.sample_dpm_adaptive(
            problem,
            problem.start,
            SIGMA_MIN,
            SIGMA_MAX,
            problem.conditions,
            disable=True,
            order=order,
            rtol=tolerance,
            atol=0.1 * tolerance,
        )
        return problem.at(x, SIGMA_MIN), None

    return Candidate("k-diffusion, adaptive", f"dpm_adaptive, order {order}", TOLERANCES, run)


def _torchdiffeq(method: str, variable: str) -> Candidate:
    module = peers.torchdiffeq()

    def run(problem: Problem, tolerance: float) -> Outcome:
        logarithmic = variable == "log sigma"

        def slope(time, x):
            sigma = time.exp() if logarithmic else time
            difference = x - problem.at(x, sigma)
            return difference if logarithmic else difference / sigma

        ends = torch.tensor([SIGMA_MAX, SIGMA_MIN], device=problem.start.device)
        times = ends.log() if logarithmic else ends
        given = {"rtol": tolerance, "atol": 0.1 * tolerance, "method": method}
        x = module.odeint(slope, problem.start, times, **given)[-1]
        return problem.at(x, SIGMA_MIN), None

    return Candidate("torchdiffeq, adaptive", f"{method} in {variable}", TOLERANCES, run)


def theirs(quick: bool) -> tuple[list[Candidate], list[str]]:
    """Returns the candidates of the tools that are installed, and a line for each that is not.

    Args:
        quick: the few that are usually best, in place of all.
    """
    found, lines = [], []
    makers = {"diffusers": _of_diffusers, "k_diffusion": _of_k_diffusion}
    makers["torchdiffeq"] = _of_torchdiffeq
    for name, make in makers.items():
        line = peers.missing(name)
        if line:
            lines.append(line)
        else:
            found += make(quick)
    return found, lines


def _of_diffusers(quick: bool) -> Iterator[Candidate]:
    for spacing in list(SPACINGS)[: 2 if quick else None]:
        for kind in list(SCHEDULERS)[: 3 if quick else None]:
            yield _diffusers(kind, spacing)


def _of_k_diffusion(quick: bool) -> Iterator[Candidate]:
    for grid in ("karras", "exponential"):
        for sampler in list(SAMPLERS)[: 2 if quick else None]:
            yield _k_diffusion(sampler, grid)
    for order in (3,) if quick else (2, 3):
        yield _k_diffusion_adaptive(order)


def _of_torchdiffeq(quick: bool) -> Iterator[Candidate]:
    for variable in ("log sigma",) if quick else ("log sigma", "sigma"):
        for method in ("bosh3", "dopri5") if quick else ("bosh3", "dopri5", "adaptive_heun"):
            yield _torchdiffeq(method, variable)
