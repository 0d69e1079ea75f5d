"""`fluctuation_test_of_steps`: the fluctuation test of samplers that make Gaussian steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast.schedules import Schedule
from diffast.thermo.estimate import Estimate, mean_of
from diffast.thermo.fluctuation.densities import kernels, log_normal, of_ends
from diffast.thermo.fluctuation.slips import drift_slips, noise_slip
from diffast.thermo.fluctuation.theorem import FluctuationTest, judged
from diffast.thermo.fluctuation.trajectories import Trajectories

# step(x, t, t_next) -> (mean [B, ...], deviation) of the state after the step.
Step = Callable[[torch.Tensor, float, float], tuple[torch.Tensor, float]]

_WHO = "fluctuation_test_of_steps"


def fluctuation_test_of_steps(
    x: Any,
    times: Any,
    step: Step,
    log_start: Any,
    log_end: Any,
    *,
    schedule: Schedule | None = None,
    back: Step | None = None,
) -> FluctuationTest:
    """Returns whether trajectories have the Gaussian steps that their author means.

    For samplers that are no Euler-Maruyama method, such as exponential integrators: a step leads
    from x to mean(x) + deviation z, and the entropy of a path is

        dS = log p_first(x_0) + sum_k log N(x_{k+1}; step(x_k)) - log N(x_k; back(x_{k+1}))
             - log p_last(x_K)

    <exp(-dS)> = 1 is exact for steps of any size and any Gaussian back step (Crooks 1999, for a
    chain). The back step decides how large dS is: the nearer to the true reverse, the smaller.

    Args:
        x: states [K+1, B, ...], or a list of K+1 tensors, as they were run.
        times: [K+1] model times in the order of the run.
        step: called as step(x, t, t_next); returns the mean [B, ...] and the deviation, a number.
        log_start: log-density of the first states, as for `fluctuation_test`.
        log_end: likewise of the last states.
        schedule: the back steps are its noising steps, for runs from noise to data.
        back: the back step, called as back(x_next, t_next, t); in place of a schedule.

    Raises:
        ValueError: as `fluctuation_test`; a step without noise; both or none of schedule and back.
    """
    if (schedule is None) == (back is None):
        raise ValueError(f"{_WHO}: exactly one of schedule and back is needed, for the back steps")
    paths = Trajectories(_WHO, x, times, _unused, 1.0)
    first = of_ends(_WHO, log_start, paths.x[0], "start").cpu()
    last = of_ends(_WHO, log_end, paths.x[-1], "end").cpu()
    returns = _noising(paths.times, schedule) if back is None else back
    entropy = first - last
    noise = torch.zeros(paths.count, dtype=torch.float64)
    along, square = noise.clone(), noise.clone()
    for k in range(paths.steps):
        state, following = paths.x[k].double(), paths.x[k + 1].double()
        t, t_next = float(paths.times[k]), float(paths.times[k + 1])
        mean, deviation = _called("step", step, state, t, t_next)
        reverse, spread = _called("back", returns, following, t_next, t)
        entropy = entropy + log_normal(following, mean, deviation).cpu()
        entropy = entropy - log_normal(state, reverse, spread).cpu()
        left, move = (following - mean) / deviation, (mean - state) / deviation
        noise += left.square().flatten(1).mean(1).cpu()
        along += (move * (left + move)).flatten(1).sum(1).cpu()
        square += move.square().flatten(1).sum(1).cpu()
    measured, factor = mean_of(noise / paths.steps), fitted_ratio(along, square)
    wrong = drift_slips(["step"], np.array([factor.value]), np.array([factor.error]), True)
    wrong = [slip.replace("the drift's part 'step'", "the mean move of a step") for slip in wrong]
    # What a wrong move leaves is not noise.
    slip = None if wrong else noise_slip(measured, True)
    slips = [*wrong, *([slip] if slip else [])]
    return judged(entropy, slips, measured, {"step": factor}, "steps", True)


def fitted_ratio(along: torch.Tensor, square: torch.Tensor) -> Estimate:
    """Returns the factor that fits best, <along> / <square>, over paths [B] each."""
    size = float(square.mean())
    if size == 0.0:
        return Estimate(math.nan, math.nan, len(along))
    value = float(along.mean()) / size
    spread = float((along - value * square).std()) / size
    return Estimate(value, spread / math.sqrt(len(along)), len(along))


def _called(name: str, step: Step, x: torch.Tensor, t: float, to: float):
    """Returns the mean and the deviation of a step, checked."""
    with torch.no_grad():
        mean, deviation = step(x, t, to)
    mean = torch.as_tensor(mean)
    if mean.shape != x.shape:
        raise ValueError(
            f"{_WHO}: {name} returns a mean {list(mean.shape)} at t = {t:.6g}, but the states are "
            f"{list(x.shape)}"
        )
    if not bool(mean.isfinite().all()):
        raise ValueError(f"{_WHO}: {name} returns a mean that is not finite at t = {t:.6g}")
    found = torch.as_tensor(deviation).detach().double()
    if found.numel() != 1 or not 0.0 < float(found) < math.inf:
        shown = f"{float(found):g}" if found.numel() == 1 else f"of shape {list(found.shape)}"
        raise ValueError(
            f"{_WHO}: the deviation of {name} at t = {t:.6g} is {shown}, but one positive number "
            "is needed: a step without noise has no density, so leave its state out"
        )
    return mean.double(), float(found)


def _noising(times: np.ndarray, schedule: Any) -> Step:
    """Returns the noising steps of a schedule.

    Raises:
        ValueError: times along which the noise does not fall.
    """
    levels = [(float(schedule.alpha(t)), float(schedule.sigma(t))) for t in times]
    found = kernels(_WHO, levels, [f"t = {t:.6g}" for t in times], "give back=")
    at = {float(t): pair for t, pair in zip(times, found, strict=False)}

    def back(x: torch.Tensor, t_next: float, t: float) -> tuple[torch.Tensor, float]:
        factor, deviation = at[t]
        return factor * x, deviation

    return back


def _unused(x: torch.Tensor, t: float) -> torch.Tensor:
    return x
