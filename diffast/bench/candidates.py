"""The package's own ways to follow a flow, each with the settings that are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

import diffast as df
from diffast import grids, solvers
from diffast.bench.problems import SCHEDULE, Problem

# Network calls that fixed-step methods are tried with, and tolerances of adaptive ones.
CALLS = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64)
TOLERANCES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 5e-3, 2e-3, 1e-3)
TOLERANCES += (3e-4, 1e-4)

# A run: the samples, and how many rounds of network calls one after another it took (None: as
# many as network calls).
Outcome = tuple[torch.Tensor, int | None]


@dataclass(frozen=True)
class Candidate:
    """A method with its settings, runnable at several budgets.

    Attributes:
        family: what it is listed under, such as "diffast, fixed steps" or "diffusers".
        name: method and settings, as the report shows them.
        budgets: network calls or tolerances, from the cheapest on.
        run: makes the samples of a problem with a budget.
    """

    family: str
    name: str
    budgets: Sequence[float]
    run: Callable[[Problem, float], Outcome]


FIXED, ADAPTIVE, PARALLEL = "diffast, fixed steps", "diffast, adaptive", "diffast, parallel"

# solver: network calls of a step, options.
SOLVERS: dict[str, tuple[int, dict]] = {
    "unipc": (1, {}),
    "dpmpp_2m": (1, {}),
    "dpmpp_3m": (1, {}),
    "res_3m": (1, {}),
    "deis": (1, {}),
    "dpm_solver_3s": (3, {}),
    "heun": (2, {}),
    "lms": (1, {}),
    "unipc(order=3)": (1, {"order": 3}),
    "deis(order=3)": (1, {"order": 3}),
    "res_3s": (3, {}),
    "ipndm_v": (1, {}),
}
GRIDS: dict[str, Callable] = {
    "karras": grids.karras,
    "exponential": grids.exponential,
    "karras(rho=3)": lambda schedule, steps: grids.karras(schedule, steps, rho=3.0),
    "beta_sigmas": grids.beta_sigmas,
}


def _fixed(solver: str, grid: str) -> Candidate:
    each, options = SOLVERS[solver]
    build = solvers.get(solver.partition("(")[0])

    @cache  # a plan is made once, and run many times
    def plan_of(calls: float) -> df.Plan:
        # The last step, to sigma = 0, is one call in all of these solvers.
        steps = max(2, round((calls - 1) / each) + 1)
        return build(SCHEDULE, GRIDS[grid](SCHEDULE, steps), **options)

    def run(problem: Problem, calls: float) -> Outcome:
        return df.sample(problem.denoiser, plan_of(calls), x=problem.start).x, None

    budgets = [n for n in CALLS if (n - 1) % each == 0]
    return Candidate(FIXED, f"{solver}, {grid}", budgets, run)


def _adaptive(method: str, absolute: float) -> Candidate:
    def run(problem: Problem, tolerance: float) -> Outcome:
        out = df.sample_adaptive(
            problem.denoiser,
            method,
            x=problem.start,
            rtol=tolerance,
            atol=absolute * tolerance,
        )
        return out.x, int(out.nfe.max())

    name = f"{method}, atol = {absolute:g} rtol"
    return Candidate(ADAPTIVE, name, TOLERANCES, run)


def _parallel(solver: str, grid: str, tolerance: float) -> Candidate:
    build = solvers.get(solver)

    @cache
    def plan_of(calls: float) -> df.Plan:
        return build(SCHEDULE, GRIDS[grid](SCHEDULE, round(calls)))

    def run(problem: Problem, calls: float) -> Outcome:
        plan = plan_of(calls)
        out = df.sample_parallel(problem.denoiser, plan, x=problem.start, tol=tolerance)
        return out.x, out.rounds

    name = f"secant, {solver}, {grid}, tol={tolerance:g}"
    return Candidate(PARALLEL, name, [n for n in CALLS if n >= 8][::2], run)


def ours(quick: bool) -> Iterator[Candidate]:
    """Yields the package's candidates.

    Args:
        quick: the few that are usually best, in place of all.
    """
    for grid in list(GRIDS)[: 2 if quick else None]:
        for solver in list(SOLVERS)[: 3 if quick else None]:
            yield _fixed(solver, grid)
    for method in ("bosh3", "dpm_23") if quick else ("bosh3", "dpm_23", "dpm_12", "tsit5"):
        for absolute in (0.1,) if quick else (1.0, 0.1):
            yield _adaptive(method, absolute)
    for solver in ("dpmpp_2m",) if quick else ("dpmpp_2m", "unipc"):
        for tolerance in (0.01,) if quick else (0.05, 0.01, 0.002):
            yield _parallel(solver, "karras", tolerance)
