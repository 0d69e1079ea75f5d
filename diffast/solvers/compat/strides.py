"""First-order maps of other programs between pairs of model times that need not be neighbours.

Each step has its own start and end, as those programs compute them. The plans are checked for
finite numbers alone: the caller of a program decides what its steps add up to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan, one_call_plan
from diffast.schedules import Schedule


def _levels(schedule: Schedule, times: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    times = np.asarray(times, np.float64)
    return np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))


def _plan(name: str, schedule: Schedule, starts: ArrayLike, ends: ArrayLike, x: dict) -> Plan:
    grid = np.append(np.asarray(starts, np.float64), np.asarray(ends, np.float64)[-1])
    return one_call_plan(name, schedule, grid, x, check="finite")


def inverse_strides(
    schedule: Schedule, starts: ArrayLike, ends: ArrayLike, raw_noise: bool = False
) -> Plan:
    """Returns DDIM steps from each start to a noisier end (Song et al. 2021, eq. 12 with eta = 0).

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls, sigma > 0.
        ends: [N] model times that the steps aim at.
        raw_noise: whether the noise left in the state is the network's, not that of a clamped x0
            estimate.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = _levels(schedule, starts), _levels(schedule, ends)
    keep = sigma_t / sigma_s
    x = {"x": keep, "d": alpha_t - alpha_s * keep}
    if raw_noise:
        x |= {"d": alpha_t, "d_raw": -(alpha_s * keep)}
    return _plan("ddim(inverse)", schedule, starts, ends, x)


def posterior(
    schedule: Schedule,
    starts: ArrayLike,
    ends: ArrayLike,
    alphas: ArrayLike,
    betas: ArrayLike,
    noise: ArrayLike,
) -> Plan:
    """Returns ancestral steps (Ho et al. 2020, eq. 7) with given betas and noise.

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls.
        ends: [N] model times that the steps aim at.
        alphas: [N] 1 - betas, as the program has it.
        betas: [N] variance of the forward step from end to start, as the program has it. In
            float32, or from a table of its own, it is not that of the two levels to the last digit.
        noise: [N] weights of the fresh noise.
    """
    (_, sigma_s), (alpha_t, sigma_t) = _levels(schedule, starts), _levels(schedule, ends)
    alphas, betas = np.asarray(alphas, np.float64), np.asarray(betas, np.float64)
    x = {
        "x": np.sqrt(alphas) * (sigma_t / sigma_s) ** 2,
        "d": alpha_t * betas / sigma_s**2,
        "z1": noise,
    }
    return _plan("ddpm(posterior)", schedule, starts, ends, x)


def tcd(
    schedule: Schedule,
    starts: ArrayLike,
    middles: ArrayLike,
    ends: ArrayLike,
    noisy: ArrayLike,
) -> Plan:
    """Returns the strategic stochastic sampling of Zheng et al. 2024 (TCD), algorithm 4.

    A DDIM step leads down to s' = (1 - gamma) t, then the forward process back up to t.

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls.
        middles: [N] model times s'.
        ends: [N] model times t.
        noisy: [N] whether the way back up is taken; else the step ends at s'.
    """
    (alpha_s, sigma_s), (alpha_m, sigma_m) = _levels(schedule, starts), _levels(schedule, middles)
    alpha_t, sigma_t = _levels(schedule, ends)
    keep = sigma_m / sigma_s
    noisy = np.asarray(noisy, bool)
    shrink = np.where(noisy, alpha_t / alpha_m, 1.0)
    # 1 - shrink^2 without cancellation, for alpha^2 + sigma^2 = 1
    more = np.where(noisy, (sigma_t - sigma_m) * (sigma_t + sigma_m), 0.0)
    x = {
        "x": shrink * keep,
        "d": shrink * (alpha_m - alpha_s * keep),
        "z1": np.sqrt(more) / alpha_m,
    }
    return _plan("tcd", schedule, starts, ends, x)


def consistency(schedule: Schedule, starts: ArrayLike, clean: ArrayLike, noise: ArrayLike) -> Plan:
    """Returns steps clean x0 + noise z: Song et al. 2023, algorithm 1, with given weights.

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls.
        clean: [N] weights of the x0 estimates.
        noise: [N] weights of the fresh noise.
    """
    starts = np.asarray(starts, np.float64)
    x = {"d": np.asarray(clean, np.float64), "z1": np.asarray(noise, np.float64)}
    return _plan("consistency", schedule, starts, starts, x)
