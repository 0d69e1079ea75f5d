"""Rectified-CFG++: a conditional step, corrected by the branches' difference at its middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.plans.registers import Stages


def rectified_cfg(schedule: Any, grid: Any, scale: float | Callable[[float], float] = 2.0) -> Plan:
    """Returns the plan of Rectified-CFG++ (Saini et al. 2025, arXiv 2510.07631).

    Every step from t to t' goes along the conditional velocity v_c(x, t), and adds the difference
    of the branches at the middle, where a conditional half step leads:

        x_m = x + (t_m - t) v_c(x, t)
        x'  = x + (t' - t) (v_c(x, t) + w(t) (v_c - v_u)(x_m, t_m))

    The guidance is the plan's, so the denoiser's own scale is not used; it needs unconditional
    conditions. A step is two calls: B rows at t and 2B rows at t_m. It is made for flows. On other
    schedules a velocity is dx/dt, and steps along v_c are exact for a constant x0 estimate.

    Args:
        schedule: noise schedule.
        grid: model times, from the noisiest on.
        scale: w, or a function of the model time t; the paper's decays along the run.

    Raises:
        ValueError: for a scale that is not finite, or a bad grid.
    """
    times = check_grid(schedule, grid)
    values = np.array([scale(float(t)) if callable(scale) else scale for t in times[:-1]], float)
    if not np.isfinite(values).all():
        raise ValueError(f"solvers.rectified_cfg: scale is {values[~np.isfinite(values)][0]}")
    stages = Stages(schedule, times[0])
    for start, end, weight in zip(times[:-1], times[1:], values, strict=True):
        middle = 0.5 * (start + end)
        at = np.array([start, middle, end])
        alpha, sigma = schedule.alpha(at), schedule.sigma(at)
        dalpha, dsigma = (float(d[0]) for d in schedule.derivatives(at[1:2]))
        slope = dalpha - dsigma * alpha[1] / sigma[1]  # of dx/dt in the x0 estimate
        keep = sigma / sigma[0]
        data = alpha - alpha[0] * keep
        stages.add(start, middle, {"x": keep[1], "d_cond": data[1]}, y="keep", h={"d_cond": 1.0})
        turn = weight * (end - start) * slope
        row = {"y": keep[2], "h1": data[2], "d_cond": turn, "d_uncond": -turn}
        stages.add(middle, end, row, h={})
    ones = np.ones(len(stages))
    return stages.plan("rectified_cfg", len(times) - 1, guidance=ones)
