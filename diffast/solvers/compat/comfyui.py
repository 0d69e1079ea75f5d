"""Maps as ComfyUI's samplers have them, one step at a time; `comfyui_multistep` has the others.

x is x0 + sigma eps, or a flow's (1 - sigma) x0 + sigma eps; the docstrings name the space. s and t
are the noise levels of a step's start and end, d the x0 estimate, u the unconditional one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.solvers.aliases import euler_ancestral
from diffast.solvers.core.noise_split import ancestral, check_bounded_eta, check_s_noise
from diffast.solvers.core.phi import phi
from diffast.solvers.guided.cfg_plus_plus import cfg_plus_plus

# Where the middle of a flow's step from sigma = 1 stands: its log-SNR there is infinite.
MIDDLE_FROM_NOISE = 0.9999


def heunpp2(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns Heun++, on x0 + sigma eps. 3 calls a step, 2 in the last but one, 1 in the last.

    A step from s to t weighs the slopes at s, t and at the level u after t, each found by Euler's
    steps, by 1 - w_t - w_u, w_t = t / (3 S) and w_u = u / (3 S); S is the first level. Where u is
    the last level there is no third slope, and w_t = t / (2 S).

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
    """
    grid = check_grid(schedule, grid)
    stages, last = Stages(schedule, grid[0]), len(grid) - 2
    for i, (s, t) in enumerate(pairwise(grid.tolist())):
        euler = {"x": t / s, "d": 1.0 - t / s}
        slope = {"x": 1.0 / s, "d": -1.0 / s}
        if i == last:
            stages.add(s, t, euler, h={})
            continue
        stages.add(s, t, euler, y="keep", h=slope)
        after, step = float(grid[i + 2]), t - s
        if i == last - 1:
            late = t / (2.0 * grid[0])
            row = {"y": 1.0, "h1": step * (1.0 - late), "x": step * late / t, "d": -step * late / t}
            stages.add(t, t, row, h={})
            continue
        euler = {"x": after / t, "d": 1.0 - after / t}
        stages.add(t, after, euler, y="keep", h={"x": 1.0 / t, "d": -1.0 / t})
        second, third = t / (3.0 * grid[0]), after / (3.0 * grid[0])
        weights = {"h2": 1.0 - second - third, "h1": second, "x": third / after}
        row = {name: step * w for name, w in weights.items()} | {"d": -step * third / after}
        stages.add(after, t, {"y": 1.0, **row}, h={})
    return stages.plan("heunpp2", len(grid) - 1)


def euler_cfg_pp(schedule: Schedule, grid: ArrayLike, eta: float = 0.0, s_noise: float = 1.0):
    """Returns Euler's CFG++ step, with ancestral noise where eta is above 0; any schedule.

        x_t = alpha_t d + (down / sigma_s) (x - alpha_s u) + up z

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        eta: 0 to 1, as in `euler_ancestral`.
        s_noise: factor on the noise.
    """
    return cfg_plus_plus(euler_ancestral(schedule, grid, eta=eta, s_noise=s_noise))


