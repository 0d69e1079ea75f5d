"""Ancestral solvers: an ODE step to a lower noise level than the next one, then fresh noise."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.core.docs import ancestral_builder, builder
from diffast.solvers.core.noise_split import (
    ancestral,
    check_bounded_eta,
    check_eta,
    check_s_noise,
    diffusive,
    first_order_plan,
    shared,
)


@ancestral_builder
def dpm_2_ancestral(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns DPM-Solver-2 down, then fresh noise. Weak order 2 (strong 2 at eta = 0), 2 calls.

    In rho = sigma/alpha, from rho_s to the rho_down of `euler_ancestral`, with the slope
    (x/alpha - d) / rho taken at the midpoint in lam, rho_m = sqrt(rho_s rho_down), for the point
    Euler predicts there (k-diffusion's sample_dpm_2_ancestral; Lu et al. 2022, DPM-Solver-2):

        x_t = (down / sigma_s) x_s + new (1 - rho_s / rho_m) d_s + new (rho_s / rho_m) d_m + up z
        new = alpha_t - alpha_s down / sigma_s

    Where there is no midpoint the step is that of `euler_ancestral`, one call: into sigma_t = 0 and
    out of alpha_s = 0.
    """
    return _by_midpoint("dpm_2_ancestral", schedule, grid, eta, s_noise, lambda ratio: ratio)


@ancestral_builder
def dpmpp_2s_ancestral(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns DPM-Solver++(2S) down, then fresh noise. Weak order 2 (strong 2 at eta = 0), 2 calls.

    As `dpm_2_ancestral`, with the whole weight new on the midpoint's estimate (k-diffusion's
    sample_dpmpp_2s_ancestral; Lu et al. 2022, DPM-Solver++, algorithm 1 with r = 1/2):

        x_t = (down / sigma_s) x_s + new d_m + up z
    """
    return _by_midpoint("dpmpp_2s_ancestral", schedule, grid, eta, s_noise, lambda ratio: 1.0)


@ancestral_builder
def dpmpp_sde(
    schedule: Schedule, grid: ArrayLike, r: float = 0.5, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns DPM-Solver++ SDE. Weak order 1 (strong 2 at eta = 0), 2 calls a step.

    An `euler_ancestral` step to the inner time m, lam_m = lam_s + r h, then one from s to t with
    d_s + (d_m - d_s) / (2r) in place of d_s (k-diffusion's sample_dpmpp_sde). Both stages take a
    normal of their own; on one Brownian path those are the increments over (s, m) and (s, t). Drawn
    independently they cost the order 2 of the variance that `seeds_2` has. Where there is no inner
    time the step is that of `euler_ancestral`, one call: into sigma_t = 0 and out of alpha_s = 0.

    Args:
        r: where the inner stage stands, as a share of the step in lam; between 0 and 1.
    """
    if not 0 < r < 1:
        raise ValueError(f"dpmpp_sde: r = {r}, but it must lie between 0 and 1")

    def inner(s, t, down, new):
        before, after = schedule.lam(np.array([s, t]))
        m = schedule.time(before + r * (after - before))
        down_m, up_m, new_m = _levels(schedule, s, m, eta)
        row = {"y": down_m / schedule.sigma(s), "d": new_m, "z1": float(s_noise) * up_m}
        return m, row, new / (2.0 * r)

    return _two_stages("dpmpp_sde", schedule, grid, eta, s_noise, inner)


