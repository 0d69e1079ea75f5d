"""azula's samplers on a problem: every deterministic one, on each of its schedules.

azula's samplers step evenly in their schedule's time, so the schedule is the grid. Each schedule
starts at the level that the problem starts at, or at azula's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from bench.networks.problems import Problem

Run = Callable[[Problem, int], tuple[torch.Tensor, int]]


def _schedules(problem: Problem) -> Iterator[tuple[str, object]]:
    from azula import noise

    first = min(problem.first, 1 - 1e-3)
    high = first / (1 - first)  # sigma / alpha at the start
    few = len(problem.shape) > 2  # a network of pictures takes long
    for low in sorted({problem.last} if few else {1e-4, 1e-3, max(problem.last, 1e-5)}):
        named = f"sigma_min {low:.2g}"
        yield f"VE {named}", noise.VESchedule(low, high)
        alpha = 1 / math.sqrt(1 + high * high)
        yield f"VP {named}", noise.VPSchedule(alpha, low)
        yield f"cosine {named}", noise.CosineSchedule(alpha, low)
        flow = 1 / high  # sigma = 1 at the start
        yield f"rectified {named}", noise.RectifiedSchedule(flow, low)
        for gamma in (0.5, 0.1) if few else (0.5, 0.1, 0.01, 0.001):
            yield f"decay({gamma:g}) {named}", noise.DecaySchedule(flow, low, gamma)


class _Posterior:
    def __init__(self, mean: torch.Tensor):
        self.mean = mean


class _Denoiser:
    """A problem as a denoiser of azula on one of its schedules."""

    def __init__(self, problem: Problem, schedule):
        self.problem, self.schedule, self.calls = problem, schedule, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> _Posterior:
        self.calls += 1
        alpha, sigma = (float(v) for v in self.schedule(t.double()))
        whole = alpha + sigma
        return _Posterior(self.problem.x0(x / whole, sigma / whole) if sigma else x / whole)


def _samplers() -> Iterator[tuple[str, str, dict, int]]:
    yield "DDIM", "DDIMSampler", {}, 1
    yield "Heun", "HeunSampler", {}, 2
    for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (1, 2, 3, 4, 5):
            yield f"{kind}-{order}", f"{kind}Sampler", {"order": order}, 1


def runs(problem: Problem) -> Iterator[tuple[str, Run]]:
    """Yields (name, run); run(problem, calls) returns y at the end and the calls that it took."""
    few = len(problem.shape) > 2
    for grid, schedule in _schedules(problem):
        for name, kind, options, each in _samplers():
            if few and options.get("order") in (1, 5):
                continue
            yield f"{name}, {grid}", _sampler(kind, options, each, schedule)


def _sampler(kind: str, options: dict, each: int, schedule) -> Run:
    def run(problem: Problem, calls: int) -> tuple[torch.Tensor, int]:
        from azula import sample

        steps = calls // each
        denoiser = _Denoiser(problem, schedule)
        sampler = getattr(sample, kind)(
            denoiser, steps=steps, silent=True, dtype=torch.float64, **options
        )
        alpha, sigma = (float(v) for v in schedule(torch.tensor(1.0, dtype=torch.float64)))
        tau = sigma / (alpha + sigma)
        y = problem.start.float() * (tau / problem.first)
        x = sampler(y * (alpha + sigma)).float()
        alpha, sigma = (float(v) for v in schedule(torch.tensor(0.0, dtype=torch.float64)))
        return x / alpha, denoiser.calls

    return run
