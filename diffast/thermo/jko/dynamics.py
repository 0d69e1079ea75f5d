"""The fitted dynamics as a denoiser and a plan, so that `df.sample` runs them.

A step of dx = f(x, t) dt + sqrt(2 beta) dB is x <- (1 - h) x + h d + sqrt(2 beta h) z with
d = x + f. That is a plan whose "x0 estimate" d a network returns. x stands at alpha = 1, sigma = 1
of a schedule with alpha = 1 throughout, whatever the step: its noise level means nothing here, so
the plan is checked for x0 alone. The model time that the network is told is 1 for the start of the
walk, and 2 for its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffast.executors.results import Samples
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan, Stages
from diffast.schedules import ve

if TYPE_CHECKING:
    from diffast.thermo.jko.fitted import JKOFit


def plan_of_dynamics(
    start: float, end: float, temperature: Callable[[float], float], steps: int
) -> Plan:
    """Returns the plan of Euler-Maruyama steps from one time to another, even in time.

    Args:
        start: time of the initial state.
        end: time of the result.
        temperature: beta at a time.
        steps: network calls.

    Raises:
        ValueError: times that do not rise; a temperature below 0; fewer than 1 step.
    """
    if not start < end or steps < 1:
        raise ValueError(
            f"plan_of_dynamics: {steps} steps from {start} to {end}, but the time must rise"
        )
    h = (end - start) / steps
    stages = Stages(ve(0.5, 2.0), 1.0)
    for k in range(steps):
        beta = float(temperature(start + k * h))
        if not 0 <= beta < float("inf"):
            raise ValueError(
                f"plan_of_dynamics: the temperature is {beta:.4g} at t = {start + k * h:.4g}, but "
                "noise needs one of 0 or more"
            )
        row = {"x": 1.0 - h, "d": h}
        if beta:
            row["z1"] = float(np.sqrt(2.0 * beta * h))
        stages.add(1.0 + k / steps, 1.0 + (k + 1) / steps, row)
    return stages.plan("fitted dynamics", steps, check="x0")


def denoiser_of_dynamics(drift: Callable, start: float, end: float) -> Denoiser:
    """Returns the denoiser whose x0 estimate is x + drift(x, t), for `plan_of_dynamics`.

    Args:
        drift: returns float64 [n, ...] at points [n, ...] and a time.
        start: the time that model time 1 means.
        end: the time that model time 2 means.
    """

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = start + (float(t[0]) - 1.0) * (end - start)
        made = torch.as_tensor(drift(x.detach().cpu().double().numpy(), time))
        return (x.double() + made.to(x.device)).to(x.dtype)

    return Denoiser(network, ve(0.5, 2.0), predicts="x0")


def run(fit: JKOFit, x: torch.Tensor, start: float, end: float, steps: int, seed: int) -> Samples:
    """Returns particles of a fit's dynamics, see `JKOFit.sample`."""
    walk = plan_of_dynamics(start, end, lambda t: fit.temperature(t).value, steps)
    # An interaction is taken over the particles that walk.
    denoiser = denoiser_of_dynamics(lambda points, t: fit.drift(points, t, points), start, end)
    return sample(denoiser, walk, x=x.double(), seed=seed)
