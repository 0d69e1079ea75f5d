"""Grids of other tools for flow models, by the tools' names."""

from __future__ import annotations

import numpy as np

from diffast.grids.checks import check_grid, check_positive, check_steps, grid_function
from diffast.grids.given import levels_to_grid
from diffast.grids.shifts import shifted
from diffast.schedules import Flow, Schedule
from diffast.schedules.domain import check_inside


@grid_function
def flow_sigmas(
    schedule: Schedule, steps: int, flow_shift: float = 1.0, timesteps: int = 1000
) -> np.ndarray:
    """Returns the times of diffusers' use_flow_sigmas; [steps+1] float64.

    Even from 1 - 1/timesteps to 0, then `shifted` by flow_shift (DPMSolver, UniPC, DEIS and
    SASolver with prediction_type "flow_prediction"). The start is not quite pure noise.

    Args:
        schedule: made by `flow`.
        flow_shift: positive; see `shifted`.
        timesteps: number of training steps, 2 or more; the start stays 1/timesteps below 1.
    """
    steps = _check_flow("flow_sigmas", schedule, steps, timesteps)
    check_positive("flow_sigmas", flow_shift=flow_shift)
    times = (1.0 - 1.0 / timesteps) * (1.0 - np.arange(steps + 1) / steps)
    return shifted(schedule, times, flow_shift)


@grid_function
def flow_match(
    schedule: Schedule, steps: int, shift: float = 1.0, timesteps: int = 1000
) -> np.ndarray:
    """Returns the default times of diffusers' FlowMatchEulerDiscreteScheduler; [steps+1] float64.

    steps times even from 1 to s(1/timesteps), s the shift u -> shift u / (1 + (shift - 1) u), then
    all of them `shifted` by shift, then 0: the last noisy time is shifted twice, as it is there.
    Pipelines that pass their own sigmas (Flux and later ones) use `uniform_time`, shifted once.

    Args:
        schedule: made by `flow`.
        shift: positive; see `shifted`.
        timesteps: number of training steps, 2 or more.
    """
    steps = _check_flow("flow_match", schedule, steps, timesteps)
    check_positive("flow_match", shift=shift)
    last = shift / (timesteps + shift - 1.0)
    times = 1.0 + np.arange(steps) / max(steps - 1, 1) * (last - 1.0)
    return shifted(schedule, np.append(times, 0.0), shift)


@grid_function
def linear_quadratic(
    schedule: Schedule,
    steps: int,
    threshold_noise: float = 0.025,
    linear_steps: int | None = None,
    sigma_max: float | None = None,
) -> np.ndarray:
    """Returns a grid with small even steps first, then growing ones; [steps+1] float64.

    1 - u_i = tau i/L + a max(i - L, 0)^2, a = (L - tau N) / (L (N - L)^2), tau = threshold_noise,
    L = linear_steps of N: a line to 1 - tau, then the parabola that goes on with its slope and ends
    at 0 (Genmo's Mochi; ComfyUI, LTX-Video). On `flow` u is the time; on another schedule u
    sigma_max is sigma/alpha, as in ComfyUI. For 1 step it is the start and the end.

    Args:
        steps: number of grid intervals N.
        threshold_noise: how far the line goes, in (0, 1).
        linear_steps: number of steps on the line, 1 to N - 1; by default half of N.
        sigma_max: first sigma/alpha, by default that of schedule.t_start; not for `flow`.

    Raises:
        ValueError: steps < 1; threshold_noise outside (0, 1), or so large that the parabola would
            rise; linear_steps outside 1 to N - 1; sigma_max infinite, above the schedule's, or
            given for `flow`.
    """
    name = "linear_quadratic"
    steps = check_steps(name, steps)
    check_inside(name, "threshold_noise", threshold_noise)
    first = _first_level(name, schedule, sigma_max)
    done = np.arange(2.0) if steps == 1 else _done(name, steps, threshold_noise, linear_steps)
    left = 1.0 - done
    left[-1] = 0.0
    if first is None:
        return check_grid(schedule, left)
    return levels_to_grid(name, schedule, left * first)


def _done(name, steps, threshold_noise, linear_steps):
    linear = steps // 2 if linear_steps is None else check_steps(name, linear_steps)
    if linear >= steps:
        raise ValueError(f"{name}: linear_steps = {linear}, but it must be below {steps} steps")
    i, rest = np.arange(steps + 1.0), steps - linear
    bend = (linear - threshold_noise * steps) / (linear * rest**2)
    if threshold_noise / linear + 2.0 * bend * rest <= 0:
        raise ValueError(
            f"{name}: threshold_noise = {threshold_noise}, but with {linear} of {steps} steps on "
            "the line the parabola would pass the clean end and turn back"
        )
    return threshold_noise * i / linear + bend * np.maximum(i - linear, 0.0) ** 2


def _first_level(name, schedule, sigma_max):
    if isinstance(schedule, Flow):
        if sigma_max is not None:
            raise ValueError(f"{name}: sigma_max = {sigma_max}, but flow starts at t = 1")
        return None
    if sigma_max is None:
        with np.errstate(over="ignore"):
            sigma_max = np.exp(-schedule.lam(schedule.t_start))
        if np.isinf(sigma_max):
            raise ValueError(
                f"{name}: sigma/alpha is infinite at t = {schedule.t_start}, but this grid needs a "
                "finite one: take grids.default, which starts at pure noise, or give sigma_max"
            )
    check_positive(name, sigma_max=sigma_max)
    return float(sigma_max)


def _check_flow(name, schedule, steps, timesteps):
    if not isinstance(schedule, Flow):
        raise ValueError(f"{name}: schedule = {schedule}, but it must be flow")
    if timesteps < 2:
        raise ValueError(f"{name}: timesteps = {timesteps}, but it must be 2 or more")
    return check_steps(name, steps)
