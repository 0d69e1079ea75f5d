"""The speed-accuracy relation eta <= c_1 <= c_2: how much of a wrong start can reach the samples.

Ikeda, Uda, Okanohara and Ito 2025 (PRX 15, 031031), numbers in parentheses below. A reverse run
that begins at p_made in place of p_tau, with the chi-square D_0 between them, ends at samples whose
W1 to the data differs from that of the start. Over a path of unit duration

    eta = (W1 at the data - W1 at the start)^2 / D_0            (83)
    c_1 = int (dW1/dt)^2 dt / D_0                               (81)
    c_2 = int v_2^2 dt                                          (79)

and eta <= c_1 <= c_2. It is a bound from above only: a small c_2 does not make an error large, and
a large one does not predict it. By the same argument sliced W1 obeys eta <= c_1 <= c_2 / d: in each
direction the velocity along it counts alone, and the mean over directions of its square is
|nu|^2 / d. Several elements are therefore measured by sqrt(d) times the sliced W1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffast.thermo.distances import DIRECTIONS, directions_of, rows_of
from diffast.thermo.estimate import Estimate, warn_if_few

# Groups of samples, and of directions, each left out once: the jackknife of the standard errors.
GROUPS = 20
# From this ratio of c_2 to eta on the bound is said to be far.
FAR = 10.0


@dataclass(frozen=True)
class SpeedAccuracy:
    """What `speed_accuracy` found.

    Attributes:
        eta: (change of W1)^2 / D_0.
        c_1: int (dW1/dt)^2 dt / D_0 by differences between the given times; finer times make it
            larger, and so does sampling noise.
        c_2: int v_2^2 dt over unit duration, as given.
        chi2: D_0, as given.
        times: [K] times, from the data to the start, over [0, 1].
        w1: [K] W1 between both runs at these times; sqrt(d) times the sliced one for d > 1.
        count: samples of each run; 0 for exact curves.
        d: elements of a sample.
    """

    eta: Estimate
    c_1: Estimate
    c_2: float
    chi2: float
    times: tuple[float, ...]
    w1: tuple[float, ...]
    count: int
    d: int

    @property
    def holds(self) -> bool:
        """Returns whether eta <= c_1 <= c_2 within three standard errors."""
        return self.eta.value <= self.c_1.value * (1 + 1e-9) and self._below(self.c_1, self.c_2)

    @property
    def gap(self) -> float:
        """Returns c_2 / eta: 1 where the bound is reached, inf where no error change was found."""
        return self.c_2 / self.eta.value if self.eta.value > 0.0 else math.inf

    def says(self) -> str:
        """Returns one sentence: what was measured, and how far from it the bound is."""
        change = abs(self.w1[0] - self.w1[-1])
        most = math.sqrt(self.chi2 * self.c_2)
        text = (
            f"W1 changes by {change:.4g} from the start ({self.w1[-1]:.4g}) to the data "
            f"({self.w1[0]:.4g}); the bound allows {most:.4g} (eta {self.eta.value:.4g} <= c_1 "
            f"{self.c_1.value:.4g} <= c_2 {self.c_2:.4g})"
        )
        if not self.holds:
            return (
                f"{text}: the relation is VIOLATED. A number is wrong, or the run is not the flow: "
                "too few steps, whose errors fall into short pieces of the path"
            )
        if self.gap >= FAR:
            return f"{text}: the bound is far from the error, by a factor {self.gap:.3g} in eta"
        return f"{text}: within a factor {self.gap:.3g} in eta"

    def to_dict(self) -> dict:
        """Returns the numbers as a dict that JSON can hold."""
        return {
            "eta": [self.eta.value, self.eta.error],
            "c_1": [self.c_1.value, self.c_1.error],
            "c_2": self.c_2,
            "chi_square": self.chi2,
            "times": list(self.times),
            "w1": list(self.w1),
            "count": self.count,
            "d": self.d,
        }

    def _below(self, found, limit):
        slack = 0.0 if math.isnan(found.error) else 3.0 * found.error
        return found.value <= limit * (1 + 1e-6) + slack


def speed_accuracy(
    true: Sequence[Any],
    made: Sequence[Any],
    times: Any,
    chi2: float,
    c_2: float,
    directions: int = DIRECTIONS,
    seed: int = 0,
) -> SpeedAccuracy:
    """Returns eta, c_1 and c_2 of a run that began wrongly, with their standard errors.

    `true` are samples of the path's own laws p_t: noised data, or a run from the right start. With
    the second the network's errors cancel: the relation is then that of the network's own flow.
    Both runs from the same normals, one moved, have by far the smallest sampling error.

    Args:
        true: K >= 2 sets of samples [N, ...], one a time.
        made: as many sets of the run that began wrongly, [N, ...] each; row b of all sets is one
            trajectory.
        times: [K] model times, rising from the data to the start or falling; their range is taken
            for the unit duration.
        chi2: D_0 of the start, `df.thermo.chi_square`.
        c_2: `df.thermo.action` of the schedule, or the mean squared velocity of the run.
        directions: for sliced W1, where samples have several elements; 20 at least.
        seed: of the directions.

    Raises:
        ValueError: sets that disagree in number or shape; times that do not rise or fall; fewer
            than 40 samples; a chi2 or c_2 that is negative or not finite.

    Warns:
        FewSamplesWarning: the standard error of eta is above a fifth of it.
    """
    who = "speed_accuracy"
    pairs = [(rows_of(who, a), rows_of(who, b)) for a, b in zip(true, made, strict=False)]
    shapes = {part.shape for pair in pairs for part in pair}
    if len(true) != len(made) or len(shapes) != 1:
        raise ValueError(
            f"{who}: {len(true)} and {len(made)} sets of samples of the shapes "
            f"{sorted(shapes)}, but both need as many of one shape"
        )
    count, d = shapes.pop()
    if count < 2 * GROUPS:
        raise ValueError(f"{who}: {count} samples, but {2 * GROUPS} are needed for an error")
    if d > 1 and directions < GROUPS:
        raise ValueError(f"{who}: directions = {directions}, but {GROUPS} at least are needed")
    clock, back = _clock(who, times, len(pairs))
    _check(who, chi2, c_2)
    ways = directions_of(d, directions, seed)
    curves = np.stack([_left_out(a @ ways, b @ ways) for a, b in pairs], axis=1) * math.sqrt(d)
    curves = curves[:, ::-1] if back else curves  # [1 + 2 GROUPS, K]
    etas, rates = _relation(clock, curves, chi2)
    found = SpeedAccuracy(
        _jackknife(etas, count),
        _jackknife(rates, count),
        float(c_2),
        float(chi2),
        tuple(clock.tolist()),
        tuple(curves[0].tolist()),
        count,
        d,
    )
    warn_if_few(who, "eta", found.eta)
    return found


def speed_accuracy_of_curve(times: Any, w1: Any, chi2: float, c_2: float) -> SpeedAccuracy:
    """Returns the same report of an exact curve of W1, without standard errors.

    Args:
        times: as for `speed_accuracy`.
        w1: [K] W1 at these times.
        chi2: as for `speed_accuracy`.
        c_2: as for `speed_accuracy`.

    Raises:
        ValueError: as `speed_accuracy`.
    """
    who = "speed_accuracy_of_curve"
    curve = np.asarray(w1, dtype=np.float64)
    clock, back = _clock(who, times, curve.size)
    _check(who, chi2, c_2)
    curve = curve[::-1] if back else curve
    etas, rates = _relation(clock, curve[None], chi2)
    eta, rate = (Estimate(float(number[0]), 0.0, 0) for number in (etas, rates))
    times, w1 = tuple(clock.tolist()), tuple(curve.tolist())
    return SpeedAccuracy(eta, rate, float(c_2), float(chi2), times, w1, 0, 1)


def w1_change_bound(chi2: float, c_2: float, velocity_error: float = 0.0) -> float:
    """Returns the largest change of W1 over a path of unit duration, with an imperfect velocity.

    (100), (F6): sqrt(D) (sqrt(c_2) + sqrt(1 + 1 / D) sqrt(L)), where L = int E|nu - nu_hat|^2 dt is
    the mean squared error of the velocity and D the largest chi-square along the run. The
    chi-square is kept along the path by the exact velocity alone.

    Args:
        chi2: D; 0 is allowed, and leaves sqrt(L).
        c_2: int v_2^2 dt.
        velocity_error: L.

    Raises:
        ValueError: a number that is negative or not finite.
    """
    _check("w1_change_bound", chi2, c_2)
    _check("w1_change_bound", velocity_error, 0.0)
    return math.sqrt(chi2 * c_2) + math.sqrt(1.0 + chi2) * math.sqrt(velocity_error)


def w1_rate_bound(chi2: float, speed: float, velocity_error: float = 0.0) -> float:
    """Returns the largest |dW1/dt| at one time; (80), (F4).

    Args:
        chi2: D at that time.
        speed: v_2^2 there, or T dS_tot/dt where the velocity is no gradient.
        velocity_error: E|nu - nu_hat|^2 there, over the true law.

    Raises:
        ValueError: a number that is negative or not finite.
    """
    return w1_change_bound(chi2, speed, velocity_error)


def _left_out(a, b):
    """Returns W1 of projections [N, L]: of all, without each group of samples, and of directions.

    [1 + 2 GROUPS]; the last GROUPS are the first where there is one direction.
    """
    n, ways = a.shape
    group = np.arange(n) * GROUPS // n
    order, other = np.argsort(a, axis=0), np.argsort(b, axis=0)
    first, second = np.take_along_axis(a, order, 0).T, np.take_along_axis(b, other, 0).T
    own, its = group[order].T, group[other].T
    each = np.abs(first - second).mean(1)
    found = [each.mean()]
    for g in range(GROUPS):
        kept = first[own != g].reshape(ways, -1) - second[its != g].reshape(ways, -1)
        found.append(np.abs(kept).mean())
    way = np.arange(ways) * GROUPS // ways
    found += [each[way != g].mean() if ways > 1 else found[0] for g in range(GROUPS)]
    return np.array(found)


def _relation(clock, curves, chi2):
    """Returns (eta, c_1), [R] each, of curves of W1 [R, K]."""
    if chi2 == 0.0:
        raise ValueError("speed_accuracy: chi2 = 0: the start is right, so there is no relation")
    steps = np.diff(curves, axis=1)
    return steps.sum(1) ** 2 / chi2, (steps**2 / np.diff(clock)).sum(1) / chi2


def _jackknife(values, count):
    square = 0.0
    for left in (values[1 : 1 + GROUPS], values[1 + GROUPS :]):  # samples, directions
        square += (GROUPS - 1) / GROUPS * float(((left - left.mean()) ** 2).sum())
    return Estimate(float(values[0]), math.sqrt(square), count)


def _clock(who, times, count):
    """Returns (times over [0, 1] rising, whether they were falling)."""
    found = np.asarray(times, dtype=np.float64)
    back = found.ndim == 1 and found.size > 1 and bool(found[0] > found[-1])
    found = found[::-1] if back else found
    if found.shape != (count,) or count < 2 or not (np.diff(found) > 0.0).all():
        raise ValueError(
            f"{who}: {found.size} times for {count} sets, but as many, rising or falling, and two "
            "at least are needed"
        )
    return (found - found[0]) / (found[-1] - found[0]), back


def _check(who, chi2, c_2):
    for number in (chi2, c_2):
        if not 0.0 <= number < math.inf:
            raise ValueError(
                f"{who}: {number} is given, but the chi-square, c_2 and the error of the velocity "
                "must be finite and not negative"
            )
