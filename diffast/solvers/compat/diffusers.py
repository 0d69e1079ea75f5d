"""Maps as another program writes them, where they are none of the published methods.

They serve drop-ins that have to give the same pictures as that program. Each docstring says how its
map differs from the method. If the map contradicts the noise level, the plan is checked for less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages, one_call_plan
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.noise_split import ancestral, diffusive
from diffast.solvers.ode.adams import EVEN
from diffast.solvers.ode.unipc import build_unipc


def ddim_strides(
    schedule: Schedule,
    starts: ArrayLike,
    ends: ArrayLike,
    eta: float = 0.0,
    raw_noise: bool = False,
) -> Plan:
    """Returns DDIM steps, each with its own start and end, as in diffusers' DDIMScheduler.

    Its step goes from t to t - N/S whatever the next t is (timestep_spacing "linspace", and
    "trailing" where S does not divide N), so a step need not start where the last one ended; the
    plan is then checked for finite numbers alone.

    Args:
        schedule: any schedule.
        starts: [N] model times of the network calls.
        ends: [N] model times that the steps aim at.
        eta: 0 for none to 1 for ancestral noise, as in `ddim`.
        raw_noise: True: the noise left in the state is the network's, not that of a clamped x0
            estimate (diffusers without use_clipped_model_output).
    """
    starts, ends = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    alpha_s, sigma_s = schedule.alpha(starts), schedule.sigma(starts)
    alpha_t, sigma_t = schedule.alpha(ends), schedule.sigma(ends)
    down, up = ancestral(alpha_s, alpha_t, sigma_s, sigma_t, eta)
    keep = down / sigma_s
    x = {"x": keep, "d": alpha_t - alpha_s * keep, "z1": up}
    if raw_noise:
        x |= {"d": alpha_t, "d_raw": -(alpha_s * keep)}
    grid = np.append(starts, ends[-1])
    check = "full" if np.array_equal(starts[1:], ends[:-1]) else "finite"
    return one_call_plan(f"ddim(eta={eta:g})", schedule, grid, x, check=check)


def late_churn(
    schedule: Schedule,
    grid: ArrayLike,
    gamma: ArrayLike,
    s_noise: float,
    reads: tuple[ArrayLike, ArrayLike],
    churned: tuple[ArrayLike, ArrayLike],
) -> Plan:
    """Returns Euler steps whose noise is raised after the network was called, as in diffusers.

    Karras et al. 2022, algorithm 2, raises the noise from sigma to s' = (1 + gamma) sigma and then
    calls the network there. diffusers' EulerDiscreteScheduler and its kin are handed the output for
    the state before: with x' = x + s_noise sqrt(s'^2 - sigma^2) z and d' the x0 estimate that they
    read from (x', output),

        x_t = (sigma_t / s') x' + (1 - sigma_t / s') d'

    so the noise level is not sigma_t and the plan is checked for finite numbers alone.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling.
        gamma: [N] how much each step raises its level.
        s_noise: factor on the noise.
        reads: ([N] a, [N] b) of the x0 estimate a x + b output that the plan is given.
        churned: ([N] a, [N] b) of d' = a x' + b output.
    """
    grid = np.asarray(grid, np.float64)
    raised = (1.0 + np.asarray(gamma, np.float64)) * grid[:-1]
    fresh = s_noise * np.sqrt(raised**2 - grid[:-1] ** 2)
    a, b, a_hat, b_hat = (np.asarray(w, np.float64) for w in (*reads, *churned))
    ratio = grid[1:] / raised
    of_x = ratio + (1.0 - ratio) * a_hat  # of x'
    of_output = (1.0 - ratio) * b_hat / b  # of the output, as b output = d - a x
    x = {"x": of_x - of_output * a, "d": of_output, "z1": of_x * fresh}
    return one_call_plan("euler(late churn)", schedule, grid, x, check="finite")


def with_boundary(plan: Plan, skip: np.ndarray, out: np.ndarray) -> Plan:
    """Returns a first-order plan for estimates c_skip x + c_out d, with a clamp between them.

    A consistency model's boundary scalings act after diffusers' LCMScheduler has clamped d. Where
    nothing is clamped they belong to what the network predicts.

    Args:
        plan: one remembered estimate, as `lcm`.
        skip: [S] weights of the model input.
        out: [S] weights of the x0 estimate.
    """
    weight = plan.weights("x", "d")
    changed = {("x", "d"): weight * out, ("x", "x"): plan.weights("x", "x") + weight * skip}
    return plan.with_weights(changed, check="finite")


def with_own_state(plan: Plan) -> Plan:
    """Returns the plan with its state in a register of its own, y, beside x.

    For programs that go on from the state that they have made themselves, also where their caller
    has changed x between two steps: the estimate is then that of the changed x. Unchanged it is the
    same map.

    Args:
        plan: whose rows are those of x and of an entry, without columns y.
    """
    at, x = plan.rows.index("x"), plan.columns.index("x")
    rows = (*plan.rows[:at], "y", *plan.rows[at:])
    weights, own = plan.matrix.copy(), np.zeros_like(plan.matrix[:, :, x])
    own[1:, at], weights[1:, at, x] = 2.0 * weights[1:, at, x], 0.0  # at first x is the state
    matrix = np.insert(weights, 0, own, axis=2)
    matrix = np.insert(matrix, at, 0.5 * matrix[:, at], axis=1)
    levels = np.insert(plan.levels, at, 0.5 * plan.levels[:, at], axis=1)
    # after the last stage nobody reads it
    matrix[-1, at], levels[-1, at] = 0.0, np.nan
    columns = ("y", *plan.columns)
    return replace(plan, rows=rows, columns=columns, matrix=matrix, levels=levels)


def with_noise_weights(plan: Plan, weights: ArrayLike) -> Plan:
    """Returns the plan with other weights of the fresh noise, [S], in both rows.

    For noise that is scaled element by element before it comes (a network that predicts its
    variance), and for a last step that some programs still add noise to. Checked for x0 alone.
    """
    check = "finite" if plan.check == "finite" else "x0"
    return plan.with_weights(
        {(row, "z1"): weights for row in plan.rows if row in "xy"}, check=check
    )


def pndm(
    schedule: Schedule,
    times: Sequence[float],
    transfers: Sequence[tuple[float, float]],
    means: Sequence[Mapping[int, float]],
    based: Sequence[bool],
    velocity: bool = False,
) -> Plan:
    """Returns diffusers' PNDMScheduler as a table over the network's outputs themselves.

    Liu et al. 2022, eq. 9 and 11 (see `plms`), with that program's changes: a step goes from t to
    t - N/S whatever the next t is; a run that starts part-way repeats a step; and a velocity's
    outputs are averaged before they are read as noise, at the step's start. The plan's estimates
    are the outputs, so it is checked for finite numbers alone.

    Args:
        schedule: any schedule.
        times: [S] model times of the network calls.
        transfers: [S] pairs of model times that each stage's step leads between.
        means: [S] dicts: weights of the outputs, by the stage that they came from.
        based: [S] bools: whether the stage steps from y (the state at an earlier call) and not from
            its own input.
        velocity: whether the outputs are velocities v = alpha eps - sigma x0.
    """
    stages = Stages(schedule, times[0])
    begins = 0  # the call whose input the anchored steps start from
    for i, ((s, t), mean) in enumerate(zip(transfers, means, strict=True)):
        alpha_s, alpha_t = schedule.alpha(s), schedule.alpha(t)
        sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
        keep, gain = alpha_t / alpha_s, sigma_t - alpha_t * sigma_s / alpha_s
        if velocity:
            keep, gain = keep + gain * sigma_s, gain * alpha_s
        base = "y" if based[i] else "x"
        if not based[i]:
            begins = i
        row = {base: keep} | {f"h{i - j}": 0.0 + gain * weight for j, weight in mean.items()}
        to = times[i + 1] if i + 1 < len(times) else transfers[-1][1]
        if i + 1 < len(times) and based[i + 1]:  # the next stage steps from this one's start
            stages.add(times[i], to, row, y={base: 1.0}, y_at=times[begins])
        else:
            stages.add(times[i], to, row)
    return stages.plan("pndm", len(times), check="finite")


def slope_pairs(schedule: Schedule, grid: ArrayLike, middles: ArrayLike | None = None) -> Plan:
    """Returns Heun's or the midpoint rule on the slope (x - x0) / sigma. Order 2, 2 calls a step.

    The maps of `heun` and `dpm_2`, written with the slope for the state that the network was really
    called on, as diffusers' Heun and KDPM2 schedulers are: a caller who rounds or changes the state
    between the two calls gets the slope there. (With x0 estimates alone that change would count
    sigma_s / sigma_t times.) For alpha = 1, or alpha = 1 - sigma, whose velocity the slope is.
    Rounding grows with the steps' ratios of sigma, so the plan is checked for x0 alone.

    Args:
        schedule: with alpha = 1, or `flow`.
        grid: [N+1] model times, which are noise levels.
        middles: [N] times of the second calls (midpoint rule); None: the ends (Heun).
    """
    grid = np.asarray(grid, np.float64)
    stages = Stages(schedule, grid[0])
    for n, (s, t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        slope = {"x": 1.0 / s, "d": -1.0 / s}
        if t == 0.0:
            stages.add(s, t, {"y": 1.0, "h0": t - s}, h=slope)
            continue
        m = t if middles is None else np.asarray(middles)[n]
        half = 0.5 if middles is None else 1.0
        stages.add(s, m, {"y": 1.0, "h0": m - s}, y="keep", h=slope)
        last = {"y": 1.0, "h0": half * (t - s), "h1": (1.0 - half) * (t - s)}
        stages.add(m, t, last, h={"x": 1.0 / m, "d": -1.0 / m})
    name = "heun(slopes)" if middles is None else "midpoint(slopes)"
    return stages.plan(name, len(grid) - 1, check="x0")


def singlestep_sde(
    schedule: Schedule,
    grid: ArrayLike,
    orders: Sequence[int],
    kind: Literal["midpoint", "heun"] = "midpoint",
) -> Plan:
    """Returns the single-step form of DPM-Solver++ SDE whose inner calls are grid points.

    Blocks of 1, 2 or 3 intervals, each grid point from the block's start with all estimates since
    then and noise of its own, as in diffusers' DPMSolverSinglestepScheduler with "sde-dpmsolver++".
    With h from the block's start and H = 2h the formulas of `singlestep`, at H. But in third order
    of kind "heun" that program has the wrong sign in the weight of the second difference; here it
    is that of the parabola.

    Args:
        schedule: any schedule, with lam(t).
        grid: [N+1] model times from noisy to clean.
        orders: lengths of the blocks, adding up to N.
        kind: "midpoint" or "heun".
    """
    grid = check_grid(schedule, grid)
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    stages, begin = Stages(schedule, grid[0]), 0
    for length in orders:
        for order in range(1, length + 1):
            i = begin + order - 1
            ends = alpha[begin], alpha[i + 1], sigma[begin], sigma[i + 1]
            down, up = diffusive(*ends, 1.0)
            keep = down / sigma[begin]
            weights = np.zeros(3)  # of the block's estimates, oldest first
            weights[0] = alpha[i + 1] - alpha[begin] * keep
            if order > 1 and sigma[i + 1] > 0.0 and alpha[begin] > 0.0:
                weights += _block_slopes(lam, begin, i + 1, order, alpha[i + 1], kind)
            row = {"y": keep, "z1": up, **entries(weights[:order][::-1])}
            if sigma[i + 1] == 0.0:  # the last estimate, wherever in a block
                row = {"d": alpha[i + 1]}
            stages.add(grid[i], grid[i + 1], row, y="x" if order == length else "keep")
        begin += length
    return stages.plan(f"singlestep_sde({kind})", len(grid) - 1)


def _block_slopes(lam, begin, end, order, alpha_t, kind):
    """Returns [3] weights of a block's estimates in the corrections to its first one."""
    h = lam[end] - lam[begin]
    r = (lam[begin + 1 : begin + 3] - lam[begin]) / h
    whole = -np.expm1(-2.0 * h)
    line = alpha_t * (1.0 - whole / (2.0 * h))  # integral of u, times H
    first = np.array([-1.0, 1.0, 0.0]) / r[0]
    if order == 2:
        return (0.5 * alpha_t * whole if kind == "midpoint" else line) * first
    last = np.array([-1.0, 0.0, 1.0]) / r[1]
    if kind == "midpoint":
        return line * last
    slope = (r[1] * first - r[0] * last) / (r[1] - r[0])
    curve = 2.0 * (last - first) / (r[1] - r[0])
    bend = alpha_t * (0.5 - (2.0 * h - whole) / (2.0 * h) ** 2)
    return line * slope + bend * curve


def pndm_stages(
    times: Sequence[int], stride: int, clean: int, warm: Sequence[int]
) -> tuple[list, list, list]:
    """Returns the (transfers, means, based) of `pndm` for the times that diffusers calls.

    Args:
        times: [S] training indices of the calls.
        stride: N / S, how far a step goes.
        clean: the index that stands for the clean end.
        warm: for a run with the pseudo Runge-Kutta warm-up, where each of its calls steps from;
            else empty, and the second call corrects the first step.
    """
    transfers, means, based, known = [], [], [], []
    for i, t in enumerate(times):
        if i < len(warm):
            if i % 4 == 0:
                known.append(i)
            start, to, mean = warm[i], t - (0 if i % 2 else stride // 2), {i: 1.0}
            if i % 4 == 3:
                mean = {i - 3: 1 / 6, i - 2: 1 / 3, i - 1: 1 / 3, i: 1 / 6}
            based.append(i % 4 != 0)
        elif i == 1:
            start, to, mean = t + stride, t, {0: 0.5, 1: 0.5}
            based.append(True)
        else:
            known = [*known[-3:], i]
            start, to = t, t - stride
            mean = dict(zip(reversed(known), EVEN[len(known) - 1], strict=True))
            based.append(False)
        transfers.append((start, to if to >= 0 else clean))
        means.append(mean)
    return transfers, means, based


def unipc(
    schedule: Schedule,
    grid: ArrayLike,
    order: int,
    variant: Literal["bh1", "bh2"],
    form: Literal["data", "noise"],
    corrector: Sequence[bool],
    orders: Sequence[int],
) -> Plan:
    """Returns `df.solvers.unipc` whose corrector is never left out, as diffusers has it.

    In noise form the corrector multiplies errors by up to q (q - 1) / 2 where a step divides rho by
    q. `df.solvers.unipc` leaves it out above q = 30, diffusers' UniPCMultistepScheduler does not.

    Args:
        schedule: any schedule.
        grid: [N+1] model times.
        order: p, 1 to 3.
        variant: "bh2" or "bh1".
        form: "data" or "noise".
        corrector: [N] whether the point after each step is corrected.
        orders: [N] p of the steps.
    """
    own = {"orders": orders, "widest": np.inf}
    return build_unipc(schedule, grid, order, variant, form, list(corrector), **own)
