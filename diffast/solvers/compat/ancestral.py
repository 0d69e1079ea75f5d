"""Steps down and noise up again, as schedulers of diffusers write them with levels of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan, Stages, one_call_plan
from diffast.schedules import Schedule


def midpoint_ancestral(
    schedule: Schedule, grid: ArrayLike, middles: ArrayLike, downs: ArrayLike, ups: ArrayLike
) -> Plan:
    """Returns the midpoint rule on the slope, down to a level of its own, then fresh noise.

    The map of `dpm_2_ancestral` written with the slope (x - x0) / sigma for the state that the
    network was really called on (see `slope_pairs`), and with levels in float32 as diffusers'
    KDPM2AncestralDiscreteScheduler has them: down^2 + up^2 is sigma_t^2 to a rounding only, so the
    plan is checked for x0 alone. Two calls a step, one in the last.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels, falling to 0.
        middles: [N] levels of the second calls; that of the last step is where it goes.
        downs: [N] levels that the steps go down to.
        ups: [N] deviations of the fresh noise.
    """
    grid, middles, downs, ups = (np.asarray(a, np.float64) for a in (grid, middles, downs, ups))
    stages = Stages(schedule, grid[0])
    for n, (s, t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        m = middles[n]
        share = (m - s) / s
        first = {"y": 1.0, "x": share, "d": -share}
        if n == len(grid) - 2:
            stages.add(s, t, first)
            continue
        stages.add(s, m, first, y="keep")
        share = (downs[n] - s) / m
        stages.add(m, t, {"y": 1.0, "x": share, "d": -share, "z1": ups[n]})
    return stages.plan("midpoint_ancestral", len(grid) - 1, check="x0")


def flow_renoised(
    schedule: Schedule, sigmas: ArrayLike, eta: float, s_noise: float, stages: int
) -> Plan:
    """Returns a flow's Euler step down, then fresh noise, as diffusers' LTXEulerAncestralRF.

    The map of `flow_ancestral`,

        down = t (1 + (t / s - 1) eta),   alpha = 1 - sigma
        x_t = (alpha_t / alpha_down) (x + (down / s - 1) (x - x0)) + s_noise up z
        up^2 = max(t^2 - (down alpha_t / alpha_down)^2, 0),

    for levels that need not fall. The step is Euler's alone where eta or s_noise is 0, and it goes
    to the x0 estimate where t is below 1e-8. Time steps after the last level leave the state as it
    is. Checked for finite numbers alone.

    Args:
        schedule: `flow`.
        sigmas: [N+1] noise levels.
        eta: how much of the step is ancestral.
        s_noise: factor on the noise.
        stages: number of network calls, N or more.
    """
    sigmas = np.asarray(sigmas, np.float64)
    count = len(sigmas) - 1
    rows = {name: np.zeros(stages) for name in ("x", "d", "z1")}
    rows["x"][count:] = 1.0
    for n, (s, t) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        if abs(t) < 1e-8:
            rows["d"][n] = 1.0
            continue
        down = t * (1.0 + (t / s - 1.0) * eta)
        gain, up = 1.0, 0.0
        if eta > 0.0 and s_noise > 0.0:
            # the summand keeps diffusers from dividing by zero at down = 1
            gain = (1.0 - t) / (1.0 - down + 1e-12)
            square = t**2 - (down * (1.0 - t)) ** 2 / ((1.0 - down) ** 2 + 1e-12)
            up = s_noise * np.sqrt(max(square, 0.0))
        rows["x"][n], rows["d"][n] = gain * down / s, gain * (1.0 - down / s)
        rows["z1"][n] = up
    grid = np.append(sigmas, np.repeat(sigmas[-1], stages - count))
    name = f"flow_renoised(eta={eta:g})"
    return one_call_plan(name, schedule, grid, rows, check="finite")


def renoised_estimates(
    schedule: Schedule, grid: ArrayLike, noise: ArrayLike, name: str = "renoised_estimates"
) -> Plan:
    """Returns steps to the x0 estimate plus noise of a deviation of its own.

    Song et al. 2023 ("Consistency models"), algorithm 1, with the deviations that diffusers'
    CMStochasticIterativeScheduler has; at S_noise other than 1, or levels outside of the model's,
    they are not those of the levels. Checked for x0 alone.

    Args:
        schedule: with alpha = 1.
        grid: [N+1] noise levels; the last one is that of the sample.
        noise: [N] deviations of the fresh noise.
    """
    row = {"d": 1.0, "z1": np.asarray(noise, np.float64)}
    return one_call_plan(name, schedule, np.asarray(grid, np.float64), row, check="x0")
