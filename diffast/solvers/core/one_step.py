"""The engine of one-step solvers: their time variables, and the plan of a step's weights.

Both make the probability-flow ODE dy/dq = (y - x0) / q with y = x / s and s q = sigma:

    clock    y                    q                        dy/dq
    "rho"    x / alpha            sigma / alpha            eps            (Karras et al. 2022)
    "flow"   x / (alpha + sigma)  sigma / (alpha + sigma)  eps - x0, a flow model's velocity

"flow" is finite where alpha = 0. A step by "rho" has no value there, so this one step is made by
"flow", with the same stages and the same order. With h = log(q_s / q_t) the ODE is dy = (x0 - y) dh
for both. For "rho" h is the step in lam; for "flow" only approximately, at low noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.plans.registers import entries

CLOCKS = ("rho", "flow")


def one_step(name, schedule, grid, methods, clock=None) -> Plan:
    """Returns the plan of one method on the grid, or of one method a step.

    A method is a function of p = q_t / q_s [N] that returns (nodes, gain): the ratios q_i / q_s at
    its m inner calls [N, m], and the weights gain [N, m+1, m] with which, d_0 being the estimate
    for x_s,

        y_i = (q_i / q_s) y_s + (1 - q_i / q_s) d_0 + sum_j gain_ij (d_j - d_0)

    so it holds no x0 but by differences, and old rounding shrinks with sigma. The step into
    sigma_t = 0 is Euler's, one call.

    Args:
        name: what people call it; the time variable is added.
        methods: a method, or a sequence of N of them.
        clock: as `check_clock` takes it.

    Raises:
        ValueError: another clock; a grid that `check_grid` refuses.
    """
    grid = check_grid(schedule, grid)
    clock = check_clock(name, schedule, grid, clock)
    steps = len(grid) - 1
    methods = [methods] * steps if callable(methods) else list(methods)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    groups = {}
    for n, method in enumerate(methods):
        method = euler_method if sigma[n + 1] == 0.0 else method
        groups.setdefault((method, clock_of_step(clock, alpha[n])), []).append(n)
    blocks: list[Any] = [None] * steps
    for (method, by), members in groups.items():
        n = np.array(members)
        level = clock_level(by, alpha, sigma)[1]
        ratio = level[n + 1] / level[n]
        nodes, gain = method(ratio)
        times = clock_times(schedule, by, level[n, None] * nodes)
        times = np.where(nodes == ratio[:, None], grid[n + 1, None], times)
        times = np.concatenate([grid[n, None], times, grid[n + 1, None]], axis=1)
        keep, weights = block_rows(schedule, by, times, gain)
        for k, i in enumerate(members):
            blocks[i] = (times[k, :-1], keep[k], weights[k])
    return plan_of_blocks(f"{name}(clock={clock})", schedule, grid, blocks)


def euler_method(ratio):
    """Returns the nodes and gain of Euler's method: none, and none."""
    return np.empty((len(ratio), 0)), np.empty((len(ratio), 1, 0))


def from_slopes(weights, nodes) -> np.ndarray:
    """Returns the gain on estimates of a method given by its weights on slopes, [N, m+1, m].

    y_i = y_s + (q_i - q_s) f_0 + q_s sum_j weights_ij (f_j - f_0), with f_j = (y_j - d_j) / q_j,
    has g_i = sum_j weights_ij e_j, where e_i = q_s (f_i - f_0) = (g_i - (d_i - d_0)) q_s / q_i.

    Args:
        weights: [N, m+1, m], zero from the diagonal on.
        nodes: [N, m] ratios q_i / q_s.
    """
    gain, slopes = np.zeros_like(weights), np.zeros_like(weights[:, 1:])
    inner = nodes.shape[1]
    for i in range(inner + 1):
        gain[:, i] = np.einsum("nj,njk->nk", weights[:, i], slopes)
        if i < inner:
            slopes[:, i] = gain[:, i]
            slopes[:, i, i] -= 1.0
            slopes[:, i] /= nodes[:, i, None]
    return gain


def check_clock(name, schedule, grid, clock) -> str:
    """Returns the time variable: the given one, or the one that fits the grid's alpha + sigma."""
    if clock is None:
        total = schedule.alpha(grid) + schedule.sigma(grid)
        return "flow" if (np.abs(total - 1.0) <= 1e-14).all() else "rho"
    if clock not in CLOCKS:
        raise ValueError(f"{name}: clock = {clock!r}, but it must be 'rho', 'flow' or None")
    return clock


def clock_of_step(clock, alpha_s) -> str:
    """Returns the time variable of a step from alpha_s: "flow" where q_s would be infinite."""
    return "flow" if alpha_s == 0.0 else clock


def clock_level(clock, alpha, sigma):
    """Returns (s, q) for arrays of alpha and sigma."""
    scale = alpha if clock == "rho" else alpha + sigma
    with np.errstate(divide="ignore"):
        return scale, sigma / scale


def clock_times(schedule, clock, level) -> np.ndarray:
    """Returns the model times at which the time variable is level > 0."""
    if level.size == 0:
        return np.empty_like(level)
    lam = -np.log(level)
    return schedule.time(lam if clock == "rho" else lam + np.log1p(-level))


def block_rows(schedule, clock, times, gain):
    """Returns keep [N, k] and weights [N, k, k] on (x_s; d_0 ... d_{k-1}) of blocks of k calls.

    Args:
        clock: the time variable of all N blocks.
        times: [N, k+1] start, inner calls, end.
        gain: [N, k, k-1], see `one_step`.
    """
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    scale = clock_level(clock, alpha, sigma)[0][:, 1:]
    keep = sigma[:, 1:] / sigma[:, :1]
    new = alpha[:, 1:] - alpha[:, :1] * keep
    weights = scale[:, :, None] * gain
    first = new - weights.sum(axis=2)
    return keep, np.concatenate([first[:, :, None], weights], axis=2)


def plan_of_blocks(name, schedule, grid, blocks) -> Plan:
    """Returns the plan of blocks (times [k], keep [k], weights [k, k]); y is the block's start.

    Args:
        blocks: in order; row i of weights makes x after call i, the last row ends the block.
    """
    stages = Stages(schedule, grid[0])
    ends = [times[0] for times, _, _ in blocks[1:]] + [grid[-1]]
    for (times, keep, weights), end in zip(blocks, ends, strict=True):
        for i, (time, to) in enumerate(zip(times, [*times[1:], end], strict=True)):
            row = {"y": keep[i], **entries(weights[i, i::-1])}
            stages.add(time, to, row, y="x" if i + 1 == len(times) else "keep")
    return stages.plan(name, len(grid) - 1)
