"""Schedules from the caller's functions of time, and from the tables that they are saved as."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules.domain import check_times
from diffast.schedules.slopes import differences
from diffast.schedules.table import TIMES, Interpolant, at_points, share_times

# Below this sigma/alpha an end is clean, and below this alpha/sigma it is noise alone: cos(pi/2) is
# 6e-17 in float64, but means 0.
ZERO = 1e-12
# How far alpha may lie from 1 at the clean end: the samples would be that much too small.
WHOLE = 1e-3
# By how much the angle arctan(sigma / alpha) may fall where it should rise. sqrt(1 - alpha**2) of
# float64 numbers is wrong by up to 1.5e-8 near alpha = 1.
ROUNDING = 3e-8

Level = Callable[[Any], Any]


def from_functions(
    alpha: Level,
    sigma: Level,
    *,
    t_start: float = 1.0,
    t_end: float = 0.0,
    t_min: float | None = None,
    derivatives: Callable[[Any], tuple[Any, Any]] | None = None,
) -> FromFunctions:
    """Returns the schedule x_t = alpha(t) x0 + sigma(t) eps of two functions of the model time.

    The functions may take NumPy arrays [N] float64, torch tensors of that kind, or one float at a
    time; which of these is found out here. `time`, the inverse of the log-SNR, is found by
    bracketing in a table and the regula falsi (Illinois rule) to the last bits. The derivatives are
    those of central differences of sixth order unless they are given.

    `to_dict`, and so `Plan.save`, keeps 1,025 values of both functions. `from_dict` returns the
    schedule of this table, which compares equal to the schedule of the functions. Between the
    values it is a cubic; smooth functions of size 1 are right there to about 1e-12. At the times of
    the plan that was saved, levels and derivatives are kept to the last bit, as its own numbers.

    Args:
        alpha: the signal level at the times.
        sigma: the noise level at the times, in the unit of the data.
        t_start: the noisiest time, where sampling starts.
        t_end: the clean end. alpha is 1 there; sigma is 0, or a small noise that samples keep.
        t_min: least noisy time of a network call; None: a thousandth of the range above t_end.
        derivatives: returns (dalpha/dt, dsigma/dt) at the times.

    Raises:
        TypeError: for something that cannot be called.
        ValueError: unless 0 <= t_end < t_min < t_start; for values that are not finite or negative,
            an answer of another shape, a log-SNR that does not fall from t_end to t_start, an
            alpha(t_end) that is not 1.
    """
    for name, given in (("alpha", alpha), ("sigma", sigma), ("derivatives", derivatives)):
        if not callable(given) and not (given is None and name == "derivatives"):
            raise TypeError(
                f"from_functions: {name} is a {type(given).__name__}, but it must be a function of "
                "the time"
            )
    start, end, least = _ends("from_functions", t_start, t_end, t_min)
    return FromFunctions(
        _Levels("alpha", alpha, start, end),
        _Levels("sigma", sigma, start, end),
        start,
        end,
        least,
        derivatives,
    )


def from_table(
    alpha: ArrayLike,
    sigma: ArrayLike,
    t_start: float,
    t_end: float,
    t_min: float,
    points: ArrayLike = (),
) -> FromFunctions:
    """Returns the schedule of a table of both levels, as `from_functions` saves it.

    The times of the values are t_end + (t_start - t_end) (1 - cos(pi k / N)) / 2, k = 0 .. N: dense
    at both ends, where alpha or sigma may behave like a square root. Between them is a cubic
    Hermite spline over k, with slopes of sixth order that are limited so that it is monotone where
    the values are (Fritsch and Carlson 1980).

    Args:
        alpha: [N+1] signal levels, N >= 8, from t_end to t_start.
        sigma: [N+1] noise levels.
        t_start: the noisiest time.
        t_end: the clean end.
        t_min: least noisy time of a network call.
        points: [P, 5] further times with (t, alpha, sigma, dalpha/dt, dsigma/dt), exact there.

    Raises:
        ValueError: as `from_functions`; tables of different lengths, or of fewer than 9 values;
            points of another shape, or that are not finite.
    """
    start, end, least = _ends("from_table", t_start, t_end, t_min)
    tables = [np.asarray(table, dtype=np.float64) for table in (alpha, sigma)]
    if tables[0].ndim != 1 or tables[0].shape != tables[1].shape or tables[0].size < 9:
        raise ValueError(
            f"from_table: alpha has shape {tables[0].shape} and sigma {tables[1].shape}, but both "
            "must be [N+1], N >= 8"
        )
    known = np.array(points, dtype=np.float64)
    known = known.reshape(0, 5) if known.size == 0 else known
    if known.ndim != 2 or known.shape[1] != 5 or not np.isfinite(known[:, :3]).all():
        raise ValueError(
            f"from_table: points has shape {known.shape}, but it must be [P, 5] of (t, alpha, "
            "sigma, dalpha, dsigma), with finite levels"
        )
    known = known[np.argsort(known[:, 0])]
    splines = [
        Interpolant(table, start, end, known[:, 0], known[:, k])
        for k, table in enumerate(tables, 1)
    ]

    def slopes(t):
        dalpha, dsigma = (differences(spline, t, start, end) for spline in splines)
        at = known[:, 0]
        return at_points(t, at, known[:, 3], dalpha), at_points(t, at, known[:, 4], dsigma)

    return FromFunctions(splines[0], splines[1], start, end, least, slopes)


class FromFunctions:
    """See `from_functions`. Equal to another one whose ends and tables are the same to 1e-9."""

    def __init__(
        self,
        alpha: Level,
        sigma: Level,
        t_start: float,
        t_end: float,
        t_min: float,
        derivatives: Callable[[Any], tuple[Any, Any]] | None,
    ):
        """Tabulates the functions and checks them."""
        self._alpha, self._sigma, self._slopes = alpha, sigma, derivatives
        self.t_start, self.t_end, self.t_min = t_start, t_end, t_min
        self._times = share_times(TIMES, t_start, t_end)
        with np.errstate(all="ignore"):
            self._table = np.stack([self.alpha(self._times), self.sigma(self._times)])
        self._check()
        self._table.flags.writeable = False

    @property
    def domain(self) -> tuple[float, float]:
        """Returns (t_end, t_start)."""
        return (self.t_end, self.t_start)

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns the signal level; 0 at t_start where it is less than 1e-12 of sigma."""
        return self._at_ends(t, self._alpha, self._sigma, self.t_start)

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns the noise level; 0 at t_end where it is less than 1e-12 of alpha."""
        return self._at_ends(t, self._sigma, self._alpha, self.t_end)

    def _at_ends(self, t, level, other, end):
        t = _known(self, t)
        flat = t.reshape(-1)
        found = level(flat)
        at = flat == end
        if at.any():
            found = np.where(at & (np.abs(found) < ZERO * np.abs(other(flat))), 0.0, found)
        return found.reshape(t.shape)[()]

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (dalpha/dt, dsigma/dt): the caller's, else differences of sixth order.

        At the ends the differences are one-sided. Where a derivative is infinite, as dsigma/dt at
        the clean end of a variance-preserving path, they are large but finite.
        """
        t = _known(self, t)
        flat = t.reshape(-1)
        if self._slopes is None:
            found = [
                differences(level, flat, self.t_start, self.t_end)
                for level in (self._alpha, self._sigma)
            ]
        else:
            found = [
                np.broadcast_to(_numpy(part), flat.shape) for part in _asked(self._slopes, flat)
            ]
        return found[0].reshape(t.shape)[()], found[1].reshape(t.shape)[()]

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns log(alpha / sigma)."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha(t)) - np.log(self.sigma(t))

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns the time at which lam stands.

        Raises:
            ValueError: a lam beyond those of t_start and t_end.
        """
        lam = np.asarray(lam, dtype=np.float64)
        least, most = self.lam(self.t_start), self.lam(self.t_end)
        outside = ~((lam >= least - 1e-9) & (lam <= most + 1e-9))
        if outside.any():
            raise ValueError(
                f"FromFunctions: lam = {lam[outside].flat[0]} lies outside [{least}, {most}], the "
                "log-SNRs of t_start and t_end"
            )
        lam = np.clip(lam, least, most)
        return self._solve(lam.reshape(-1)).reshape(lam.shape)[()]

    def _solve(self, lam):
        """Returns times [N] of log-SNRs [N].

        The root is that of sigma A - alpha S, where (A, S) is the direction (alpha, sigma) that is
        wanted: finite at both ends, and exact to the last bits where either level is small.
        """
        wanted = np.exp(-0.5 * np.logaddexp(0, -2 * lam)), np.exp(-0.5 * np.logaddexp(0, 2 * lam))

        def excess(t, a, s):
            return self.sigma(t) * a - self.alpha(t) * s

        known = np.arctan2(self._table[1], self._table[0])
        piece = np.searchsorted(np.maximum.accumulate(known), np.arctan2(wanted[1], wanted[0]))
        piece = np.clip(piece, 1, TIMES)
        low, high = self._times[piece - 1], self._times[piece]
        below, above = excess(low, *wanted), excess(high, *wanted)
        t, side = low.copy(), np.zeros(len(lam))
        for _ in range(100):
            gap = np.where(above > below, above - below, 1.0)
            t = np.where(above > below, low - below * (high - low) / gap, 0.5 * (low + high))
            t = np.clip(t, low, high)
            value = excess(t, *wanted)
            left = value < 0
            low, below = np.where(left, t, low), np.where(left, value, below)
            high, above = np.where(left, high, t), np.where(left, above, value)
            # Illinois: an end that stays twice counts half, so that the other end moves as well.
            above = np.where(left & (side > 0), 0.5 * above, above)
            below = np.where(~left & (side < 0), 0.5 * below, below)
            side = np.where(left, 1.0, -1.0)
            if ((value == 0) | (high - low <= 4 * np.spacing(np.abs(t)))).all():
                break
        t = np.where(lam == self.lam(self.t_end), self.t_end, t)
        return np.where(lam == self.lam(self.t_start), self.t_start, t)

    def to_dict(self, exact_at: ArrayLike = ()) -> dict:
        """Returns the schedule as a dict that JSON can hold; `from_dict` reads it.

        Args:
            exact_at: times at which the table's levels and derivatives are to be these, exactly.
        """
        times = np.unique(np.asarray(exact_at, dtype=np.float64))
        with np.errstate(all="ignore"):
            slopes = self.derivatives(times)
        points = np.stack([times, self.alpha(times), self.sigma(times), *slopes], axis=1)
        return {
            "name": "from_table",
            "alpha": self._table[0].tolist(),
            "sigma": self._table[1].tolist(),
            "t_start": self.t_start,
            "t_end": self.t_end,
            "t_min": self.t_min,
            "points": points[np.isfinite(points).all(axis=1)].tolist(),
        }

    def __eq__(self, other: object) -> bool:
        """Returns whether both say the same: their tables are compared, not their functions."""
        if not isinstance(other, FromFunctions):
            return NotImplemented
        ends = (self.t_start, self.t_end, self.t_min) == (other.t_start, other.t_end, other.t_min)
        return ends and np.allclose(self._table, other._table, rtol=1e-9, atol=1e-12)

    def __hash__(self) -> int:
        """Returns a hash of the ends alone: tables that differ by rounding are equal."""
        return hash((self.t_start, self.t_end, self.t_min))

    def __repr__(self) -> str:
        """Returns the ends; the functions have no short name."""
        names = getattr(self._alpha, "said", "table"), getattr(self._sigma, "said", "table")
        return (
            f"FromFunctions({names[0]}, {names[1]}, t_start={self.t_start:g}, "
            f"t_end={self.t_end:g}, t_min={self.t_min:g})"
        )

    def _check(self):
        for name, level in zip(("alpha", "sigma"), self._table, strict=True):
            wrong = ~(np.isfinite(level) & (level >= 0))
            if wrong.any():
                i = int(np.argmax(wrong))
                raise ValueError(
                    f"from_functions: {name}({self._times[i]:.6g}) = {level[i]:g}, but it must be "
                    "finite and not negative from t_end to t_start"
                )
        alpha, sigma = self._table
        if sigma[-1] * alpha[0] <= sigma[0] * alpha[-1]:
            raise ValueError(
                f"from_functions: (alpha, sigma) is ({alpha[0]:g}, {sigma[0]:g}) at t_end = "
                f"{self.t_end:g} and ({alpha[-1]:g}, {sigma[-1]:g}) at t_start = {self.t_start:g}, "
                "but t_start must be the noisy end: where the functions' time rises from noise to "
                "data, give functions of t_start + t_end - t"
            )
        if abs(alpha[0] - 1.0) > WHOLE:
            raise ValueError(
                f"from_functions: alpha(t_end = {self.t_end:g}) = {alpha[0]:g}, but it must be 1 "
                "at the clean end: the samples are alpha times the data there"
            )
        angle = np.arctan2(sigma, alpha)
        falls = np.diff(angle) < -ROUNDING
        if falls.any():
            i = int(np.argmax(falls))
            raise ValueError(
                f"from_functions: alpha/sigma must fall with the time, but it is "
                f"{alpha[i] / sigma[i]:.6g} at t = {self._times[i]:.6g} and "
                f"{alpha[i + 1] / sigma[i + 1]:.6g} at t = {self._times[i + 1]:.6g}"
            )
        if not self.lam(self.t_start) < self.lam(self.t_min) < np.inf:
            raise ValueError(
                f"from_functions: sigma({self.t_min:g}) = {float(self.sigma(self.t_min)):g} at "
                "t_min, but it must be positive, and less noisy than at t_start"
            )


class _Levels:
    """A function of the caller's as one of arrays [N] float64, whatever it takes itself."""

    def __init__(self, name: str, function: Level, start: float, end: float):
        """Finds out what it takes, at three times."""
        self.name, self.function = name, function
        self.said = getattr(function, "__name__", type(function).__name__)
        times = np.array([end, 0.5 * (start + end), start])
        self.way = None
        errors = []
        for way in (_array_call, _tensor_call, _number_call):
            try:
                with np.errstate(all="ignore"):
                    found = _numpy(way(function, times))
            except Exception as error:  # the caller's function fails in its own way
                errors.append(f"{type(error).__name__}: {error}")
                continue
            if found.shape in ((), (1,), times.shape):
                self.way = way
                return
            errors.append(f"it returned shape {found.shape} for {times.shape}")
        raise ValueError(
            f"from_functions: {name} takes neither an array of times, nor a torch tensor of them, "
            f"nor one float: {errors[-1]}"
        )

    def __call__(self, t: np.ndarray) -> np.ndarray:
        """Returns the level at times [N], float64 [N]."""
        found = _numpy(self.way(self.function, t))  # type: ignore[misc]
        if found.shape not in ((), (1,), t.shape):
            raise ValueError(
                f"from_functions: {self.name} returned shape {found.shape} for times {t.shape}"
            )
        return np.array(np.broadcast_to(found, t.shape))


