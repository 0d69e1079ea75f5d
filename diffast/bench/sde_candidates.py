"""Ways to follow the reverse SDE on one Brownian path, the package's and other tools'.

The SDE in sigma space, with tau = log(SIGMA_MAX / sigma): dx = 2 (D(x, sigma) - x) d tau + sqrt(2)
sigma dW(tau). Every tool has paths of its own. Its runs are therefore compared with a run of its
own, in a fine grid on the same path.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

import diffast as df
from diffast import grids, solvers
from diffast.bench import peers
from diffast.bench.candidates import Candidate, Outcome
from diffast.bench.problems import SCHEDULE, SIGMA_MAX, SIGMA_MIN, Problem

CALLS = (6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)
SOLVERS = ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "seeds_2", "euler_ancestral")
SAMPLERS = ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde")
OURS = "diffast, SDE"
EACH = {"dpmpp_sde": 2, "seeds_2": 2, "srk": 10}  # network calls of a step, where more than one


def ours(quick: bool) -> Iterator[Candidate]:
    """Yields the package's solvers with `noise="path"`."""
    for grid in ("karras", "exponential"):
        for solver in SOLVERS[: 2 if quick else None]:
            yield _ours(solver, grid)


def _ours(solver: str, grid: str) -> Candidate:
    each = EACH.get(solver, 1)

    @cache
    def plan_of(calls: float) -> df.Plan:
        steps = max(2, round((calls - 1) / each) + 1)
        return solvers.get(solver)(SCHEDULE, getattr(grids, grid)(SCHEDULE, steps))

    def run(problem: Problem, calls: float) -> Outcome:
        plan = plan_of(calls)
        return df.sample(problem.denoiser, plan, x=problem.start, noise="path").x, None

    return Candidate(OURS, f"{solver}, {grid}", CALLS, run)


def of_k_diffusion(quick: bool) -> Iterator[Candidate]:
    """Yields k-diffusion's samplers with its noise sampler, which is torchsde's tree."""
    for grid in ("karras", "exponential"):
        for sampler in SAMPLERS[: 2 if quick else None]:
            yield _k_diffusion(sampler, grid)


def _k_diffusion(sampler: str, grid: str) -> Candidate:
    module = peers.k_diffusion_sampling()
    function, levels_of = (
        getattr(module, f"sample_{sampler}"),
        getattr(module, f"get_sigmas_{grid}"),
    )

    def run(problem: Problem, calls: float) -> Outcome:
        steps = max(2, round((calls - 1) / EACH.get(sampler, 1)) + 1)
        sigmas = levels_of(steps, SIGMA_MIN, SIGMA_MAX, device=problem.start.device)
        # A little wider: torchsde warns if rounding puts a level outside. One path for all runs.
        ends = 0.999 * SIGMA_MIN, 1.001 * SIGMA_MAX
        noise = module.BrownianTreeNoiseSampler(problem.start, *ends, seed=5)
        given = {"disable": True, "noise_sampler": noise}
        return function(problem, problem.start, sigmas, problem.conditions, **given), None

    return Candidate("k-diffusion, SDE", f"{sampler}, {grid}", CALLS, run)


class _ReverseSDE(torch.nn.Module):
    """The SDE in torchsde's form, over tau, for states [B, elements]."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def f(self, tau: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns the drift."""
        sigma = SIGMA_MAX * torch.exp(-tau)
        x0 = self.problem.at(y.reshape(self.problem.start.shape), sigma)
        return 2 * (x0.reshape(y.shape) - y)

    def g(self, tau: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Returns the diffusion, which does not depend on the state."""
        return (2**0.5 * SIGMA_MAX * torch.exp(-tau)).expand(y.shape)


def of_torchsde(quick: bool) -> Iterator[Candidate]:
    """Yields torchsde's fixed-step methods, in even steps of log sigma."""
    for method in ("euler", "srk"):
        yield _torchsde(method)


def _torchsde(method: str) -> Candidate:
    module = peers.torchsde()
    end = math.log(SIGMA_MAX / SIGMA_MIN)
    paths: dict[int, Any] = {}

    def path_of(problem: Problem) -> Any:
        """Returns the path of a problem: one object, since other objects may be other paths."""
        if id(problem) not in paths:
            size, device = problem.start.flatten(1).shape, problem.start.device
            levy = {"levy_area_approximation": "space-time"}  # srk asks for it
            made = module.BrownianInterval(0.0, 1.001 * end, size, device=device, entropy=5, **levy)
            paths[id(problem)] = made
        return paths[id(problem)]

    def run(problem: Problem, calls: float) -> Outcome:
        steps = max(2, round((calls - 1) / EACH.get(method, 1)))
        y = problem.start.flatten(1)
        times = torch.tensor([0.0, end], device=y.device)
        given = {"method": method, "dt": end / steps * (1 + 1e-4), "bm": path_of(problem)}
        x = module.sdeint(_ReverseSDE(problem), y, times, **given)[-1]
        return problem.at(x.reshape(problem.start.shape), SIGMA_MIN), None

    return Candidate("torchsde, SDE", f"{method}, exponential", CALLS, run)
