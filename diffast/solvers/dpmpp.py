"""DPM-Solver++ multistep: exponential integrators in lam for the x0 estimate, one call a step."""

from __future__ import annotations

import numpy as np

from diffast.grids import check_grid
from diffast.plan import Plan


def dpmpp_2m(schedule, grid, kind="midpoint") -> Plan:
    """Returns DPM-Solver++(2M). Order 2, 1 call a step, remembers 2 estimates.

    With h = lam_t - lam_s, h' the step before, and estimates d_s, d_r at s and one step earlier,

        x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) d_s + w (d_s - d_r)

        midpoint:  w = alpha_t (1 - exp(-h)) h / (2 h')          (Lu et al. 2022, algorithm 2)
        heun:      w = alpha_t (h - (1 - exp(-h))) / h'          (the other Taylor form there)

    heun integrates the line through d_r and d_s exactly (phi_2): exponential Adams-Bashforth, "RES
    2M". w = 0, which is Euler's step, where no line is to be had: in the first step, into
    sigma_t = 0 (h infinite), and after a step out of alpha = 0 (h' infinite; on `flow` from t = 1
    in even times the error then falls as N^-2 log N).

    Args:
        schedule: any schedule, with lam(t).
        grid: [N+1] model times from noisy to clean.
        kind: "midpoint" or "heun".

    Raises:
        ValueError: another kind; a grid that `check_grid` refuses.
    """
    if kind not in ("midpoint", "heun"):
        raise ValueError(f"dpmpp_2m: kind = {kind!r}, but it must be 'midpoint' or 'heun'")
    grid = check_grid(schedule, grid)
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    keep = sigma[1:] / sigma[:-1]
    new = alpha[1:] - alpha[:-1] * keep  # alpha_t (1 - exp(-h))
    h = np.diff(lam)
    w = np.zeros_like(h)
    line = np.flatnonzero(np.isfinite(h[1:])) + 1
    gain = 0.5 * new * h if kind == "midpoint" else alpha[1:] * h - new
    w[line] = gain[line] / h[line - 1]
    rows = np.stack([keep, np.zeros_like(h), new + w, -w], axis=1)
    steps = len(rows)
    return Plan(
        schedule=schedule,
        times=grid[:-1],
        end=grid[-1],
        read=np.tile([0.0, 1.0], (steps, 1)),
        point=rows,
        anchor=rows,
        anchor_at=np.arange(1, steps + 1),
        steps=steps,
        name=f"dpmpp_2m({kind})",
    )
