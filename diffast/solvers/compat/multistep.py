"""Multistep methods of diffusers for grids, or starts, that the published builders refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.ode.adams import EVEN


def dpm_multistep_either_way(
    schedule: Schedule,
    grid: ArrayLike,
    orders: Sequence[int],
    form: Literal["data", "noise"] = "data",
    kind: Literal["midpoint", "heun"] = "midpoint",
) -> Plan:
    """Returns multistep DPM-Solver(++) on a grid that may rise, as inversion needs it.

    Lu et al. 2022 (DPM-Solver, appendix B; DPM-Solver++, algorithm 2). The formulas hold for steps
    h = lam_t - lam_s of either sign. With p0 = exp(k) - 1, the newest estimate m and its divided
    differences D1 and D2,

        data:   x_t = (sigma_t / sigma_s) x_s - alpha_t (p0 m + p1 D1 + p2 D2),    k = -h
        noise:  x_t = (alpha_t / alpha_s) x_s - sigma_t (p0 m + p1 D1 + p2 D2),    k = h

        p1 = p0 / 2 (second order, "midpoint") or p0 / k - 1,    p2 = (p0 - k) / k^2 - 1/2

    as in diffusers' DPMSolverMultistepInverseScheduler. A step of length zero leaves the state.
    The state of a rising run is no noisy x0, so the plan is checked for finite numbers alone.

    Args:
        schedule: any schedule, with lam(t).
        grid: [N+1] model times, none of them at sigma = 0.
        orders: [N] order of each step, 1 to 3.
        form: what is remembered: x0 estimates ("data") or noise estimates ("noise").
        kind: of the second order.
    """
    grid = np.asarray(grid, np.float64)
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    h, data = np.diff(lam), form == "data"
    stages = Stages(schedule, grid[0])
    for n, order in enumerate(orders):
        s, t = n, n + 1
        row = {"x": sigma[t] / sigma[s] if data else alpha[t] / alpha[s]}
        if h[n] != 0.0:
            weights = _weights(-h[n] if data else h[n], h[n::-1][:order], kind)
            factor = -alpha[t] if data else -sigma[t]
            row |= {f"h{age}": factor * weight for age, weight in enumerate(weights)}
        entry = {"d": 1.0} if data else {"x": 1.0 / sigma[s], "d": -alpha[s] / sigma[s]}
        stages.add(grid[s], grid[t], row, h=entry)
    name = f"dpm_multistep_either_way({form}, {kind})"
    return stages.plan(name, len(grid) - 1, check="finite")


def _weights(k: float, steps: np.ndarray, kind: str) -> np.ndarray:
    """Returns the weights of the estimates, newest first, over the factor of their sum.

    Args:
        k: the exponent of the step's exponential.
        steps: [order] lengths in lam of this step and of those before it, newest first.
        kind: of the second order.
    """
    order, whole = len(steps), np.expm1(k)
    weights = whole * np.eye(3)[0]
    if order > 1:
        line = (whole - k) / k
        ratios = steps[1:] / steps[0]
        first = np.array([1.0, -1.0, 0.0]) / ratios[0]
        if order == 2:
            weights += (0.5 * whole if kind == "midpoint" else line) * first
        else:
            second = np.array([0.0, 1.0, -1.0]) / ratios[1]
            curve = (first - second) / (ratios[0] + ratios[1])
            weights += line * (first + ratios[0] * curve)
            weights += ((whole - k) / k**2 - 0.5) * curve
    return weights[:order]


def improved_pndm(schedule: Schedule, alphas: ArrayLike, sigmas: ArrayLike, begin: int = 0) -> Plan:
    """Returns diffusers' IPNDMScheduler as a table over the network's outputs themselves.

    Adams-Bashforth of order 1 to 4 with the weights of even steps (Zhang & Chen 2022, "DEIS",
    iPNDM) on e = sigma x + alpha output, the noise of a network that predicts a velocity:

        x_t = alpha_t (x - sigma e) / max(alpha, 1e-8) + sigma_t e

    The plan's estimates are the outputs, so it is checked for finite numbers alone.

    Args:
        schedule: with alpha^2 + sigma^2 = 1, such as `trig`.
        alphas: [N+1] signal levels; only the first may be 0.
        sigmas: [N+1] noise levels.
        begin: the step that the run begins with.

    Raises:
        ValueError: a later step that begins at alpha near 0, where the state is noise alone.
    """
    alphas, sigmas = (np.asarray(a, np.float64)[begin:] for a in (alphas, sigmas))
    grid = np.arctan2(sigmas, alphas)
    stages = Stages(schedule, grid[0])
    for n in range(len(grid) - 1):
        a, s, a_t, s_t = alphas[n], sigmas[n], alphas[n + 1], sigmas[n + 1]
        least = max(a, 1e-8)
        entry = {"x": s, "d": a}
        if n == 0:  # x - sigma e, multiplied out: at alpha = 0 it is exactly 0
            row = {
                "x": a_t * (1.0 - s * s) / least + s_t * s,
                "d": s_t * a - a_t * s * a / least,
            }
        elif a < 1e-6:
            raise ValueError(
                f"step {n + begin} begins at alpha = {a:g}, but only the first one may begin at 0"
            )
        else:
            gain = s_t - a_t * s / least
            mean = EVEN[min(n, 3)]
            row = {"x": a_t / least} | {f"h{age}": gain * w for age, w in enumerate(mean)}
        stages.add(grid[n], grid[n + 1], row, h=entry)
    return stages.plan("improved_pndm", len(grid) - 1, check="finite")
