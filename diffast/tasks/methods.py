"""Ways to draw images that agree with a measurement, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from diffast import grids, solvers
from diffast._namespace import lookup
from diffast.executors.context import Clamp
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.solvers.sde.resampled import resampled
from diffast.tasks.operator import Operator
from diffast.tasks.projections import range_null, replacement
from diffast.tasks.setup import Setup


def ddnm(setup: Setup, operator: Operator, y: Tensor, noise: float) -> Setup:
    """Projects every estimate (DDNM; with noise a corrected DDNM+), see `range_null`."""
    return range_null(setup, operator, y, noise)


def repaint(setup: Setup, operator: Operator, y: Tensor, noise: float) -> Setup:
    """Replaces the state's range part (RePaint, ILVR), see `replacement`; without noise."""
    if noise:
        raise ValueError(
            f"repaint: noise is {noise:g}, but it puts the measurement into the state as it is: "
            "take another method"
        )
    return replacement(setup, operator, y)


METHODS: dict[str, Callable[..., Setup]] = {"ddnm": ddnm, "repaint": repaint}


def restore(
    denoiser: Denoiser,
    operator: Operator,
    y: Tensor,
    *,
    method: str = "ddnm",
    calls: int = 60,
    repeats: int = 3,
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
        method: one of `METHODS`.
        calls: network calls of a run, at most; at least one step is made.
        repeats: how often every step is run (`resampled`); 1 for once.
        noise: standard deviation of the noise in y.
        plan: a plan to take in place of one made of calls and repeats.
        clamp: (low, high) for the x0 estimate.
        **options: of the method.

    Raises:
        ValueError: an unknown method; numbers that are not positive; what the method refuses.
    """
    if plan is None:
        if repeats < 1 or calls < repeats:
            raise ValueError(
                f"restore: calls = {calls} and repeats = {repeats}, but 1 <= repeats <= calls"
            )
        grid = grids.default(denoiser.schedule, calls // repeats)
        once = solvers.ddim(denoiser.schedule, grid, eta=1.0)
        plan = resampled(once, times=repeats)
    setup = Setup(denoiser, plan, clamp=clamp)
    return lookup("method", METHODS, method)(setup, operator, y, noise, **options)
