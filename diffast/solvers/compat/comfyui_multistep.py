"""Maps as ComfyUI's samplers have them: methods that remember estimates. See `comfyui`."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages, one_call_plan
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.noise_split import (
    ancestral,
    check_bounded_eta,
    check_s_noise,
    diffusive,
)
from diffast.solvers.core.phi import phi
from diffast.solvers.guided.cfg_plus_plus import cfg_plus_plus
from diffast.solvers.ode.dpm_multistep import dpmpp_2m
from diffast.solvers.ode.unipc import unipc
from diffast.solvers.sde import sa_solver as adams

# The variance-preserving schedule whose time is the clock of ComfyUI's DEIS: from sigma = 0.002 at
# t = 0.001 to sigma = 80 at t = 1.
LEAST, MOST, FIRST_TIME = 0.002, 80.0, 1e-3
POINTS_OF_DEIS, POINTS_OF_ER_SDE = 10_000, 200
LAST_OF_UNI_PC = 0.001  # where uni_pc ends in place of sigma = 0


def res_multistep(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 0.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
) -> Plan:
    """Returns the two-step exponential method in -log sigma, then ancestral noise. 1 call a step.

    Down to the level `down` of `euler_ancestral`, with h = log(s / down), the estimate d' of the
    step before at level q, and down' the level that step went down to,

        x = exp(-h) x + h (b_1 d + b_2 d'),   b_2 = phi_2(-h) / c,   b_1 = phi_1(-h) - b_2,
        c = log(down' / q) / h

    c is -(the last step) / h without noise, so that method is `dpmpp_2m` of kind "heun"; with noise
    c is ComfyUI's own. First order in the first step and into 0.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
        eta: 0 to 1.
        s_noise: factor on the noise.
        cfg_pp: whether x + d - u is taken for x and the unconditional u for d.
    """
    eta = check_bounded_eta("res_multistep", eta)
    s_noise, check = check_s_noise("res_multistep", s_noise)
    grid = check_grid(schedule, grid)
    stages, before, estimate = Stages(schedule, grid[0]), 0.0, "d_uncond" if cfg_pp else "d"
    for i, (s, t) in enumerate(pairwise(grid.tolist())):
        down, up = ancestral(1.0, 1.0, s, t, eta)
        keep = down / s
        if down == 0.0 or i == 0:
            row = {"x": keep, "d": 1.0 - keep}
            if cfg_pp:
                row = {"x": keep, "d": 1.0, "d_uncond": -keep}
        else:
            h = -np.log(keep)
            c = np.log(before / grid[i - 1]) / h
            late = h * phi(2, h) / c
            row = {"x": keep, estimate: h * phi(1, h) - late, "h1": late}
            if cfg_pp:
                row["d"], row["d_uncond"] = keep, row["d_uncond"] - keep
        stages.add(s, t, row | {"z1": s_noise * up}, h={estimate: 1.0})
        before = down
    return stages.plan(f"res_multistep(eta={eta:g})", len(grid) - 1, check=check)


def gradient_estimation_cfg_pp(schedule: Schedule, grid: ArrayLike, gamma: float = 2.0) -> Plan:
    """Returns gradient estimation with CFG++. 1 call a step.

    With the slope g = (x - u) / s of the unconditional estimate u and g' that of the step before,
    x_t = d + t g + (gamma - 1) (t - s) (g - g'); without the last term in the first step, and d
    into t = 0.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
        gamma: 2 is the published choice.
    """
    grid = check_grid(schedule, grid)
    stages = Stages(schedule, grid[0])
    for i, (s, t) in enumerate(pairwise(grid.tolist())):
        row = {"d": 1.0}
        if t > 0.0:
            turn = (gamma - 1.0) * (t - s) if i else 0.0
            row |= {"x": (t + turn) / s, "d_uncond": -(t + turn) / s, "h1": -turn}
        stages.add(s, t, row, h={"x": 1.0 / s, "d_uncond": -1.0 / s})
    return stages.plan("gradient_estimation_cfg_pp", len(grid) - 1)


def deis(schedule: Schedule, grid: ArrayLike, order: int = 3) -> Plan:
    """Returns tAB-DEIS in the time of a variance-preserving schedule. 1 call a step.

    The slopes (x - d) / s are a polynomial in the time t(sigma) of the linear schedule with
    sigma = 0.002 at t = 0.001 and 80 at t = 1. Its integral is the sum over 10,000 even points,
    both ends among them, times (t_end - t_start) / 10,000. First order into sigma = 0.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
        order: 1 to 4.
    """
    grid = check_grid(schedule, grid)
    low, high = np.log(LEAST**2 + 1.0), np.log(MOST**2 + 1.0)
    slope = 2.0 * (low / FIRST_TIME - high) / (FIRST_TIME - 1.0)
    least = high - 0.5 * slope
    time = (np.sqrt(least**2 + 2.0 * slope * np.log(grid**2 + 1.0)) - least) / slope

    def speed(tau):  # of sigma in tau
        grown = np.expm1(0.5 * slope * tau**2 + least * tau)
        return 0.5 * (slope * tau + least) * (grown + 1.0) / np.sqrt(grown)

    rows = np.zeros((len(grid) - 1, order))
    for i, (start, end) in enumerate(pairwise(time.tolist())):
        have = min(order, i + 1)
        if have == 1 or grid[i + 1] == 0.0:
            rows[i, 0] = grid[i + 1] - grid[i]
            continue
        tau = np.linspace(start, end, POINTS_OF_DEIS)
        weight, nodes = (
            speed(tau) * (end - start) / POINTS_OF_DEIS,
            time[i - have + 1 : i + 1][::-1],
        )
        for j in range(have):
            others = np.delete(nodes, j)
            line = np.prod((tau[:, None] - others) / (nodes[j] - others), axis=1)
            rows[i, j] = weight @ line
    h = {"x": 1.0 / grid[:-1], "d": -1.0 / grid[:-1]}
    x = {"x": np.ones(len(grid) - 1), **entries(rows)}
    # The sums miss the step in sigma by 1e-4 of it, so the noise level is not the grid's.
    return one_call_plan(f"deis(order={order}, vp)", schedule, grid, x, h=h, check="finite")


def er_sde(schedule: Schedule, grid: ArrayLike, order: int = 3, s_noise: float = 1.0) -> Plan:
    """Returns ER-SDE-Solver-3 with the integrals of ComfyUI: sums of 200 points. 1 call a step.

    The formulas of `df.solvers.er_sde`; the integrals over rho from rho_t to rho_s are sums of the
    values at 200 even points, the last one left out.

    Args:
        schedule: any schedule whose first alpha is above 0.
        grid: [N+1] model times.
        order: 1, 2 or 3.
        s_noise: factor on the noise.
    """
    s_noise, check = check_s_noise("er_sde", s_noise)
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    rho = sigma / alpha
    steps = len(grid) - 1

    def gain(at):
        return at * (np.exp(at**0.3) + 10.0)

    rows = np.zeros((steps, 5))  # of x, z1, d and two entries
    before = None
    for n in range(steps):
        if sigma[n + 1] == 0.0:
            rows[n, 2] = alpha[n + 1]
            continue
        r = gain(rho[n + 1]) / gain(rho[n])
        step = rho[n + 1] - rho[n]
        rows[n, 0] = alpha[n + 1] / alpha[n] * r
        rows[n, 2] = alpha[n + 1] * (1.0 - r)
        up = max(rho[n + 1] ** 2 - (r * rho[n]) ** 2, 0.0)
        rows[n, 1] = s_noise * alpha[n + 1] * np.sqrt(up)
        if n == 0 or order == 1:
            continue
        width = -step / POINTS_OF_ER_SDE
        points = rho[n + 1] + np.arange(POINTS_OF_ER_SDE) * width
        slope = np.array([1.0, -1.0, 0.0]) / (rho[n] - rho[n - 1])
        first = step + (1.0 / gain(points)).sum() * width * gain(rho[n + 1])
        rows[n, 2:] += alpha[n + 1] * first * slope
        if order == 3 and before is not None:
            bend = (slope - np.roll(before, 1)) * 2.0 / (rho[n] - rho[n - 2])
            second = ((points - rho[n]) / gain(points)).sum() * width * gain(rho[n + 1])
            rows[n, 2:] += alpha[n + 1] * (0.5 * step**2 + second) * bend
        before = slope
    x = {"x": rows[:, 0], "z1": rows[:, 1], **entries(rows[:, 2:])}
    return one_call_plan(f"er_sde({order}, sums)", schedule, grid, x, check=check)


def uni_pc(schedule: Schedule, grid: ArrayLike, variant: Literal["bh1", "bh2"] = "bh1") -> Plan:
    """Returns UniPC-3 as ComfyUI runs it, on x0 + sigma eps: the last level 0 is 0.001 instead.

    Orders 1, 2, 3, 3, ... 3, 2, 1; order 2 at most for 3 levels before the last one.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling, N at least 2.
        variant: "bh1" or "bh2".
    """
    grid = np.array(check_grid(schedule, grid))
    if grid[-1] == 0.0:
        grid[-1] = LAST_OF_UNI_PC
    steps = len(grid) - 1
    most = min(3, steps - 1)
    at = np.arange(1, steps + 1)
    orders = np.where(at < most, at, np.minimum(most, steps + 1 - at))
    return unipc(schedule, grid, max(most, 1), variant, orders=orders)


def sa_solver(
    schedule: Schedule,
    grid: ArrayLike,
    interval: tuple[float, float],
    predictor_order: int = 3,
    corrector_order: int = 4,
    pece: bool = False,
) -> Plan:
    """Returns SA-Solver with ComfyUI's orders: 1 call a step, 2 with `pece`.

    The formulas of `df.solvers.sa_solver` in the data form. A run into sigma = 0 lowers both orders
    towards its end. `pece` calls the network on the corrected state as well, and remembers that
    estimate in place of the predicted state's.

    Args:
        schedule: any schedule whose first alpha is above 0.
        grid: [N+1] model times.
        interval: (from, to) the noise levels, the higher one first: a step that ends between them
            has noise of strength 1, others none.
        predictor_order: 1 to 4.
        corrector_order: 1 to 4.
        pece: predict, evaluate, correct, evaluate.
    """
    grid = check_grid(schedule, grid)
    count, clean = len(grid), schedule.sigma(grid[-1]) == 0.0
    step = np.arange(count - 1)
    predictor, corrector = np.minimum(predictor_order, step + 1), np.zeros(count - 1, dtype=int)
    corrector[:-1] = np.minimum(corrector_order, step[:-1] + 2)
    if clean:
        predictor = np.maximum(np.minimum(predictor, count - 2 - step), 1)
        corrector[:-1] = np.minimum(corrector[:-1], count - 2 - step[:-1])
        if not pece and count > 2:
            corrector[-2] = 0
    high, low = interval
    taus = {s: float(high >= t >= low) for s, t in pairwise(grid.tolist())}
    if pece:
        return _pece(schedule, grid, predictor, corrector, taus)
    own = {"predictor_order": predictor, "corrector_order": corrector}
    return adams.sa_solver(schedule, grid, tau=lambda s: taus[s], **own)


def _pece(schedule, grid, predictor, corrector, taus):
    """Returns the plan of two calls a step, the first step's only one apart."""
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    stages, weights = Stages(schedule, grid[0]), np.zeros(1)

    def integral(n, end, most):
        """Returns the weights of the estimates at grid[end], grid[end - 1] .. in step n."""
        h, nodes = lam[n + 1] - lam[n], lam[end::-1][:most]
        total = (1.0 + taus[float(grid[n])] ** 2) * h
        places = (nodes - lam[n]) / h
        moments = [phi(1, total) * total]
        for k in range(1, len(places)):
            moments.append(np.prod(np.arange(1.0, k + 1.0)) * total * phi(k + 1, total))
        basis = np.linalg.inv(np.vander(places, increasing=True)).T
        return alpha[n + 1] * basis @ np.array(moments)

    for n in range(len(grid) - 1):
        s, t = float(grid[n]), float(grid[n + 1])
        if n and corrector[n - 1]:
            implicit = integral(n - 1, n, corrector[n - 1])
            change = np.zeros(max(len(implicit), len(weights) + 1))
            change[: len(implicit)] += implicit
            change[1 : len(weights) + 1] -= weights
            stages.add(s, s, {"x": 1.0, "d": change[0], **entries(change[1:], 1)}, h={})
        if sigma[n + 1] == 0.0:
            stages.add(s, t, {"d": 1.0})
            continue
        down, up = diffusive(alpha[n], alpha[n + 1], sigma[n], sigma[n + 1], taus[s] ** 2)
        weights = integral(n, n, predictor[n])
        row = {"x": down / sigma[n], "z1": up, "d": weights[0], **entries(weights[1:], 1)}
        stages.add(s, t, row)
    return stages.plan("sa_solver_pece", len(grid) - 1)


def dpmpp_2m_cfg_pp(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns the CFG++ form of `dpmpp_2m`, see `cfg_plus_plus`."""
    return cfg_plus_plus(dpmpp_2m(schedule, grid))
