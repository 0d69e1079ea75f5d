"""The package's deterministic solvers on a problem: families x orders x ends x grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch

import diffast as df
from bench.networks.problems import Problem
from diffast import solvers
from diffast.planning.choose import grid_of
from diffast.plans import Plan

Run = Callable[[Problem, int], tuple[torch.Tensor, int]]

ADAMS = [("flow", "velocity"), ("lam", "noise"), ("lam", "data"), ("arctan", "velocity")]


def methods() -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yields solver, options and network calls of a step."""
    yield "euler", {}, 1
    for final in ("clean", "falling"):
        yield "dpmpp_2m", {"final": final}, 1
        yield "dpmpp_3m", {"final": final}, 1
        yield "ipndm", {"final": final}, 1
        for order in (2, 3):
            yield "unipc", {"order": order, "final": final}, 1
        for order in (2, 3, 4):
            yield "lms", {"order": order, "final": final}, 1
        for clock, form in ADAMS:
            for order in (2, 3, 4):
                yield "adams", {"order": order, "clock": clock, "form": form, "final": final}, 1
    yield "heun", {}, 2
    yield "dpm_solver_2s", {}, 2
    yield "res_2s", {}, 2
    yield "dpm_solver_3s", {}, 3
    yield "bosh3", {}, 3
    yield "rk4", {}, 4


SPACINGS = ("karras", "exponential", "kl_optimal", "beta_sigmas", "uniform_time", "flow",
            "flow^1.5", "flow^2", "flow^3")  # fmt: skip


def runs(problem: Problem) -> Iterator[tuple[str, Run]]:
    """Yields (name, run); run(problem, calls) returns y at the end and the calls that it took."""
    few = len(problem.shape) > 2  # a network of pictures takes long
    for name, options, each in methods():
        if few and (
            options.get("order", 0) > 3 or options.get("clock") == "arctan" or each > 2
            or options.get("final") == "full" and name != "adams"
        ):  # fmt: skip
            continue
        for spacing in SPACINGS if not few else ("karras", "kl_optimal", "uniform_time", "flow^2"):
            shown = ", ".join(f"{k}={v}" for k, v in options.items())
            yield f"{name}({shown}), {spacing}", _run(name, options, each, spacing)


@cache
def _grid(spacing: str, schedule: Any, steps: int) -> np.ndarray:
    return grid_of(spacing, schedule, steps)


def _run(name: str, options: dict[str, Any], each: int, spacing: str) -> Run:
    def run(problem: Problem, calls: int) -> tuple[torch.Tensor, int]:
        steps = calls if each == 1 else (calls - 1) // each + 1
        grid = _grid(spacing, problem.schedule, steps)
        return follow(problem, getattr(solvers, name)(problem.schedule, grid, **options))

    return run


def follow(problem: Problem, plan: Plan) -> tuple[torch.Tensor, int]:
    """Returns y at the plan's end, and its calls."""
    x = (plan.initial_scale * problem.noise).float()  # a plan may start below the schedule's start
    out = df.sample(problem.denoiser, plan, x=x)
    return out.x, plan.nfe
