"""`critical_levels`: where a sample's fixed points of the x0 estimate split or vanish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.thermo.fixed_points import FixedPoints, Place
from diffast.thermo.products import Products
from diffast.tuning.pilots import Pilots, ids_of

CROSSING, FOLD = "crossing", "fold"

# A branch that ends in a fold moves as a square root: at most twice the first Newton step.
_JUMP = 2.5


@dataclass(frozen=True, eq=False)
class CriticalLevels:
    """The critical noise levels of fixed points that were followed, F in all, B followed points.

    Attributes:
        levels: rho = sigma / alpha [F], in the order in which they were met.
        rows: whose fixed point it is [F].
        kinds: "crossing": the fixed point goes on, and the largest eigenvalue of dD/du passes 1
            there; "fold": the fixed point ends there, with an eigenvalue that rises to 1.
        eigenvalues: the largest eigenvalue [F] at the last fixed point that was found before it.
        directions: its eigenvectors [F, ...], of length 1: what is decided at that level.
        states: the fixed points [F, ...] at which they were found, in the unit of the data.
        after: [F, ...]: after a fold, the fixed point at the next level of the sweep.
        curve_levels: levels of the sweep [L].
        curve: the largest eigenvalue [L, B]; NaN where no fixed point was found.
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
        """Returns (level, eigenvalue) of the sweep's largest eigenvalue; NaN for a sweep without."""
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
      at rho^2 = mu^2 - v. Such a crossing needs a symmetry. For other data the centre moves into
      one of the modes, and nothing crosses: its eigenvalue has a maximum below 1 (`peak`).
    - With `x`, final samples, the maximum that each sample belongs to is followed from the lowest
      level upwards, until it vanishes in a fold (saddle-node). Then the sample moves uphill to
      another maximum, which is followed in turn. A sampler that comes down makes these decisions in
      the opposite order.

    All of it is measured in u and rho, so the schedule does not matter. For a guided denoiser D is
    the guided estimate, whose fixed points are those of no density.

    Network calls: about 40 rows a level and followed point (`count` of them), and about 300 for each
    critical level at the default tolerance. `network_rows` is the number of a run.

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
        alive = np.zeros(batch, dtype=bool)
        before: list[_Point | None] = [None] * batch
        vectors: torch.Tensor | None = None
        for k, place in enumerate(self.places):
            came = self.u
            guess = came if alive.all() else torch.where(self._mask(alive), came, points.plain(came, place))
            made = points.newton(guess, place)
            value, vectors = points.top(made.u, place, vectors)
            values, good = value.cpu().numpy().copy(), made.good.cpu().numpy()
            smooth = (made.moved <= _JUMP * made.first + 1e-9 * place.rho).cpu().numpy()
            stable = np.ones(batch, dtype=bool) if self.falling else values < 1.0
            u = torch.where(self._mask(good), made.u, guess)
            for row in range(batch):
                here = slice(row, row + 1)
                last = before[row]
                well = bool(good[row] and stable[row])
                if last is not None and not (well and smooth[row]):
                    then = self._refine(row, last, place)
                    if then is None:  # it ended, and goes on at another fixed point
                        then = self._anew(row, u[here], last, place)
                        self.found.after.append(u[here] if then is None else then.u)
                    well = then is not None
                    if then is not None:
                        u[here], values[row], vectors[here] = then.u, then.value, then.direction
                now = _Point(u[here].clone(), place, float(values[row]), vectors[here].clone())
                if not well:
                    before[row] = None
                    continue
                if last is not None and self.falling and (last.value - 1.0) * (now.value - 1.0) < 0:
                    self._cross(row, last, now)
                before[row], curve[k, row] = now, now.value
            alive = np.array([point is not None for point in before])
            self.u = u
        return self._result(curve)

    def _mask(self, rows: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(rows, device=self.u.device).reshape(-1, *[1] * (self.u.dim() - 1))

    def _step(self, row: int, last: _Point, rho: float) -> _Point | None:
        """Returns the same fixed point at another level; None where it is not there."""
        points = self.single[row]
        place = points.place(rho)
        made = points.newton(last.u, place)
        if not bool(made.good) or not bool(made.moved <= _JUMP * made.first + 1e-9 * place.rho):
            return None
        value, direction = points.top(made.u, place, last.direction)
        if not self.falling and not float(value) < 1.0:
            return None
        return _Point(made.u, place, float(value), direction)

    def _refine(self, row: int, last: _Point, goal: Place) -> _Point | None:
        """Follows one point to a level in smaller steps; None, and a fold noted, if it ends."""
        whole = math.log(goal.rho / last.place.rho)
        step, end = 0.5 * whole, goal.rho
        while True:
            rest = math.log(end / last.place.rho)
            final = abs(step) >= abs(rest) * (1 - 1e-9)
            rho = end if final else last.place.rho * math.exp(step)
            next_to = self.single[row].place(rho).time in (last.place.time,)
            point = None if next_to else self._step(row, last, rho)
            if point is not None:
                last = point
                if final:
                    return point
                continue
            if next_to or abs(step) <= self.tolerance:
                self._note(row, last, FOLD, last.place.rho)
                return None
            step *= 0.5

    def _anew(self, row: int, u: torch.Tensor, last: _Point, place: Place) -> _Point | None:
        """Returns the fixed point that a row comes to after its own has ended."""
        points = self.single[row]
        made = points.newton(points.plain(last.u, place, 4 * 40), place)
        value, direction = points.top(made.u, place, None)
        if not bool(made.good) or (not self.falling and not float(value) < 1.0):
            return None
        return _Point(made.u, place, float(value), direction)

    def _cross(self, row: int, last: _Point, now: _Point) -> None:
        """Notes the level between two points at which the eigenvalue is 1 (Illinois method)."""
        a, b = last, now
        fa, fb, point = a.value - 1.0, b.value - 1.0, a
        for _ in range(60):
            width = math.log(b.place.rho / a.place.rho)
            share = min(max(fa / (fa - fb), 0.02), 0.98)
            found = self._step(row, a, a.place.rho * math.exp(share * width))
            if found is None or found.place.time in (a.place.time, b.place.time):
                break
            point, value = found, found.value - 1.0
            if value == 0.0 or abs(width) <= self.tolerance:
                break
            if value * fa > 0.0:
                a, fa, fb = found, value, 0.5 * fb
            else:
                b, fb, fa = found, value, 0.5 * fa
        self._note(row, point, CROSSING, point.place.rho)
        self.found.after.append(now.u)

    def _note(self, row: int, point: _Point, kind: str, rho: float) -> None:
        found = self.found
        found.levels.append(rho)
        found.rows.append(row)
        found.kinds.append(kind)
        found.eigenvalues.append(point.value)
        found.directions.append(point.direction)
        found.states.append(point.u)

    def _result(self, curve: np.ndarray) -> CriticalLevels:
        found, empty = self.found, self.u[:0]
        pictures = [
            torch.cat(parts) if parts else empty.clone()
            for parts in (found.directions, found.states, found.after)
        ]
        products = [self.points.products, *(single.products for single in self.single)]
        return CriticalLevels(
            np.array(found.levels, dtype=np.float64),
            np.array(found.rows, dtype=np.int64),
            found.kinds,
            np.array(found.eigenvalues, dtype=np.float64),
            *pictures,
            np.array([place.rho for place in self.places]),
            curve,
            self.u,
            self.points.products.method,
            sum(p.rows for p in products),
        )
