"""Time grids: float64 model times [N+1], strictly from noisy to clean, both ends included.

grid[0] is where sampling starts, grid[-1] where the sample stands; the network is called at all but
the last (and there too by two-stage solvers, unless it is clean).
"""

from __future__ import annotations

import operator

import numpy as np


def karras(schedule, steps, rho=7.0, sigma_min=None, sigma_max=None, to_zero=True) -> np.ndarray:
    """Returns times whose sigma/alpha, to the power 1/rho, is evenly spaced; [steps+1] float64.

    (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0..n-1 (Karras et
    al. 2022, eq. 5), in units of sigma/alpha, mapped back to model time.

    Args:
        schedule: any schedule.
        steps: number of grid intervals.
        rho: 1 spaces evenly, larger numbers put more points at low noise.
        sigma_min: least sigma/alpha above 0, by default that of schedule.t_min.
        sigma_max: sigma/alpha at the start, by default that of schedule.t_start.
        to_zero: True: n = steps levels, then the clean end. False: n = steps + 1 levels, no more.

    Raises:
        ValueError: steps < 1; rho not positive; levels out of order or outside the schedule.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"karras: rho = {rho}, but it must be positive and finite")

    def log_levels(ramp, high, low):
        return rho * np.log((1.0 - ramp) * np.exp(high / rho) + ramp * np.exp(low / rho))

    return _by_level("karras", schedule, steps, sigma_min, sigma_max, to_zero, log_levels)


def uniform_logsnr(schedule, steps, sigma_min=None, sigma_max=None, to_zero=True) -> np.ndarray:
    """Returns times evenly spaced in lam = log(alpha/sigma); [steps+1] float64.

    Lu et al. 2022 (DPM-Solver); `karras` as rho goes to infinity.

    Args:
        schedule: any schedule.
        steps: number of grid intervals.
        sigma_min: least sigma/alpha above 0, by default that of schedule.t_min.
        sigma_max: sigma/alpha at the start, by default that of schedule.t_start.
        to_zero: True: steps levels, then the clean end. False: steps + 1 levels, no more.

    Raises:
        ValueError: steps < 1; levels out of order or outside the schedule.
    """

    def log_levels(ramp, high, low):
        return (1.0 - ramp) * high + ramp * low

    return _by_level("uniform_logsnr", schedule, steps, sigma_min, sigma_max, to_zero, log_levels)


def uniform_time(schedule, steps, start=None, end=None) -> np.ndarray:
    """Returns times evenly spaced in model time; [steps+1] float64.

    For `flow` the usual Euler grid 1, 1 - 1/N ... 0; for `from_betas` N-1 down to -1, fractional
    where it must be, the same as `trailing` where steps divides the number of training steps.

    Args:
        schedule: any schedule.
        steps: number of grid intervals.
        start: first time, by default schedule.t_start.
        end: last time, by default schedule.t_end.

    Raises:
        ValueError: steps < 1, more steps than training indices; start or end outside the schedule
            or out of order.
    """
    steps = _check_steps("uniform_time", steps, getattr(schedule, "timesteps", None))
    start = schedule.t_start if start is None else float(start)
    end = schedule.t_end if end is None else float(end)
    ramp = np.arange(steps + 1) / steps
    times = start + ramp * (end - start)
    times[-1] = end
    return check_grid(schedule, times)


def trailing(schedule, steps) -> np.ndarray:
    """Returns the training indices round(N - i N / steps) - 1, then -1 (clean); [steps+1] float64.

    Starts at N-1, pure noise: the spacing Lin et al. 2024 ("Common diffusion noise schedules and
    sample steps are flawed"), table 2, recommend.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, at most N.

    Raises:
        ValueError: a schedule without training indices (`uniform_time` is the same thing there);
            steps < 1 or > N.
    """
    count = _timesteps("trailing", schedule)
    steps = _check_steps("trailing", steps, count)
    return _indices(schedule, np.round(count - np.arange(steps) * (count / steps)) - 1.0)


def leading(schedule, steps, steps_offset=0) -> np.ndarray:
    """Returns the training indices i floor(N / steps) + steps_offset, then -1; [steps+1] float64.

    The spacing of DDIM and PNDM (Lin et al. 2024, table 2). It does not start at N-1.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, at most N.
        steps_offset: added to every index; Stable Diffusion 1 and 2 use 1.

    Raises:
        ValueError: a schedule without training indices; steps < 1 or > N; an index above N-1.
    """
    count = _timesteps("leading", schedule)
    steps = _check_steps("leading", steps, count)
    if steps_offset < 0:
        raise ValueError(f"leading: steps_offset = {steps_offset}, but it must not be negative")
    first = (steps - 1) * (count // steps) + steps_offset
    if first > count - 1:
        raise ValueError(
            f"leading: steps_offset = {steps_offset} makes the first index {first}, "
            f"but the last trained one is {count - 1}"
        )
    return _indices(schedule, first - np.arange(steps) * float(count // steps))


def linspace(schedule, steps) -> np.ndarray:
    """Returns round(linspace(N-1, 0, steps)), then -1 (clean); [steps+1] float64.

    The spacing of improved DDPM (Lin et al. 2024, table 2): both the noisiest and the cleanest
    index are called.

    Args:
        schedule: made by `from_betas`.
        steps: number of grid intervals, 2 to N.

    Raises:
        ValueError: a schedule without training indices; steps < 2 (no room for both ends) or > N.
    """
    count = _timesteps("linspace", schedule)
    steps = _check_steps("linspace", steps, count)
    if steps == 1:
        raise ValueError("linspace: 1 step, but both N-1 and 0 are to be called; use trailing")
    return _indices(schedule, np.round(np.arange(steps - 1, -1, -1) * ((count - 1) / (steps - 1))))


def check_grid(schedule, times) -> np.ndarray:
    """Returns times as a float64 grid fit for a solver, [N+1].

    A time beyond an end of the schedule by less than 1e-9 of its range is put on that end.

    Args:
        schedule: any schedule.
        times: N+1 model times, N >= 1, from noisy to clean.

    Raises:
        ValueError: unless the times are one-dimensional, finite, inside [t_end, t_start] and
            strictly monotone from noisy to clean, with the log-SNR strictly rising.
    """
    times = np.array(times, dtype=np.float64)
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"grid: shape {list(times.shape)}, but it must be [N+1], N >= 1")
    if not np.isfinite(times).all():
        i = int(np.argmin(np.isfinite(times)))
        raise ValueError(f"grid: times[{i}] = {times[i]}, but times must be finite")
    start, end = float(schedule.t_start), float(schedule.t_end)
    low, high = min(start, end), max(start, end)
    inside = np.clip(times, low, high)
    beyond = np.abs(times - inside) > 1e-9 * (high - low)
    if beyond.any():
        i = int(np.argmax(beyond))
        raise ValueError(
            f"grid: times[{i}] = {times[i]}, but the schedule runs from {start} to {end}"
        )
    step = np.diff(inside) * np.sign(end - start)
    alpha, sigma = schedule.alpha(inside), schedule.sigma(inside)
    rising = alpha[1:] * sigma[:-1] > alpha[:-1] * sigma[1:]
    wrong = ~((step > 0) & rising)
    if wrong.any():
        i = int(np.argmax(wrong))
        what = "log-SNR must rise" if step[i] > 0 else "times must go strictly from noisy to clean"
        raise ValueError(
            f"grid: times[{i}] = {times[i]} is followed by times[{i + 1}] = {times[i + 1]}, "
            f"but {what}"
        )
    return inside


def _by_level(name, schedule, steps, sigma_min, sigma_max, to_zero, log_levels):
    steps = _check_steps(name, steps, None)
    highest, lowest = -schedule.lam(schedule.t_start), -schedule.lam(schedule.t_min)
    high = highest if sigma_max is None else _log_level(name, "sigma_max", sigma_max)
    low = lowest if sigma_min is None else _log_level(name, "sigma_min", sigma_min)
    if np.isinf(high):
        raise ValueError(
            f"{name}: sigma/alpha is infinite at t_start = {schedule.t_start}; give sigma_max"
        )
    if high > highest + 1e-9:
        raise ValueError(
            f"{name}: sigma_max = {np.exp(high):.6g}, but sigma/alpha of the schedule starts at "
            f"{np.exp(highest):.6g}"
        )
    if low < lowest - 1e-9:
        raise ValueError(
            f"{name}: sigma_min = {np.exp(low):.6g}, but sigma/alpha of the schedule's t_min is "
            f"{np.exp(lowest):.6g}"
        )
    if low >= high:
        raise ValueError(
            f"{name}: sigma_min = {np.exp(low):.6g}, but sigma_max = {np.exp(high):.6g}"
        )
    count = steps if to_zero else steps + 1
    levels = log_levels(np.arange(count) / max(count - 1, 1), high, low)
    levels[0] = high
    if count > 1:
        levels[-1] = low
    times = np.atleast_1d(schedule.time(-levels))
    if sigma_max is None:
        times[0] = schedule.t_start
    if sigma_min is None and count > 1:
        times[-1] = schedule.t_min
    return check_grid(schedule, np.append(times, schedule.t_end) if to_zero else times)


def _log_level(name, argument, level):
    if not 0 < level < np.inf:
        raise ValueError(f"{name}: {argument} = {level}, but it must be positive and finite")
    return float(np.log(level))


def _check_steps(name, steps, count):
    try:
        steps = operator.index(steps)
    except TypeError:
        raise ValueError(f"{name}: steps = {steps!r}, but it must be a whole number") from None
    if steps < 1:
        raise ValueError(f"{name}: {steps} steps, but at least 1 is needed")
    if count is not None and steps > count:
        raise ValueError(f"{name}: {steps} steps, but the schedule has {count} training indices")
    return steps


def _timesteps(name, schedule):
    count = getattr(schedule, "timesteps", None)
    if count is None:
        raise ValueError(
            f"{name}: {schedule} has no training indices, but {name} counts in them; "
            "use uniform_time"
        )
    return count


def _indices(schedule, indices):
    return check_grid(schedule, np.append(indices, -1.0))
