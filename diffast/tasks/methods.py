"""Ways to draw images that agree with a measurement, by name.

A method is a function (problem, options) -> Setup. `METHODS` has them by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diffast import grids, guidance, solvers
from diffast._namespace import lookup
from diffast.executors.context import Clamp
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.tasks.operator import Operator
from diffast.tasks.projections import range_null, replacement
from diffast.tasks.setup import Setup

# Standard deviation that a measurement without noise is given where a method divides by it.
_LEAST_NOISE = 0.01


@dataclass(frozen=True)
class Problem:
    """A measurement, and what a run may cost; the arguments of `restore`."""

    denoiser: Denoiser
    operator: Operator
    y: Tensor
    noise: float
    calls: int
    repeats: int | None
    plan: Plan | None
    clamp: Clamp | None

    def setup(
        self,
        guides: tuple[guidance.Guide, ...] = (),
        *,
        repeats: int = 1,
        solver: Callable[..., Plan] = solvers.ddim,
        change: Callable[[Plan], Plan] | None = None,
        **options: Any,
    ) -> Setup:
        """Returns a setup with these terms, on the problem's plan or on one of a solver.

        Args:
            guides: added to those of the denoiser.
            repeats: of every step, where the problem leaves it open.
            solver: makes the plan, from schedule, grid and the options.
            change: what is done to the plan before its steps are repeated.
            **options: of the solver.

        Raises:
            ValueError: more repeats than calls.
        """
        plan, schedule = self.plan, self.denoiser.schedule
        if plan is None:
            repeats = repeats if self.repeats is None else self.repeats
            if not 1 <= repeats <= self.calls:
                raise ValueError(
                    f"restore: calls = {self.calls} and repeats = {repeats}, but 1 <= repeats <= "
                    "calls"
                )
            plan = solver(schedule, grids.default(schedule, self.calls // repeats), **options)
            # The published order: a step with its gradients is what is repeated.
            plan = solvers.resampled(plan if change is None else change(plan), times=repeats)
        elif change is not None:
            plan = change(plan)
        terms = (*self.denoiser.guides, *guides)
        return Setup(dataclasses.replace(self.denoiser, guides=terms), plan, clamp=self.clamp)


def ddnm(problem: Problem) -> Setup:
    """Projects every x0 estimate on the measurement, see `range_null`; 3 repeats, `ddim`, eta 1."""
    made = problem.setup(repeats=3, eta=1.0)
    return range_null(made, problem.operator, problem.y, problem.noise)


def repaint(problem: Problem) -> Setup:
    """Replaces the state's range part: RePaint and ILVR, see `replacement`; as `ddnm` else.

    Raises:
        ValueError: noise in the measurement.
    """
    _without_noise("repaint", problem)
    return replacement(problem.setup(repeats=3, eta=1.0), problem.operator, problem.y)


def dps(problem: Problem, scale: float = 5.0) -> Setup:
    """Diffusion posterior sampling, `df.guidance.dps` on the state; `ddim`, eta 1.

    `scale` is 2 zeta of the paper, for states of unit variance.
    """
    term = guidance.dps(problem.operator, problem.y, _of_unit_state(problem, scale))
    return problem.setup((term,), change=solvers.on_state, eta=1.0)


def mcg(problem: Problem, scale: float = 1.0) -> Setup:
    """Manifold constrained gradient: `df.guidance.mcg` on the state, then `replacement`.

    `scale` is the paper's alpha, for states of unit variance.

    Raises:
        ValueError: noise in the measurement.
    """
    _without_noise("mcg", problem)
    term = guidance.mcg(problem.operator, problem.y, _of_unit_state(problem, scale))
    made = problem.setup((term,), change=solvers.on_state, eta=1.0)
    return replacement(made, problem.operator, problem.y)


def pigdm(problem: Problem, spread: float = 1.0, scale: float = 1.0) -> Setup:
    """Pseudo-inverse guidance, `df.guidance.pigdm`; `ddim`, eta 1."""
    noise = max(problem.noise, _LEAST_NOISE)
    term = guidance.pigdm(problem.operator, problem.y, noise, scale, spread=spread)
    return problem.setup((term,), eta=1.0)


def mmps(problem: Problem, iterations: int = 3) -> Setup:
    """Moment matching, `df.guidance.mmps`; `ddim`, eta 1. A backward pass for each iteration."""
    noise = max(problem.noise, _LEAST_NOISE)
    term = guidance.mmps(problem.operator, problem.y, noise, iterations=iterations)
    return problem.setup((term,), eta=1.0)


def mpgd(problem: Problem, scale: float = 1.0) -> Setup:
    """Manifold preserving guidance, `df.guidance.mpgd`; `ddim`, eta 1."""
    return problem.setup((guidance.mpgd(problem.operator, problem.y, scale),), eta=1.0)


def diffpir(problem: Problem, strength: float = 7.0, zeta: float = 1.0) -> Setup:
    """Proximal steps, `df.guidance.diffpir`, on `df.solvers.renoised`."""
    term = guidance.diffpir(problem.operator, problem.y, problem.noise, strength=strength)
    return problem.setup((term,), solver=solvers.renoised, zeta=zeta)


METHODS: dict[str, Callable[..., Setup]] = {
    "ddnm": ddnm,
    "repaint": repaint,
    "dps": dps,
    "mcg": mcg,
    "pigdm": pigdm,
    "mmps": mmps,
    "mpgd": mpgd,
    "diffpir": diffpir,
}


def _of_unit_state(problem: Problem, scale: float) -> Callable[[float], float]:
    """Returns the scale of a step on the state that the papers give for states of unit variance.

    A step of s grad on u = x / c, c^2 = alpha^2 + sigma^2, is one of s c^2 grad on x.
    """
    schedule = problem.denoiser.schedule
    return lambda t: float(scale * (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2))


def _without_noise(who: str, problem: Problem) -> None:
    if problem.noise:
        raise ValueError(
            f"{who}: noise is {problem.noise:g}, but it puts the measurement into the state as it "
            "is: take pigdm, diffpir or ddnm"
        )


def restore(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    *,
    method: str = "pigdm",
    calls: int = 60,
    repeats: int | None = None,
    noise: float = 0.0,
    plan: Plan | None = None,
    clamp: Clamp | None = (-1.0, 1.0),
    **options: Any,
) -> Setup:
    """Returns what a run needs to draw images that agree with a measurement y = A x0 + noise.

    Args:
        denoiser: the network and what it predicts.
        operator: the measurement.
        y: what was measured, for each sample or for all [1, ...].
        method: one of `METHODS`; their docstrings say what they do.
        calls: network calls of a run, at most.
        repeats: how often every step is run (`df.solvers.resampled`), 1 for once; None: what the
            method is used to.
        noise: standard deviation of the noise in y.
        plan: a plan to take in place of one made of calls and repeats.
        clamp: (low, high) for the x0 estimate.
        **options: of the method.

    Raises:
        ValueError: an unknown method; numbers that are not whole and positive; what the method
            refuses.
        TypeError: an option that the method does not have.
    """
    for name, value in (("calls", calls), ("repeats", repeats)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ValueError(f"restore: {name} is {value!r}, but it must be a whole number from 1")
    if not 0.0 <= float(noise) < math.inf:
        raise ValueError(f"restore: noise is {noise}, but it must be 0 or more, and finite")
    problem = Problem(denoiser, operator, y, float(noise), calls, repeats, plan, clamp)
    return lookup("method", METHODS, method)(problem, **options)
