"""Plans from rows: levels and weights of a multistep method, for any schedule.

With tau = sigma / (alpha + sigma) and y = x / (alpha + sigma), the probability-flow ODE of every
schedule is dy/dtau = v, v = eps - x0: that of the straight flow. A row holds tau_n / tau_0 and the
weights b[n, j] of

    y_{n+1} = y_n + (tau_{n+1} - tau_n) sum_{j <= n} b[n, j] v_j,      sum_j b[n, j] = 1,

so that one row serves every schedule, whatever its first level. tau_N is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.plans import Plan, Stages
from diffast.schedules import Schedule
from diffast.schedules.clocks import clock_at


@dataclass(frozen=True)
class Row:
    """Levels tau_n / tau_0 [N], from 1 down, and weights, N rows.

    Row n weighs the newest velocities, n + 1 of them or fewer, the oldest first.
    """

    levels: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]


def times_of(row: Row, schedule: Schedule, whole: bool) -> np.ndarray | None:
    """Returns the model times of the row's calls and the clean end, [N+1] float64.

    A last level below the schedule's least noisy time is moved up to it; where more than one is
    below, all levels but the first are moved, as an affine map does.

    Args:
        row: the row.
        schedule: the schedule.
        whole: whether times have to be whole numbers. None is returned where there are too few.
    """
    ends = np.array([schedule.t_start, schedule.t_min], dtype=np.float64)
    first, least = clock_at(schedule, "flow", ends)
    levels = first * np.asarray(row.levels)
    if len(levels) > 1 and levels[-1] < least and levels[-2] > 1.2 * least:
        levels[-1] = least
    elif len(levels) > 1 and levels[-1] < least:
        levels = first - (first - levels) * (first - least) / (first - levels[-1])
    levels[0] = first
    times = np.empty(len(levels) + 1)
    times[0], times[-1] = schedule.t_start, schedule.t_end
    inner = np.maximum(levels[1:], least * (1 + 1e-12))
    times[1:-1] = schedule.time(np.log1p(-inner) - np.log(inner))
    if not whole:
        return times
    return whole_times(times, float(schedule.t_min))


def whole_times(times: np.ndarray, least: float) -> np.ndarray | None:
    """Returns falling times [N+1] with all but the last rounded to different whole numbers.

    None where there are not that many between the first and `least`, the last that is asked for.
    """
    calls = len(times) - 1
    rounded = np.round(times[:-1])
    low, high = np.ceil(least), np.floor(times[0])
    if high - low + 1 < calls:
        return None
    rounded[0] = high
    for n in range(1, calls):
        rounded[n] = min(rounded[n], rounded[n - 1] - 1)
    for n in range(calls - 1, -1, -1):
        rounded[n] = max(rounded[n], low + (calls - 1 - n))
    return np.append(rounded, times[-1])


def plan_of(row: Row, schedule: Schedule, times: np.ndarray, name: str) -> Plan:
    """Returns the plan of a row at these times.

    Args:
        row: N levels and weights; the levels are given by `times`.
        schedule: the schedule.
        times: [N+1], see `times_of`.
        name: of the plan.
    """
    alpha, sigma = (
        np.asarray(f(times), dtype=np.float64) for f in (schedule.alpha, schedule.sigma)
    )
    whole = alpha + sigma
    tau = sigma / whole
    stages = Stages(schedule, times[0])
    for n, given in enumerate(row.weights):
        mean = np.array(given)
        mean[-1] = 1.0 - mean[:-1].sum()  # what a rounded number would break
        step = whole[n + 1] * (tau[n + 1] - tau[n])
        x = {"y": whole[n + 1] / whole[n]}
        oldest = len(mean) - 1
        x |= {f"h{oldest - j}": step * weight for j, weight in enumerate(mean.tolist())}
        velocity = {"x": 1.0 / sigma[n], "d": -alpha[n] / sigma[n] - 1.0}
        stages.add(times[n], times[n + 1], x, h=velocity)
    return stages.plan(name, len(row.weights))


# Variances of the Gaussian data that `gaussian_error` follows, a spread of 0.5 as in EDM and of 1.
VARIANCES = np.array([0.25, 1.0])


def gaussian_error(row: Row, schedule: Schedule, times: np.ndarray) -> float:
    """Returns the largest relative error of a row's run on N(0, V) data, against the exact flow.

    There v = (tau - (1 - tau) V) y / S with S = (1 - tau)^2 V + tau^2, and y ends at sqrt(V / S_0)
    times its start. The number tells whether a row fits levels that it was not learned for.
    """
    tau = clock_at(schedule, "flow", times)
    whole = np.multiply.outer((1 - tau) ** 2, VARIANCES) + tau[:, None] ** 2
    rate = (tau[:, None] - np.multiply.outer(1 - tau, VARIANCES)) / whole
    y, slopes = np.ones(len(VARIANCES)), []
    for n, given in enumerate(row.weights):
        slopes.append(rate[n] * y)
        mean = np.tensordot(np.asarray(given), np.array(slopes[-len(given) :]), 1)
        y = y + (tau[n + 1] - tau[n]) * mean
    exact = np.sqrt(VARIANCES / whole[0])
    return float(np.max(np.abs(y - exact) / exact))