@ancestral_builder
def flow_ancestral(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns a flow's Euler step down, then fresh noise. Weak order 1, 1 call a step.

    In the flow's noise level f = sigma / (alpha + sigma), which is t on `flow`,

        f_down = f_t (1 + (f_t / f_s - 1) eta),       rho_down = f_down / (1 - f_down)
        x_t = (alpha_t rho_down / sigma_s) x_s + (alpha_t - alpha_s ...) d_s
              + alpha_t sqrt(rho_t^2 - rho_down^2) z

    the renoised Euler step that rectified-flow ports of `euler_ancestral` take (diffusers' LTX
    ancestral scheduler). At eta = 1 f_down = f_t^2 / f_s, less noise than `euler_ancestral`'s
    rho_t^2 / rho_s leaves.
    """
    eta = check_bounded_eta("flow_ancestral", eta)
    noise = check_s_noise("flow_ancestral", s_noise)

    def split(alpha_s, alpha_t, sigma_s, sigma_t):
        level_s, level_t = sigma_s / (alpha_s + sigma_s), sigma_t / (alpha_t + sigma_t)
        less = eta * (1.0 - level_t / level_s)  # 1 - f_down / f_t
        # rho_down / rho_t = (1 - less) / (1 + less f_t / (1 - f_t)), f / (1 - f) = sigma / alpha
        return shared(sigma_t, (1.0 - less) / (1.0 + less * sigma_t / alpha_t))

    return first_order_plan(f"flow_ancestral(eta={eta:g})", schedule, grid, split, *noise)


@builder
def flow_sde(schedule: Schedule, grid: ArrayLike, strength: float = 1.0) -> Plan:
    """Returns the exact step, for a constant x0, of an SDE with a flow's marginals. Weak order 1.

    The SDE dx = (v + g^2 e / (2t)) dt + g dW with g = strength sqrt(t / (1 - t)), v the velocity
    and e the noise estimate, has the marginals of the flow's ODE at any strength (Liu et al. 2025,
    "Flow-GRPO", eq. 8 and 12). In lam, dlam = -dt / (t (1 - t)), its noise fades at the rate
    strength^2 / 2, and so on any schedule, h = lam_t - lam_s:

        x_t = (sigma_t / sigma_s) exp(-a h) x_s + (alpha_t - ...) d_s
              + sigma_t sqrt(1 - exp(-2 a h)) z,        a = strength^2 / 2

    strength sqrt(2) is the reverse SDE, `ddim` with eta = 1. All noise anew in each step, whatever
    its length, which is a flow's "stochastic sampling" in diffusers, is `lcm`.

    Args:
        strength: 0 for the ODE and up.
    """
    strength = check_eta("flow_sde", strength, "strength")
    split = partial(diffusive, eta=0.5 * strength**2)
    return first_order_plan(f"flow_sde({strength:g})", schedule, grid, split)


def _levels(schedule, s, t, eta):
    """Returns (down, up, weight of the estimates) of an ancestral step from s to t."""
    ends = np.array([s, t])
    alpha_s, alpha_t, sigma_s, sigma_t = *schedule.alpha(ends), *schedule.sigma(ends)
    down, up = ancestral(alpha_s, alpha_t, sigma_s, sigma_t, eta)
    return down, up, alpha_t - alpha_s * down / sigma_s


def _by_midpoint(name, schedule, grid, eta, s_noise, share):
    """Returns the plan whose midpoint estimate has weight new share(rho_s / rho_m)."""

    def inner(s, t, down, new):
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        lam_down = np.log(schedule.alpha(t) / down)
        m = schedule.time(0.5 * (schedule.lam(s) + lam_down))
        alpha_m, sigma_m = schedule.alpha(m), schedule.sigma(m)
        keep_m = sigma_m / sigma_s
        late = new * share(alpha_m * sigma_s / (alpha_s * sigma_m))
        return m, {"y": keep_m, "d": alpha_m - alpha_s * keep_m}, late

    return _two_stages(name, schedule, grid, eta, s_noise, inner)


def _two_stages(name, schedule, grid, eta, s_noise, inner):
    """Returns the plan of inner(s, t, down, new) -> (inner time, row there, its weight at t)."""
    eta = check_bounded_eta(name, eta)
    s_noise, check = check_s_noise(name, s_noise)
    grid = check_grid(schedule, grid)
    stages = Stages(schedule, grid[0])
    for s, t in pairwise(grid):
        down, up, new = _levels(schedule, s, t, eta)
        last = {"y": down / schedule.sigma(s), "d": new, "z1": s_noise * up}
        if down == 0.0 or schedule.alpha(s) == 0.0:
            stages.add(s, t, last)
            continue
        m, row, late = inner(s, t, down, new)
        stages.add(s, m, row, y="keep")
        stages.add(m, t, last | {"d": late, "h1": new - late})
    return stages.plan(f"{name}(eta={eta:g})", len(grid) - 1, check=check)
