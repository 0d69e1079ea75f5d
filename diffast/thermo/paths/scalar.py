"""Scalar schedules of little action: a re-timed one, and the best of all.

Both follow from the flat geometry of `diffast.thermo.speed`: a scalar schedule is a curve in a
plane, so constant speed is a matter of arc length and the shortest curve is a straight line.
"""

from __future__ import annotations

import math

import numpy as np

from diffast.schedules import FromFunctions, Schedule, from_table
from diffast.schedules.table import TIMES, share_times
from diffast.thermo.speed import Mmse, Plane, chords

# The path is cut into this many chords before it is walked at constant speed.
PIECES = 1 << 15
# A path shorter than this, in units of sqrt(d) times its extent, has no speed to make constant.
STILL = 1e-5
# Share of the time that is given to the angle, so that no level is passed in no time. It makes the
# action at most that share larger.
FLOOR = 1e-3
# rho / c at which the grids in log-SNR of a made schedule end, as t_min = 1e-3 of `schedules.flow`.
CLEAN = 1e-3
# Least t_min of a made schedule, whose time runs from 1 to 0.
LEAST = 1e-9


def retime(
    schedule: Schedule, mmse: Mmse, energy: float, d: int, floor: float = FLOOR
) -> FromFunctions:
    """Returns the schedule with the same noise levels, walked at constant W2 speed.

    Its time runs from 1 to 0, and every W2 arc of the path takes its share of the length. Of all
    timings of the path it has the least action c_2, the squared length. Levels at which nothing
    moves would be passed in no time, and their log-SNR would jump; `floor` keeps some time for
    them, and makes c_2 at most by 1 / (1 - floor) larger.

    It is a table (`df.schedules.from_table`): plans made for it can be saved.

    The timing changes what a uniform grid in time is. It changes nothing else: a plan for the same
    noise levels is the same plan.

    Args:
        schedule: any of `df.schedules`.
        mmse: a function of rho = sigma / alpha, E|y - E[y|x]|^2 summed over the elements.
        energy: E|y|^2 of the data, summed over the elements.
        d: number of elements of one sample.
        floor: share of the time, in [0, 1), that is given evenly to the angle arctan(sigma / alpha
            c), c^2 = E|y|^2 / d.

    Raises:
        ValueError: as `df.thermo.w2_speed_squared`; a floor outside [0, 1); a path that does not
            move, as that of standard normal data on a variance-preserving schedule.
    """
    _check_floor("retime", floor)
    plane = Plane("retime", mmse, energy, d)
    times, steps = chords(plane, schedule, PIECES)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    extent = math.sqrt(d) * max(float(np.hypot(alpha * plane.rms, sigma).max()), plane.rms)
    if not steps.sum() > STILL * extent:
        raise ValueError(
            f"retime: the path of {schedule} is {steps.sum():.2g} long for these data: it does not "
            "move, so no constant speed can be given to it (standard normal data keep their law on "
            "a variance-preserving schedule)"
        )
    phi = np.arctan2(sigma, alpha * plane.rms)
    found, t_min = _walked(times, steps, phi, floor, schedule.t_min)
    return _table(schedule.alpha(found), schedule.sigma(found), t_min)


def best_scalar(
    mmse: Mmse, energy: float, d: int, sigma_start: float = 1.0, floor: float = FLOOR
) -> FromFunctions:
    """Returns the schedule of least action c_2 from the data to noise of a given deviation.

    A straight line in the plane of all scalar schedules, at constant speed. With the angle Psi
    between data and noise (`df.thermo.angle`) and c = sqrt(E|y|^2 / d) its action is

        c_2 = d (c^2 + sigma_start^2 - 2 c sigma_start cos Psi),

    which is 4 d sin^2(Psi / 2) for standardised data and unit noise. No path goes below W2^2 of
    both ends; only optimal transport reaches it.

    Args:
        mmse: a function of rho = sigma / alpha.
        energy: E|y|^2 of the data, summed over the elements.
        d: number of elements of one sample.
        sigma_start: deviation of the noise at the start, unit of the data.
        floor: as for `retime`.

    Returns:
        a table (`df.schedules.from_table`) whose time runs from 1 (noise) to 0 (data).

    Raises:
        ValueError: as `df.thermo.w2_speed_squared`; a sigma_start that is not positive; data that
            are the noise already.
    """
    _check_floor("best_scalar", floor)
    if not 0.0 < sigma_start < math.inf:
        raise ValueError(f"best_scalar: sigma_start = {sigma_start}, but it must be positive")
    plane = Plane("best_scalar", mmse, energy, d)
    if not plane.total > STILL:
        raise ValueError(
            f"best_scalar: the angle between data and noise is {plane.total:.2g}: the data are "
            "normal, with one variance for all elements, and every schedule is a scaling"
        )
    far = sigma_start * np.array([math.cos(plane.total), math.sin(plane.total)])
    line = share_times(PIECES, 1.0, 0.0)
    points = np.array([plane.rms, 0.0]) * (1.0 - line)[:, None] + far * line[:, None]
    phi = plane.phi_at(np.clip(np.arctan2(points[:, 1], points[:, 0]), 0.0, plane.total))
    phi[0], phi[-1] = 0.0, 0.5 * np.pi
    at, t_min = _walked(line, np.diff(line), phi, floor, float(np.interp(CLEAN, phi, line)))
    angles = np.interp(at, line, phi)
    points = np.array([plane.rms, 0.0]) * (1.0 - at)[:, None] + far * at[:, None]
    radius = np.linalg.norm(points, axis=1)
    alpha, sigma = radius * np.cos(angles) / plane.rms, radius * np.sin(angles)
    alpha[0], sigma[0], alpha[-1], sigma[-1] = 1.0, 0.0, 0.0, sigma_start
    return _table(alpha, sigma, t_min)


def _walked(times, steps, phi, floor, t_min):
    """Returns (old times of the table's new ones, new time of an old one), at constant speed."""
    turned = np.diff(phi)
    share = (1.0 - floor) * steps / steps.sum() + floor * turned / turned.sum()
    clock = np.concatenate([[0.0], np.cumsum(share)])
    clock /= clock[-1]
    # Where nothing moves the clock stands still: the last of equal readings counts.
    kept = np.append(np.diff(clock) > 0.0, True)
    found = np.interp(share_times(TIMES, 1.0, 0.0), clock[kept], times[kept])
    found[0], found[-1] = times[0], times[-1]
    return found, float(np.interp(t_min, times, clock))


def _check_floor(who, floor):
    if not 0.0 <= floor < 1.0:
        raise ValueError(f"{who}: floor = {floor}, but it must lie in [0, 1)")


def _table(alpha, sigma, t_min):
    return from_table(alpha, sigma, 1.0, 0.0, min(max(t_min, LEAST), 0.5))