def flow_dpm_2_ancestral(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns DPM-Solver-2 down, then a flow's fresh noise, in steps of sigma. 2 calls a step.

    Down to `_down` by the slope (x - d) / m at the middle m = sqrt(s down), then noise as in
    `flow_ancestral`. Into t = 0 the step is Euler's.

    Args:
        schedule: a flow, alpha = 1 - sigma.
        grid: [N+1] noise levels, falling.
        eta: 0 to 1.
        s_noise: factor on the noise.
    """

    def inner(s, down):
        middle = float(np.sqrt(s * down))
        # y + (down - s) (x - d) / m
        slope = (down - s) / middle
        return middle, "d", {"y": 1.0, "x": slope, "late": -slope}

    return _flow_two_calls("dpm_2_ancestral", schedule, grid, eta, s_noise, inner)


def flow_dpmpp_2s_ancestral(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns DPM-Solver++(2S) down, then a flow's fresh noise. 2 calls a step.

    The middle is that of log-SNR, 0.9999 for a step from sigma = 1; Euler's step from s to the
    level `_down` has the estimate there, then noise as in `flow_ancestral`. Into t = 0 the step is
    Euler's.

    Args:
        schedule: a flow, alpha = 1 - sigma.
        grid: [N+1] noise levels, falling.
        eta: 0 to 1.
        s_noise: factor on the noise.
    """
    return _flow_two_calls("dpmpp_2s_ancestral", schedule, grid, eta, s_noise, _by_logsnr("d"))


def flow_dpmpp_2s_ancestral_cfg_pp(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns `flow_dpmpp_2s_ancestral` of the unconditional estimate u, plus (1 - t) (d - u)."""
    name, inner = "dpmpp_2s_ancestral_cfg_pp", _by_logsnr("d_uncond")
    return _flow_two_calls(name, schedule, grid, eta, s_noise, inner, guided=True)


def dpmpp_2s_ancestral_cfg_pp(
    schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0
) -> Plan:
    """Returns `dpmpp_2s_ancestral` of the unconditional estimate u, plus d - u. 2 calls a step.

    d - u is that of the step's first call. Into t = 0 the step is d.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
        eta: 0 to 1.
        s_noise: factor on the noise.
    """
    eta = check_bounded_eta("dpmpp_2s_ancestral_cfg_pp", eta)
    s_noise, check = check_s_noise("dpmpp_2s_ancestral_cfg_pp", s_noise)
    grid = check_grid(schedule, grid)
    stages = Stages(schedule, grid[0])
    for s, t in pairwise(grid.tolist()):
        if t == 0.0:
            stages.add(s, t, {"d": 1.0}, h={})
            continue
        down, up = ancestral(1.0, 1.0, s, t, eta)
        middle = float(np.sqrt(s * down))
        stages.add(
            s,
            middle,
            {"x": middle / s, "d_uncond": 1.0 - middle / s},
            y="keep",
            h={"d": 1.0, "d_uncond": -1.0},
        )
        row = {"y": down / s, "d_uncond": 1.0 - down / s, "h1": 1.0, "z1": s_noise * up}
        stages.add(middle, t, row, h={}, span=(s, t))
    return stages.plan(f"dpmpp_2s_ancestral_cfg_pp(eta={eta:g})", len(grid) - 1, check=check)


def exp_heun_2_x0(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 0.0,
    s_noise: float = 1.0,
    kind: str = "phi_2",
) -> Plan:
    """Returns the exponential Heun method in x0 and log-SNR. 2 calls a step.

    `seeds_2` with its inner stage at the step's end: a step of `seeds_1` from s to t, then the same
    step again, with the same noise and both estimates. With h = lam_t - lam_s, H = (1 + eta) h,

        phi_2:  weights alpha_t H (phi_1 - phi_2) of d_s and alpha_t H phi_2 of d_t, at -H
        phi_1:  alpha_t H phi_1 / 2 of each

    Into sigma_t = 0 and out of alpha_s = 0 the step is that of `seeds_1`.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        eta: 0 for none and up.
        s_noise: factor on the noise.
        kind: "phi_2" or "phi_1".
    """
    s_noise, check = check_s_noise("exp_heun_2_x0", s_noise)
    grid = check_grid(schedule, grid)
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    stages = Stages(schedule, grid[0])
    for i, (s, t) in enumerate(pairwise(grid.tolist())):
        h = lam[i + 1] - lam[i]
        if not np.isfinite(h):
            stages.add(s, t, {"d": alpha[i + 1], "z1": s_noise * sigma[i + 1]}, h={})
            continue
        total = (1.0 + eta) * h
        first = alpha[i + 1] * total * phi(1, total)
        late = alpha[i + 1] * total * (phi(2, total) if kind == "phi_2" else 0.5 * phi(1, total))
        up = sigma[i + 1] * np.sqrt(-np.expm1(-2.0 * eta * h))
        keep = sigma[i + 1] / sigma[i] * np.exp(-eta * h)
        stages.add(s, t, {"x": keep, "d": first, "z1": s_noise * up})
        stages.add(t, t, {"x": 1.0, "h1": -late, "d": late})
    return stages.plan(f"exp_heun_2_x0(eta={eta:g})", len(grid) - 1, check=check)


def _by_logsnr(estimate):
    """Returns the inner stage in the middle of log-SNR, for `_flow_two_calls`."""

    def inner(s, down):
        middle = MIDDLE_FROM_NOISE
        if s != 1.0:
            odds = np.sqrt((1.0 - s) / s * (1.0 - down) / down)
            middle = float(1.0 / (1.0 + odds))
        return middle, estimate, {"y": down / s, "late": 1.0 - down / s}

    return inner


def _down(s, t, eta):
    """Returns the level that a flow's step goes down to, t (1 + (t / s - 1) eta)."""
    return t * (1.0 + (t / s - 1.0) * eta)


def _flow_two_calls(name, schedule, grid, eta, s_noise, inner, guided=False):
    """Returns the plan of inner(s, down) -> (middle, estimate's column, row of the state at down).

    "late" in that row stands for the estimate in the middle.
    """
    eta = check_bounded_eta(name, eta)
    s_noise, check = check_s_noise(name, s_noise)
    grid = check_grid(schedule, grid)
    stages = Stages(schedule, grid[0])
    for s, t in pairwise(grid.tolist()):
        if t == 0.0:
            stages.add(s, t, {"d": 1.0}, h={})
            continue
        down = _down(s, t, eta)
        middle, estimate, row = inner(s, down)
        ratio = middle / s
        first = {"x": ratio, estimate: 1.0 - ratio}
        entry = {"d": 1.0, "d_uncond": -1.0} if guided else {}
        stages.add(s, middle, first, y="keep", h=entry)
        grow = (1.0 - t) / (1.0 - down)
        # t^2 - (grow down)^2, factored: it cancels for small steps
        up = np.sqrt(max((t - grow * down) * (t + grow * down), 0.0))
        state = {(estimate if c == "late" else c): grow * w for c, w in row.items()}
        if guided:
            state["h1"] = 1.0 - t
        stages.add(middle, t, {**state, "z1": s_noise * up}, h={}, span=(s, t))
    return stages.plan(f"{name}(flow, eta={eta:g})", len(grid) - 1, check=check)
