"""Features of a potential: functions with gradients and Laplacians, which a fit makes a sum of.

    df.thermo.potentials.polynomials(4)                        monomials up to degree 4
    df.thermo.potentials.radial(centres, 0.5)                  Gaussian bumps
    df.thermo.potentials.random_fourier(50, length=1.0)        cosines of random frequencies
    df.thermo.potentials.from_gradients(gradient, count=2)     the caller's own
    polynomials(2) + radial(centres, 0.5)                      both
    polynomials(2).in_time(lambda t: 1.0, lambda t: t)         coefficients that depend on time

An interaction U takes features of the difference of two particles. They have to be even functions:
`polynomials(4, even=True)`, or `radial` around 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod
from typing import Any

import numpy as np

__all__ = ["Features", "from_gradients", "polynomials", "radial", "random_fourier"]

Function = Callable[[float], float]


class Features:
    """J functions of a point [d] and the time. Build them with the functions of this module.

    All methods take points x [n, d] float64 and a time t.
    """

    def names(self, d: int) -> tuple[str, ...]:
        """Returns the J names, for points of d elements.

        Raises:
            ValueError: features that are made for another d.
        """
        raise NotImplementedError

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the values [n, J].

        Raises:
            ValueError: features that are known by their gradients alone.
        """
        raise NotImplementedError

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the gradients [n, d, J]."""
        raise NotImplementedError

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the Laplacians [n, J]."""
        raise NotImplementedError

    def __add__(self, other: Features) -> Features:
        """Returns the features of both."""
        return _Sum((self, other))

    def in_time(self, *functions: Function) -> Features:
        """Returns every feature times every function of the time, J times as many as functions."""
        if not functions or not all(callable(f) for f in functions):
            raise ValueError("in_time: give one or more functions of the time")
        return _InTime(self, functions)


def polynomials(degree: int, *, even: bool = False) -> Features:
    """Returns all monomials of degree 1 to `degree`, each divided by its factorials.

    A coefficient is therefore the derivative of V at 0: in one dimension V = a x + k x^2 / 2 + ...
    The constant is left out, for no force shows it.

    Args:
        degree: of the highest monomial.
        even: whether odd degrees are left out, as for an interaction.

    Raises:
        ValueError: a degree below 1, or below 2 with even.
    """
    if degree < 1 + even:
        raise ValueError(f"polynomials: degree = {degree}, but it must be {1 + even} or more")
    return _Polynomials(int(degree), bool(even))


def radial(centres: Any, width: Any) -> Features:
    """Returns bumps exp(-|x - c|^2 / (2 w^2)), one a centre.

    Args:
        centres: [J, d], or [J] for d = 1.
        width: w, a number or [J].

    Raises:
        ValueError: centres that are not finite; widths that are not positive, or not one a centre.
    """
    points = np.asarray(centres, dtype=np.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"radial: centres are {points.shape}, but must be finite [J, d]")
    widths = np.asarray(width, dtype=np.float64)
    if widths.shape not in ((), (len(points),)) or not (widths > 0).all():
        raise ValueError(
            f"radial: width has shape {widths.shape}, but {len(points)} centres need one positive "
            "number, or one each"
        )
    return _Radial(points, np.broadcast_to(widths, len(points)))


def random_fourier(count: int, length: float, seed: int = 0) -> Features:
    """Returns cosines cos(w x / length + b) with w ~ N(0, I) and b uniform in [0, 2 pi].

    Sums of many of them approach functions that vary over `length` (Rahimi and Recht 2007, "Random
    features for large-scale kernel machines").

    Args:
        count: J.
        length: over which the functions vary, in the unit of x.
        seed: of the frequencies.

    Raises:
        ValueError: a count below 1, or a length that is not positive.
    """
    if count < 1 or not length > 0:
        raise ValueError(
            f"random_fourier: count = {count} and length = {length}, but both must be positive"
        )
    return _Fourier(int(count), float(length), int(seed))


def from_gradients(
    gradient: Callable[[np.ndarray, float], Any],
    count: int,
    *,
    value: Callable[[np.ndarray, float], Any] | None = None,
    laplacian: Callable[[np.ndarray, float], Any] | None = None,
    names: Sequence[str] | None = None,
) -> Features:
    """Returns the caller's own features, known by their gradients.

    The gradients may be any vector fields: minus a drift that was designed is one feature, whose
    coefficient is 1 where the particles follow it.

    Args:
        gradient: returns [n, d, J] at points [n, d] and a time.
        count: J.
        value: returns [n, J]; needed to ask for the potential itself, and nowhere else.
        laplacian: returns [n, J]; None: central differences of the gradient, 2 d evaluations.
        names: J names.

    Raises:
        ValueError: names that do not count the features.
    """
    named = tuple(f"f{j}" for j in range(count)) if names is None else tuple(names)
    if len(named) != count or count < 1:
        raise ValueError(f"from_gradients: {len(named)} names, but count = {count}")
    return _Own(gradient, named, value, laplacian)


