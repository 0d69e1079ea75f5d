"""Maps of other programs that weigh a tensor which the caller gives to each step.

The plans have this tensor as y, and what the step returns beside x is the next y. A plan writes y
apart from x only between two stages, so these have a stage more before the first step and behind
the last. Neither is ever taken. They are checked for finite numbers alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan, one_call_plan
from diffast.plans.registers import X0_LEVEL
from diffast.schedules import Schedule


def _levels(schedule: Schedule, times: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    times = np.asarray(times, np.float64)
    return np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))


def _plan(name: str, schedule: Schedule, starts: ArrayLike, x: dict, y: dict) -> Plan:
    """Returns the plan of those rows [N], with the first and the last stage repeated."""
    times = np.asarray(starts, np.float64)

    def wider(row):
        return {
            column: np.pad(np.broadcast_to(weights, len(times)), 1, mode="edge")
            for column, weights in row.items()
        }

    grid = np.pad(times, (1, 2), mode="edge")
    return one_call_plan(name, schedule, grid, wider(x), y=wider(y), y_at=X0_LEVEL, check="finite")


def dpm_2m_sde(
    schedule: Schedule, starts: ArrayLike, ends: ArrayLike, backs: ArrayLike, second: ArrayLike
) -> Plan:
    """Returns DPM-Solver++ SDE steps of second order whose earlier estimate the caller gives.

    Lu et al. 2022 ("DPM-Solver++"), SDE-DPM-Solver++(2M), as in diffusers' CogVideoXDPMScheduler.
    y is the x0 estimate of the call before, then that of the step.

    Args:
        schedule: any schedule, with lam(t).
        starts: [N] model times of the network calls.
        ends: [N] model times that the steps aim at.
        backs: [N] model times of the calls before.
        second: [N] whether the step is of second order; else `backs` is not read.
    """
    (_, sigma_s), (alpha_t, sigma_t) = _levels(schedule, starts), _levels(schedule, ends)
    starts, ends, backs = (np.asarray(t, np.float64) for t in (starts, ends, backs))
    with np.errstate(divide="ignore", invalid="ignore"):
        lam, lam_t, lam_b = schedule.lam(starts), schedule.lam(ends), schedule.lam(backs)
        h = lam_t - lam  # infinite into sigma = 0, and from alpha = 0
        half = np.where(np.asarray(second, bool), 0.5 * h / (lam - lam_b), 0.0)
    fresh = 0.0 - np.expm1(-2.0 * h)
    x = {
        "x": sigma_t / sigma_s * np.exp(-h),
        "d": alpha_t * fresh * (1.0 + half),
        "y": -alpha_t * fresh * half,
        "z1": sigma_t * np.sqrt(fresh),
    }
    return _plan("dpmpp_2m_sde(given)", schedule, starts, x, {"d": 1.0})


def repaint(
    schedule: Schedule, starts: ArrayLike, ends: ArrayLike, eta: float, raw_noise: bool
) -> Plan:
    """Returns the steps of RePaint (Lugmayr et al. 2022, algorithm 1, lines 4 to 7).

    x is the part that is painted, by DDIM; y, which the caller gives, is the known picture, then
    that picture at the step's end. Both have the same noise, as in diffusers' RePaintScheduler.

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls.
        ends: [N] model times that the steps aim at.
        eta: 0 for none to 1 for ancestral noise.
        raw_noise: whether the noise left in the state is the network's, not that of a clamped x0
            estimate.

    Raises:
        ValueError: an eta whose noise is more than a step's end has.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = _levels(schedule, starts), _levels(schedule, ends)
    shrink = alpha_s * sigma_t / (alpha_t * sigma_s)  # exp(-h)
    up = eta * sigma_t * np.sqrt((1.0 - shrink) * (1.0 + shrink))
    if (up > sigma_t).any():
        raise ValueError(f"eta is {eta}, but its noise is more than a step's end has")
    keep = np.sqrt((sigma_t - up) * (sigma_t + up)) / sigma_s
    x = {"x": keep, "d": alpha_t - alpha_s * keep, "z1": up if eta > 0.0 else 0.0 * up}
    if raw_noise:
        x |= {"d": alpha_t, "d_raw": -(alpha_s * keep)}
    return _plan("repaint", schedule, starts, x, {"y": alpha_t, "z1": sigma_t})
