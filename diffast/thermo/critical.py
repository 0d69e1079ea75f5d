"""`critical_levels`: where a sample's fixed points of the x0 estimate split or vanish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.thermo.fixed_points import PLAIN_STEPS, FixedPoints, Place, Settled
from diffast.thermo.products import Products
from diffast.tuning.pilots import Pilots, ids_of

CROSSING, FOLD = "crossing", "fold"

# A branch that ends in a fold moves as a square root: at most twice the first Newton step.
_JUMP = 2.5

# How far below its extrapolation an eigenvalue may be that was to pass 1; above what value a
# maximum between two levels is looked at; how far from 1 it is taken for 1 at a small tolerance.
_SHORT, _NEAR, _ONE = 0.05, 0.5, 1e-3

# A point is a maximum's own if its way back ends this near to it, over the way that it went.
_BACK = 0.3


@dataclass(frozen=True, eq=False)
class CriticalLevels:
    """The critical noise levels of fixed points that were followed, F in all, B followed points.

    Attributes:
        levels: rho = sigma / alpha [F], in the order in which they were met.
        rows: whose fixed point it is [F].
        kinds: "crossing": the maximum becomes a saddle: the largest eigenvalue of dD/du passes 1;
            "fold": the eigenvalue rises to 1 and the maximum vanishes there (saddle-node), or meets
            its equals (equal modes that become one).
        eigenvalues: the largest eigenvalue [F] at the last fixed point that was found before it.
        directions: its eigenvectors [F, ...], of length 1: what is decided at that level.
        states: the fixed points [F, ...] at which they were found, in the unit of the data.
        after: [F, ...]: the maximum that is uphill of it, at the next level of the sweep.
        curve_levels: levels of the sweep [L].
        curve: the largest eigenvalue [L, B]; NaN where no maximum was found.
        ends: the fixed points [B, ...] at the last level of the sweep.
        method: how products with the Jacobian were made, see `df.thermo.Products`.
        network_rows: rows of network calls, a derivative counted as three.
    """

    levels: np.ndarray
    rows: np.ndarray
    kinds: list[str]
    eigenvalues: np.ndarray
    directions: torch.Tensor
    states: torch.Tensor
    after: torch.Tensor
    curve_levels: np.ndarray
    curve: np.ndarray
    ends: torch.Tensor
    method: str
    network_rows: int

    @property
    def peak(self) -> tuple[float, float]:
        """Returns (level, eigenvalue) of the sweep's largest eigenvalue; NaN without any."""
        if not np.isfinite(self.curve).any():
            return math.nan, math.nan
        place = np.unravel_index(np.nanargmax(self.curve), self.curve.shape)
        return float(self.curve_levels[place[0]]), float(self.curve[place])

    def __str__(self) -> str:
        """Returns the levels in words; without any, the range that was searched."""
        if len(self.levels):
            parts = [
                f"{level:.4g} ({kind}, row {row})"
                for level, kind, row in zip(self.levels, self.kinds, self.rows, strict=True)
            ]
            return "critical levels rho = " + ", ".join(parts)
        low, high = float(self.curve_levels.min()), float(self.curve_levels.max())
        where, most = self.peak
        return (
            f"no critical level between rho = {low:.4g} and {high:.4g}: the largest eigenvalue of "
            f"the x0 estimate's Jacobian is at most {most:.3g}, at {where:.4g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but pictures as a dict that JSON can hold."""
        curve = [[v if math.isfinite(v) else None for v in row] for row in self.curve.tolist()]
        return {
            "levels": self.levels.tolist(),
            "rows": self.rows.tolist(),
            "kinds": list(self.kinds),
            "eigenvalues": self.eigenvalues.tolist(),
            "curve_levels": self.curve_levels.tolist(),
            "curve": curve,
            "method": self.method,
            "network_rows": self.network_rows,
        }


def critical_levels(
    denoiser: Denoiser,
    x: torch.Tensor | None = None,
    shape: Sequence[int] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    count: int = 24,
    tolerance: float = 5e-3,
    krylov: int = 6,
    method: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CriticalLevels:
    """Returns the noise levels at which fixed points D(u) = u of the x0 estimate split or vanish.

    Fixed points are the maxima and saddles of the density of u = x / alpha. At a maximum all
    eigenvalues of dD/du = Cov[y | x] / rho^2 are below 1; where one reaches 1 the maximum splits or
    ends, and its eigenvector says into what. Two ways through the levels:

    - Without `x` the centre is followed from the highest level downwards: the one maximum that
      there is under much noise. For two equal modes at +-mu of variance v its eigenvalue crosses 1
      at rho^2 = mu^2 - v: the centre becomes a saddle. Such a crossing needs a symmetry. For other
      data the centre moves into one of the modes, and nothing crosses: its eigenvalue has a maximum
      below 1 (`peak`). In any case a maximum is followed: after its end, the one uphill of it.
    - With `x`, final samples, the maximum that each sample belongs to is followed from the lowest
      level upwards, until it vanishes in a fold (saddle-node). Then the sample moves uphill to
      another maximum, which is followed in turn. A sampler that comes down makes these decisions in
      the opposite order.

    All of it is measured in u and rho, so the schedule does not matter. For a guided denoiser D is
    the guided estimate, whose fixed points are those of no density.

    Network calls: 60 rows a level and followed point at the least. On the network of the digits
    150 to 220 were measured, critical levels included. `network_rows` is the number of a run. Far
    below the decisions, where all eigenvalues along the data are near 1, it takes most and finds
    least: give `low`.

    Args:
        denoiser: the network; any schedule, prediction and guidance, conditions by rows.
        x: final samples [B, ...] in the unit of the data; None: the centre.
        shape: [B, ...] of the state, without `x`: one centre for each row of the conditions.
        low: the lowest level rho; None: a thousandth of the highest, or the schedule's lowest.
        high: the highest level; None: the schedule's, 100 where it starts at noise alone.
        count: levels of the sweep, even in log(rho).
        tolerance: of a critical level, in log(rho). Below 1e-4 a float64 network is needed.
        krylov: products with the Jacobian for one eigenvalue and for one Newton step.
        method: "auto", "jvp" or "difference": see `df.thermo.Products`. "auto" takes differences,
            two calls a product, wherever they are exact enough: float32 and below.
        dtype: of the state without `x`: torch.float32 or torch.float64.
        device: where to run without `x`; None: the network's.

    Raises:
        ValueError: neither x nor a shape, an empty range or one outside of the schedule's, counts
            and tolerances below what is needed, estimates or products that are not finite.
    """
    who = "critical_levels"
    if (x is None) == (shape is None):
        raise ValueError(f"{who}: give final samples x, or the shape [B, ...] for the centre")
    if x is None:
        place = denoiser.device() if device is None else torch.device(device)
        start = torch.zeros(tuple(shape or ()), dtype=dtype, device=place)
    else:
        start = x.detach().clone()
    if start.dim() < 1 or not len(start) or not start.is_floating_point():
        raise ValueError(f"{who}: the state is {list(start.shape)} of {start.dtype}, not [B, ...]")
    for name, value, least in (("count", count, 3), ("krylov", krylov, 1)):
        if value < least:
            raise ValueError(f"{who}: {name} is {value}, but at least {least} is needed")
    if not tolerance > 0.0:
        raise ValueError(f"{who}: tolerance is {tolerance}, but it must be above 0")
    if method == "auto" and start.dtype != torch.float64:
        method = "difference"
    points = FixedPoints(Products(who, denoiser, method), krylov)
    ladder = points.ladder
    high = ladder.high if high is None else float(high)
    low = max(ladder.low, ladder.high * 1e-3) if low is None else float(low)
    if not ladder.low * (1 - 1e-9) <= low < high <= ladder.high * (1 + 1e-9):
        raise ValueError(
            f"{who}: the levels are {low:.4g} to {high:.4g}, but they must rise and lie in the "
            f"schedule's sigma / alpha, {ladder.low:.4g} to {ladder.high:.4g}"
        )
    falling = x is None
    levels = np.geomspace(*((high, low) if falling else (low, high)), count)
    return _Sweep(points, start, levels, tolerance, falling).run()


@dataclass(eq=False)
class _Found:
    """The lists of a `CriticalLevels`."""

    levels: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    eigenvalues: list[float] = field(default_factory=list)
    directions: list[torch.Tensor] = field(default_factory=list)
    states: list[torch.Tensor] = field(default_factory=list)
    after: list[torch.Tensor] = field(default_factory=list)


@dataclass(eq=False)
class _Point:
    """One row's fixed point at one level."""

    u: torch.Tensor  # [1, ...]
    place: Place
    value: float
    direction: torch.Tensor  # [1, ...]


class _Sweep:
    """Follows B fixed points through levels, and finds what happens between two levels."""

    def __init__(
        self,
        points: FixedPoints,
        start: torch.Tensor,
        levels: np.ndarray,
        tolerance: float,
        falling: bool,
    ):
        self.points, self.u, self.tolerance, self.falling = points, start, tolerance, falling
        places = [points.place(float(rho)) for rho in levels]
        # whole times may fall together
        self.places = [p for i, p in enumerate(places) if not i or p.time != places[i - 1].time]
        batch, denoiser = len(start), points.products.denoiser
        pilots = Pilots(denoiser, start.shape[1:], 0, start.device)
        self.single: list[FixedPoints] = []
        for row in range(batch):
            own = denoiser if batch == 1 else pilots.rows(ids_of(1, row))
            products = Products(points.products.who, own, points.products.asked)
            self.single.append(FixedPoints(products, points.krylov))
        self.found = _Found()

    def run(self) -> CriticalLevels:
        """Returns what was found."""
        points, batch = self.points, len(self.u)
        curve = np.full((len(self.places), batch), math.nan)
        trails: list[list[_Point]] = [[] for _ in range(batch)]  # at most the last two points
        vectors: torch.Tensor | None = None
        for k, place in enumerate(self.places):
            guess = self.u
            alive = np.array([bool(trail) for trail in trails])
            if not alive.all():
                guess = torch.where(self._mask(alive), guess, points.plain(guess, place))
            made = points.newton(guess, place, _JUMP if alive.all() else math.inf)
            value, vectors = points.top(made.u, place, vectors)
            u = torch.where(made.good.reshape(self._mask(alive).shape), made.u, guess)
            for row in range(batch):
                here, trail = slice(row, row + 1), trails[row]
                now = _Point(u[here].clone(), place, float(value[row]), vectors[here].clone())
                well = bool(made.good[row]) and now.value < 1.0
                if not trail:
                    trails[row] = [now] if well else []
                elif well and self._smooth(made, row, place) and self._expected(trail, now):
                    self._follow(row, trail, now)
                elif not self._refine(row, trail, place):  # it ended, and goes on at another one
                    then = self._anew(row, trail[-1], place)
                    if then is not None and self._same(row, trail[-1], then):
                        self._forget()
                    else:
                        self.found.after.append(now.u if then is None else then.u)
                    trails[row] = [] if then is None else [then]
                if trails[row]:
                    now = trails[row][-1]
                    u[here], vectors[here], curve[k, row] = now.u, now.direction, now.value
            self.u = u
        return self._result(curve)

    def _mask(self, rows: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(rows, device=self.u.device).reshape(-1, *[1] * (self.u.dim() - 1))

    @staticmethod
    def _smooth(made: Settled, row: int, place: Place) -> bool:
        """Returns whether Newton's method stayed on its branch."""
        return bool(made.moved[row] <= _JUMP * made.first[row] + 1e-9 * place.rho)

    def _expected(self, trail: list[_Point], now: _Point) -> bool:
        """Returns whether an eigenvalue is that of the branch, and not of one beyond its end."""
        if len(trail) < 2:
            return True
        a, b = trail[-2:]
        slope = (b.value - a.value) / math.log(b.place.rho / a.place.rho)
        ahead = b.value + slope * math.log(now.place.rho / b.place.rho)
        return ahead < 1.0 or now.value > ahead - _SHORT

    def _step(
        self, row: int, trail: list[_Point], rho: float, jumps: bool = False
    ) -> _Point | None:
        """Returns the maximum of a trail at another level; None where it is not there.

        With `jumps` another maximum will do.
        """
        points = self.single[row]
        place = points.place(rho)
        made = points.newton(trail[-1].u, place, math.inf if jumps else _JUMP)
        if not (bool(made.good) and (jumps or self._smooth(made, 0, place))):
            return None
        value, direction = points.top(made.u, place, trail[-1].direction)
        now = _Point(made.u, place, float(value), direction)
        return now if now.value < 1.0 and self._expected(trail, now) else None

    def _follow(self, row: int, trail: list[_Point], now: _Point) -> None:
        """Adds a point to its row's trail, and notes what happened before it."""
        last = trail[-1]
        highest = len(trail) == 2 and last.value >= max(trail[0].value, now.value)
        if not self.falling and highest and last.value > _NEAR:
            self._touch(row, trail[0], now)
        trail[:] = [last, now]

    def _refine(self, row: int, trail: list[_Point], goal: Place) -> bool:
        """Follows a point to a level in smaller steps; False, and a fold noted, if it ends."""
        step = 0.5 * math.log(goal.rho / trail[-1].place.rho)
        while True:
            last = trail[-1]
            final = abs(step) >= abs(math.log(goal.rho / last.place.rho)) * (1 - 1e-9)
            rho = goal.rho if final else last.place.rho * math.exp(step)
            same = self.single[row].place(rho).time == last.place.time  # whole times
            point = None if same else self._step(row, trail, rho)
            if point is not None:
                self._follow(row, trail, point)
                if final:
                    return True
                step = self._next(trail, 2.0 * step)
            elif same or abs(step) <= self.tolerance:
                self._end(row, trail)
                return False
            else:
                step *= 0.5

    def _ahead(self, trail: list[_Point]) -> float | None:
        """Returns the distance in log(rho), with its sign, at which the value would be 1.

        Going up, (1 - value)^2 falls to 0 in proportion to the distance from a fold; coming down to
        a crossing, 1 - value does.
        """
        if len(trail) < 2:
            return None
        a, b = ((1.0 - point.value) ** (1 if self.falling else 2) for point in trail)
        if not b < a:
            return None
        return b / (a - b) * math.log(trail[1].place.rho / trail[0].place.rho)

    def _next(self, trail: list[_Point], step: float) -> float:
        """Returns a step in log(rho), shortened where an end is near."""
        ahead = self._ahead(trail)
        if ahead is None or 0.8 * abs(ahead) > abs(step):
            return step
        return math.copysign(max(0.8 * abs(ahead), self.tolerance), step)

    def _end(self, row: int, trail: list[_Point]) -> None:
        """Notes the end of a maximum: just below it there is a saddle in its place, or nothing."""
        points, last = self.single[row], trail[-1]
        lowest = min(self.places[0].rho, self.places[-1].rho)
        width, beyond = self.tolerance, last.place
        while beyond.time == last.place.time and last.place.rho > lowest:  # whole times
            beyond = points.place(max(last.place.rho * math.exp(-width), lowest))
            width *= 2.0
        ahead, kind = self._ahead(trail), FOLD
        if self.falling and beyond.time != last.place.time:
            made = points.newton(last.u, beyond, _JUMP)
            value = float(points.top(made.u, beyond, last.direction)[0])
            if bool(made.good) and self._smooth(made, 0, beyond) and value >= 1.0:
                kind, gap = CROSSING, math.log(beyond.rho / last.place.rho)
                ahead = gap * (1.0 - last.value) / (value - last.value)
        level = last.place.rho
        if ahead is not None and abs(ahead) <= 2.0 * self.tolerance:
            level *= math.exp(ahead)
        self._note(row, last, kind, level)

    def _anew(self, row: int, last: _Point, place: Place) -> _Point | None:
        """Returns the maximum that a row comes to, uphill, after its own has ended."""
        points = self.single[row]
        kick = 0.05 * place.rho * last.direction
        made = points.newton(points.plain(last.u + kick, place, 4 * PLAIN_STEPS), place)
        value, direction = points.top(made.u, place, None)
        if not bool(made.good) or not float(value) < 1.0:
            return None
        return _Point(made.u, place, float(value), direction)

    def _same(self, row: int, last: _Point, then: _Point) -> bool:
        """Returns whether a point that goes on uphill leads back to the maximum that had ended.

        Then nothing ended: the rounding of a network kept small steps from converging. After a
        crossing both ways lead back to the centre, and nothing is said.
        """
        if self.found.kinds[-1] == CROSSING:
            return False
        back = self._step(row, [then], last.place.rho, jumps=True)
        if back is None:
            return False
        apart, gone = (float((p.u - last.u).double().norm()) for p in (back, then))
        return apart < _BACK * gone

    def _forget(self) -> None:
        """Takes the last noted level back."""
        found = self.found
        for numbers in (found.levels, found.rows, found.kinds, found.eigenvalues):
            numbers.pop()
        for pictures in (found.directions, found.states):
            pictures.pop()

    def _touch(self, row: int, low: _Point, high: _Point) -> None:
        """Notes the level between two points at which the eigenvalue rises to 1 and falls again."""
        best, golden = low, 0.5 * (math.sqrt(5.0) - 1.0)
        # Where equal modes meet, 1 - value is about 2 times the distance.
        enough = 1.0 - 4.0 * self.tolerance - _ONE
        a, b = math.log(low.place.rho), math.log(high.place.rho)
        c, d = b - golden * (b - a), a + golden * (b - a)
        at: dict[float, _Point | None] = {}
        while b - a > self.tolerance:
            for point in (c, d):
                if point not in at:
                    before = [p for p in (low, *at.values()) if p and math.log(p.place.rho) < point]
                    start = max(before, key=lambda p: p.place.rho)
                    made = at[point] = self._step(row, [start], math.exp(point), jumps=True)
                    best = made if made is not None and made.value > best.value else best
            left, right = (-math.inf if p is None else p.value for p in (at[c], at[d]))
            slope = abs(left - right) / (d - c)
            if math.isfinite(slope) and best.value + 2.0 * slope * (b - a) < enough:
                return  # a smooth maximum: it is known well enough to be below 1
            if left >= right:
                b, d, c = d, c, d - golden * (d - a)
            else:
                a, c, d = c, d, c + golden * (b - c)
        if best.value > enough:
            self._note(row, best, FOLD, best.place.rho)
            self.found.after.append(high.u)

    def _note(self, row: int, point: _Point, kind: str, level: float) -> None:
        found = self.found
        found.levels.append(level)
        found.rows.append(row)
        found.kinds.append(kind)
        found.eigenvalues.append(point.value)
        found.directions.append(point.direction)
        found.states.append(point.u)

    def _result(self, curve: np.ndarray) -> CriticalLevels:
        found, empty = self.found, self.u[:0]
        directions, states, after = (
            torch.cat(parts) if parts else empty.clone()
            for parts in (found.directions, found.states, found.after)
        )
        products = [self.points.products, *(single.products for single in self.single)]
        return CriticalLevels(
            np.array(found.levels, dtype=np.float64),
            np.array(found.rows, dtype=np.int64),
            found.kinds,
            np.array(found.eigenvalues, dtype=np.float64),
            directions,
            states,
            after,
            np.array([place.rho for place in self.places]),
            curve,
            self.u,
            self.points.products.method,
            sum(p.rows for p in products),
        )