def _array_call(function, t):
    return function(t)


def _tensor_call(function, t):
    torch = sys.modules.get("torch")  # a function of tensors has loaded it
    if torch is None:
        raise TypeError("torch is not loaded")
    return function(torch.from_numpy(np.array(t)))


def _number_call(function, t):
    return np.array([float(function(float(one))) for one in t])


def _numpy(found):
    if hasattr(found, "detach"):
        found = found.detach().cpu().numpy()
    return np.asarray(found, dtype=np.float64)


def _asked(derivatives, t):
    """Returns what the caller's derivatives are at times [N]: arrays, tensors or lists."""
    for way in (_array_call, _tensor_call):
        try:
            return way(derivatives, t)
        except (TypeError, AttributeError, ValueError):
            continue
    return np.array([[float(part) for part in derivatives(float(one))] for one in t]).T


def _known(schedule, t):
    """Returns t as float64; raises ValueError outside the domain.

    A recorded value (an adaptive run's) cannot become an array, and says so: the run then takes a
    table of the schedule.
    """
    return check_times(schedule, np.asarray(t, dtype=np.float64))


def _ends(name, t_start, t_end, t_min):
    try:
        start, end = float(t_start), float(t_end)
        t_min = None if t_min is None else float(t_min)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: t_start = {t_start!r}, t_end = {t_end!r} and t_min = {t_min!r}, but they "
            "must be numbers"
        ) from None
    if not 0 <= end < start < np.inf:
        raise ValueError(
            f"{name}: t_start = {start:g} and t_end = {end:g}, but 0 <= t_end < t_start: the time "
            "falls from noise to data"
        )
    least = end + 1e-3 * (start - end) if t_min is None else t_min
    if not end < least < start:
        raise ValueError(
            f"{name}: t_min = {least:g}, but it must lie between t_end = {end:g} and t_start = "
            f"{start:g}"
        )
    return start, end, least
