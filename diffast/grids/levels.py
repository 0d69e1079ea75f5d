"""Grids that space a function of the noise level sigma/alpha, whatever the schedule.

Levels are sigma/alpha, the sigma of k-diffusion. For flow models, other tools use these names for
grids that space t and not t/(1-t) (diffusers' FlowMatchEulerDiscreteScheduler, ComfyUI). For their
numbers make the grid on `edm(sigma_min=0.001, sigma_max=1)` and read it with
`from_times(flow, ...)`.
"""

from __future__ import annotations

import numpy as np

from diffast.grids.beta_quantile import beta_quantile
from diffast.grids.checks import check_grid, check_positive, check_steps, grid_function, run_ends
from diffast.schedules import Schedule


@grid_function
def karras(
    schedule: Schedule,
    steps: int,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times whose sigma/alpha, to the power 1/rho, is evenly spaced; [steps+1] float64.

    (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0..n-1 (Karras et
    al. 2022, eq. 5), in units of sigma/alpha, mapped back to model time.

    Args:
        rho: positive; 1 spaces evenly, larger numbers put more points at low noise.
    """
    check_positive("karras", rho=rho)

    def log_levels(ramp, high, low):
        return rho * np.log((1.0 - ramp) * np.exp(high / rho) + ramp * np.exp(low / rho))

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("karras", schedule, steps, ends, log_levels)


@grid_function
def uniform_logsnr(
    schedule: Schedule,
    steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times evenly spaced in lam = log(alpha/sigma); [steps+1] float64.

    Lu et al. 2022 (DPM-Solver); `karras` as rho goes to infinity. Also named `exponential`
    (k-diffusion, diffusers' use_exponential_sigmas) and `lu` (diffusers' use_lu_lambdas).
    """

    def log_levels(ramp, high, low):
        return (1.0 - ramp) * high + ramp * low

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("uniform_logsnr", schedule, steps, ends, log_levels)


exponential = uniform_logsnr
lu = uniform_logsnr


@grid_function
def polyexponential(
    schedule: Schedule,
    steps: int,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times polynomial in log(sigma/alpha); [steps+1] float64.

    log(sigma_min) + (1 - i/(n-1))^rho log(sigma_max / sigma_min), i = 0..n-1 (k-diffusion);
    `exponential` for rho = 1, and more points at low noise for larger rho.

    Args:
        rho: the power, positive.
    """
    check_positive("polyexponential", rho=rho)

    def log_levels(ramp, high, low):
        return low + (1.0 - ramp) ** rho * (high - low)

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("polyexponential", schedule, steps, ends, log_levels)


@grid_function
def laplace(
    schedule: Schedule,
    steps: int,
    mu: float = 0.0,
    beta: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns training noise levels, even quantiles of a Laplace distribution; [steps+1] float64.

    log(sigma_i) = mu - beta sign(1/2 - x) log(1 - 2 |1/2 - x|), x = i/(n-1), cut at sigma_min and
    sigma_max (Hang et al. 2024, "Improved noise schedule for diffusion training"). The paper draws
    the levels of training so. As steps of a sampler they hardly converge: the first and the last
    step stay large whatever their number. With `dpmpp_2m` on mixtures of spread 0.7 the error is
    .97, .71 and .32 of the spread with 10, 20 and 80 calls on `edm`, and .62, .45, .19 on
    `vp_linear`, where `default` has .050, .028 and .001.
    To sample, take `default` or `karras`. This grid is here because ComfyUI has it; its node has
    1e-5 inside the logarithm in place of the infinite ends, and adds no clean end.

    Args:
        mu: finite log(sigma/alpha) about which the points crowd.
        beta: how widely they spread, positive.

    Raises:
        ValueError: steps < 1; options outside of these; levels out of order or beyond the
            schedule; so many steps that two of them are cut to the same end.
    """
    check_positive("laplace", beta=beta)
    if not np.isfinite(mu):
        raise ValueError(f"laplace: mu = {mu}, but it must be finite")

    def log_levels(ramp, high, low):
        side = 0.5 - ramp
        with np.errstate(divide="ignore"):
            spread = -beta * np.sign(side) * np.log(1.0 - 2.0 * np.abs(side))
        cut = np.clip(mu + spread, low, high)
        cut[[0, -1]] = high, low
        twice = int(np.sum(cut == high)), int(np.sum(cut == low))
        if len(cut) > 1 and max(twice) > 1:
            raise ValueError(
                f"laplace: {steps} steps put {twice[0]} levels on sigma_max and {twice[1]} on "
                "sigma_min, but each end can take one; use fewer steps or another beta"
            )
        return cut

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("laplace", schedule, steps, ends, log_levels)


@grid_function
def kl_optimal(
    schedule: Schedule,
    steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times even in arctan(sigma/alpha), the angle of `trig`; [steps+1] float64.

    tan((1 - x) arctan(sigma_max) + x arctan(sigma_min)), x = i/(n-1): the grid that minimises the
    bound of Sabour et al. 2024 ("Align your steps") in closed form for Gaussian data of variance 1.
    ComfyUI's kl_optimal; stable-diffusion-webui's is the one with to_zero = False. The start may
    be pure noise, arctan = pi/2.
    """

    def log_levels(ramp, high, low):
        angle = (1.0 - ramp) * np.arctan(np.exp(high)) + ramp * np.arctan(np.exp(low))
        return np.log(np.tan(angle))

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("kl_optimal", schedule, steps, ends, log_levels, pure=True)


@grid_function
def beta_sigmas(
    schedule: Schedule,
    steps: int,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times whose sigma/alpha stands at even quantiles of a beta distribution, [steps+1].

    sigma_min + q(1 - i/(n-1)) (sigma_max - sigma_min), q the quantile function of Beta(alpha,
    beta): diffusers' use_beta_sigmas. ComfyUI's "beta" takes the quantiles in training indices, as
    the paper does: see `beta`.
    """
    check_positive("beta_sigmas", alpha=alpha, beta=beta)

    def log_levels(ramp, high, low):
        quantile = beta_quantile(1.0 - ramp, alpha, beta)
        return np.log(np.exp(low) + quantile * (np.exp(high) - np.exp(low)))

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("beta_sigmas", schedule, steps, ends, log_levels)


@grid_function
def ou_early(
    schedule: Schedule,
    steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    to_zero: bool = False,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Returns times even in OU time t down to t = 1, then even in log(t); [steps+1] float64.

    t = log(1 + (sigma/alpha)^2), which is -2 log(alpha) where alpha^2 + sigma^2 = 1: steps of at
    most eps min(1, t), as PIADM asks for (Chen et al. 2024, "Accelerating diffusion models with
    parallel sampling", section 3), even in t above 1 and in 1 + log(t) below. The grid stops
    early, where there is noise left: by default at the schedule's t_min.
    """

    def log_levels(ramp, high, low):
        outer = np.logaddexp(0.0, 2.0 * np.array([high, low]))
        first, last = np.where(outer > 1.0, outer, 1.0 + np.log(outer))
        clock = (1.0 - ramp) * first + ramp * last
        ou = np.where(clock > 1.0, clock, np.exp(np.minimum(clock, 1.0) - 1.0))
        return 0.5 * (ou + np.log(-np.expm1(-ou)))

    ends = start, end, sigma_min, sigma_max, to_zero
    return _by_level("ou_early", schedule, steps, ends, log_levels)


def _by_level(name, schedule, steps, ends, log_levels, pure=False):
    steps = check_steps(name, steps, None)
    *given, to_zero = ends
    start, end, sigma_min, sigma_max = given
    first, last = run_ends(name, schedule, start, end, sigma_max, sigma_min)
    last = float(schedule.t_min) if last is None else last
    high, low = -float(schedule.lam(first)), -float(schedule.lam(last))
    if np.isinf(high) and not pure:
        raise ValueError(
            f"{name}: sigma/alpha is infinite at t = {first}, but this grid needs a finite one: "
            f"take grids.default(schedule, {steps}), which starts at pure noise, or give sigma_max"
        )
    lowest = -float(schedule.lam(schedule.t_min))
    if low < lowest - 1e-9:
        said = f"end = {end}" if sigma_min is None else f"sigma_min = {sigma_min:.6g}"
        raise ValueError(
            f"{name}: {said}, but sigma/alpha of the schedule's t_min = {schedule.t_min} is "
            f"{np.exp(lowest):.6g}"
        )
    count = steps if to_zero else steps + 1
    levels = log_levels(np.arange(count) / max(count - 1, 1), high, low)
    times = np.atleast_1d(schedule.time(-levels))
    times[0] = first
    if count > 1:
        times[-1] = last
    return check_grid(schedule, np.append(times, schedule.t_end) if to_zero else times)