@dataclass(frozen=True)
class _Polynomials(Features):
    degree: int
    even: bool

    def _powers(self, d: int) -> list[tuple[int, ...]]:
        degrees = range(2, self.degree + 1, 2) if self.even else range(1, self.degree + 1)
        found = []
        for degree in degrees:
            for chosen in combinations_with_replacement(range(d), degree):
                found.append(tuple(chosen.count(i) for i in range(d)))
        return found

    def names(self, d: int) -> tuple[str, ...]:
        """Returns names such as x1^2 x2 / 2: the monomials with their factorials."""
        letter = ["x"] if d == 1 else [f"x{i + 1}" for i in range(d)]
        found = []
        for powers in self._powers(d):
            under = prod(factorial(p) for p in powers)
            parts = zip(letter, powers, strict=True)
            name = " ".join(v if p == 1 else f"{v}^{p}" for v, p in parts if p)
            found.append(name if under == 1 else f"{name} / {under}")
        return tuple(found)

    def _made(self, x: np.ndarray, lowered: Sequence[int]) -> np.ndarray:
        """Returns the monomials [n, J], differentiated once for each index of `lowered`."""
        columns = []
        for powers in self._powers(x.shape[1]):
            left = [p - lowered.count(i) for i, p in enumerate(powers)]
            if min(left) < 0:
                columns.append(np.zeros(len(x)))
                continue
            scale = np.prod([float(factorial(p)) for p in left])
            columns.append(np.prod(x ** np.array(left), axis=1) / scale)
        return np.stack(columns, 1)

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the monomials."""
        return self._made(x, [])

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their gradients."""
        return np.stack([self._made(x, [i]) for i in range(x.shape[1])], 1)

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their Laplacians."""
        return sum(self._made(x, [i, i]) for i in range(x.shape[1]))  # pyright: ignore


@dataclass(frozen=True, eq=False)
class _Radial(Features):
    centres: np.ndarray
    widths: np.ndarray

    def names(self, d: int) -> tuple[str, ...]:
        """Returns names with the centres."""
        if d != self.centres.shape[1]:
            raise ValueError(
                f"radial: the centres have {self.centres.shape[1]} elements, but the points {d}"
            )
        texts = [",".join(f"{v:.3g}" for v in centre) for centre in self.centres]
        return tuple(f"bump({t};{w:.3g})" for t, w in zip(texts, self.widths, strict=True))

    def _apart(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apart = (x[:, :, None] - self.centres.T) / self.widths  # [n, d, J]
        return apart, np.exp(-0.5 * np.square(apart).sum(1))

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the bumps."""
        return self._apart(x)[1]

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their gradients."""
        apart, bump = self._apart(x)
        return -apart / self.widths * bump[:, None]

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their Laplacians."""
        apart, bump = self._apart(x)
        return bump * (np.square(apart).sum(1) - x.shape[1]) / self.widths**2


@dataclass(frozen=True)
class _Fourier(Features):
    count: int
    length: float
    seed: int

    def names(self, d: int) -> tuple[str, ...]:
        """Returns numbered names."""
        return tuple(f"cos{j}" for j in range(self.count))

    def _waves(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.random.default_rng(self.seed)
        w = drawn.standard_normal((x.shape[1], self.count)) / self.length
        return w, x @ w + drawn.uniform(0.0, 2.0 * np.pi, self.count)

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the cosines."""
        return np.cos(self._waves(x)[1])

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their gradients."""
        w, phase = self._waves(x)
        return -w * np.sin(phase)[:, None]

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns their Laplacians."""
        w, phase = self._waves(x)
        return -np.square(w).sum(0) * np.cos(phase)


@dataclass(frozen=True, eq=False)
class _Own(Features):
    given: Callable[[np.ndarray, float], Any]
    named: tuple[str, ...]
    values: Callable[[np.ndarray, float], Any] | None
    laplacians: Callable[[np.ndarray, float], Any] | None

    def names(self, d: int) -> tuple[str, ...]:
        """Returns the given names."""
        return self.named

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the given values."""
        if self.values is None:
            raise ValueError(
                "from_gradients: the potential was asked for, but only gradients are known: give "
                "value="
            )
        return _shaped("value", self.values(x, t), (len(x), len(self.named)))

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the given gradients."""
        return _shaped("gradient", self.given(x, t), (*x.shape, len(self.named)))

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the given Laplacians, or those by differences."""
        if self.laplacians is not None:
            return _shaped("laplacian", self.laplacians(x, t), (len(x), len(self.named)))
        return divergence_of(lambda points: self.gradient(points, t), x)


@dataclass(frozen=True)
class _Sum(Features):
    parts: tuple[Features, ...]

    def names(self, d: int) -> tuple[str, ...]:
        """Returns the names of all parts."""
        return tuple(name for part in self.parts for name in part.names(d))

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the values of all parts."""
        return np.concatenate([part.value(x, t) for part in self.parts], -1)

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the gradients of all parts."""
        return np.concatenate([part.gradient(x, t) for part in self.parts], -1)

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the Laplacians of all parts."""
        return np.concatenate([part.laplacian(x, t) for part in self.parts], -1)


@dataclass(frozen=True)
class _InTime(Features):
    part: Features
    functions: tuple[Function, ...]

    def names(self, d: int) -> tuple[str, ...]:
        """Returns every name with the number of the function of the time."""
        numbers = range(len(self.functions))
        return tuple(f"{name} b{k}(t)" for k in numbers for name in self.part.names(d))

    def _times(self, made: np.ndarray, t: float) -> np.ndarray:
        return np.concatenate([made * float(f(t)) for f in self.functions], -1)

    def value(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the values times the functions."""
        return self._times(self.part.value(x, t), t)

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the gradients times the functions."""
        return self._times(self.part.gradient(x, t), t)

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the Laplacians times the functions."""
        return self._times(self.part.laplacian(x, t), t)


def divergence_of(field: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Returns the divergence [n, J] of a field [n, d, J], by central differences."""
    step = 1e-5 * max(float(np.abs(x).max()), 1.0)
    total = 0.0
    for i in range(x.shape[1]):
        moved = np.zeros(x.shape[1])
        moved[i] = step
        total = total + (field(x + moved)[:, i] - field(x - moved)[:, i]) / (2.0 * step)
    return np.asarray(total)


def _shaped(what: str, made: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(made, dtype=np.float64)
    if found.shape != shape:
        raise ValueError(
            f"from_gradients: {what} returned {list(found.shape)}, but {list(shape)} is needed"
        )
    return found
