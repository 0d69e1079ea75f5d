"""The linear equations of a fit: all intervals between snapshots, summed.

Between snapshots x (earlier) and y (later) with the coupling gamma, the residual is

    R = (y - x) / tau + sum_j theta_j F_j

where F_j are the gradients of the features of V, the mean gradients of those of U over the other
particles, and grad log rho, whose coefficient is beta. The scheme says where F stands: "implicit"
at y, as in the JKO scheme, whose error is of first order in tau for snapshots of the continuous
dynamics; "trapezoid" half at x and half at y, whose error is of second order.

Form "least squares": minimise sum over intervals of tau E |R|^2. grad log rho has to be estimated,
and its error is that of the temperature.

Form "weak": sum of tau E[g_i R] = 0 for as many fields g_i as there are unknowns; the fields are
the F_j themselves. Where F_j is grad log rho, integration by parts takes it away:
E[g grad log rho] = -E[div g]. What was estimated is then only a field to project on. It costs
accuracy where it is bad, but adds no bias of first order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffast.thermo.jko.coupling import couple
from diffast.thermo.jko.density import Density, score_of
from diffast.thermo.jko.potentials import Features
from diffast.thermo.jko.snapshots import Snapshots

SCHEMES = ("implicit", "trapezoid")
FORMS = ("weak", "least squares")

# Differences of particles that are held at once.
PAIRS = 200_000


@dataclass(frozen=True)
class Model:
    """What is unknown: V, U, and the temperature.

    Args:
        potential: features of V; None: none.
        interaction: features of U; None: none.
        internal: functions of the time that the temperature is a sum of.
        known: temperature, where it is given; it is then no unknown.
    """

    potential: Features | None
    interaction: Features | None
    internal: tuple[Callable[[float], float], ...]
    known: float | None = None

    def names(self, d: int) -> tuple[str, ...]:
        """Returns the names of the unknowns, and of a known temperature."""
        names = ()
        if self.potential is not None:
            names += tuple(f"V: {name}" for name in self.potential.names(d))
        if self.interaction is not None:
            names += tuple(f"U: {name}" for name in self.interaction.names(d))
        several = len(self.internal) > 1
        return names + tuple(
            f"temperature b{k}(t)" if several else "temperature" for k in range(len(self.internal))
        )

    def fields(self, x: np.ndarray, t: float, density: Density) -> tuple[np.ndarray, np.ndarray]:
        """Returns the fields F [n, d, J] at the samples, and their divergences [n, J]."""
        fields, divergences = [], []
        if self.potential is not None:
            fields.append(self.potential.gradient(x, t))
            divergences.append(self.potential.laplacian(x, t))
        if self.interaction is not None:
            found = mean_pull(self.interaction, x, t)
            fields.append(found[0])
            divergences.append(found[1])
        if self.internal:
            score, spread = score_of(x, t, density)
            for function in self.internal:
                fields.append(float(function(t)) * score[:, :, None])
                divergences.append(float(function(t)) * spread[:, None])
        return np.concatenate(fields, 2), np.concatenate(divergences, 1)


class Equations(NamedTuple):
    """matrix theta = side, and what the residual is computed of.

    Attributes:
        matrix: [J, J].
        side: [J], minus the sum of E[F_i (y - x)].
        gram: [J, J], sum of tau E[F_i F_j].
        speed: sum of E|y - x|^2 / tau.
    """

    matrix: np.ndarray
    side: np.ndarray
    gram: np.ndarray
    speed: float

    def residual(self, theta: np.ndarray) -> float:
        """Returns sqrt(sum tau E|R|^2 / sum tau E|(y - x) / tau|^2)."""
        square = theta @ self.gram @ theta - 2.0 * theta @ self.side + self.speed
        return float(np.sqrt(max(square, 0.0) / self.speed)) if self.speed > 0 else 0.0


def equations(
    model: Model, given: Snapshots, coupling: str, scheme: str, form: str, density: Density
) -> list[Equations]:
    """Returns the equations of each interval; a fit solves their sum, see `summed`.

    Raises:
        ValueError: what couplings, densities and features raise.
    """
    ends = [
        model.fields(x, float(t), density) for x, t in zip(given.samples, given.times, strict=True)
    ]
    first, found = ends[0][0].shape[2] - len(model.internal), []
    factors = [[float(f(t)) for f in model.internal] for t in given.times]
    for k, tau in enumerate(np.diff(given.times)):
        x, y = given.samples[k], given.samples[k + 1]
        pairs = couple(x, y, coupling)
        moved = y[pairs.second] - x[pairs.first]
        speed = float((pairs.weight * np.square(moved).sum(1)).sum() / tau)
        F = ends[k + 1][0][pairs.second]
        by_parts = _by_parts(ends[k + 1][1], factors[k + 1])
        if scheme == "trapezoid":
            early = ends[k][0][pairs.first]
            # E[a b] of means over both ends is the mean of both E[a b], less E[da db] / 4. Where a
            # is the score too, the last part would be mostly the noise of two estimates.
            by_parts = 0.5 * (by_parts + _by_parts(ends[k][1], factors[k]))
            turned = 0.5 * (F - early)
            heavy = turned[:, :, :first] * pairs.weight[:, None, None]
            by_parts[:first] -= _inner(heavy, turned[:, :, first:])
            F = 0.5 * (F + early)
        heavy = F * pairs.weight[:, None, None]
        products = _inner(heavy, F)
        pull = -_inner(heavy, moved[:, :, None])[:, 0]
        matrix = np.concatenate([products[:, :first], by_parts], 1)
        matrix = tau * (matrix if form == "weak" else products)
        found.append(Equations(matrix, pull, tau * products, speed))
    return found


def summed(found: list[Equations]) -> Equations:
    """Returns the equations of all intervals."""
    parts = zip(*found, strict=True)
    return Equations(*(sum(part) for part in parts))  # pyright: ignore


def _by_parts(spread: np.ndarray, factors: list[float]) -> np.ndarray:
    """Returns E[F_i grad log rho] of a snapshot times each factor, without the score."""
    return -spread.mean(0)[:, None] * np.array(factors)[None]


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the sums over samples and elements of a_i b_j, [I, J]."""
    if not (a.shape[2] and b.shape[2]):  # no potential, or no temperature
        return np.zeros((a.shape[2], b.shape[2]))
    return a.reshape(-1, a.shape[2]).T @ b.reshape(-1, b.shape[2])


def mean_pull(
    interaction: Features, x: np.ndarray, t: float, others: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of grad U(x - x') over x', [n, d, J], and of its Laplacian [n, J].

    Without `others` the mean is over the other samples of x itself.
    """
    n, d = x.shape
    own = others is None
    far = x if others is None else others
    step = max(1, PAIRS // len(far))
    pulls, spreads = [], []
    share = len(far) - own
    for at in range(0, n, step):
        part = x[at : at + step]
        apart = (part[:, None] - far).reshape(-1, d)
        pull = interaction.gradient(apart, t).reshape(len(part), len(far), d, -1)
        spread = interaction.laplacian(apart, t).reshape(len(part), len(far), -1)
        if own:  # a particle does not pull itself
            rows = np.arange(len(part))
            pull[rows, at + rows], spread[rows, at + rows] = 0.0, 0.0
        pulls.append(pull.sum(1) / share)
        spreads.append(spread.sum(1) / share)
    return np.concatenate(pulls), np.concatenate(spreads)


def solve(
    found: Equations, names: tuple[str, ...], known: float | None, ridge: float
) -> tuple[np.ndarray, float]:
    """Returns (theta [J], condition number of the equations, each unknown scaled to size 1).

    A known temperature is the last of theta, and stays.

    Raises:
        ValueError: a feature whose gradient is 0 at every sample.
    """
    size = np.sqrt(np.diag(found.gram))
    if not (size > 0).all():
        j = int(np.argmin(size))
        raise ValueError(f"fit_jko: the gradient of {names[j]} is 0 at every sample: leave it out")
    free = len(size) - (known is not None)
    matrix, side = found.matrix[:free, :free], found.side[:free]
    if known is not None:
        side = side - known * found.matrix[:free, free]
    scaled = matrix / size[:free, None] / size[:free]
    # A weak form may look better than the features are told apart: the larger of both counts.
    gram = found.gram[:free, :free] / size[:free, None] / size[:free]
    condition = float(max(np.linalg.cond(gram), np.linalg.cond(scaled)))
    scaled = scaled + ridge * np.eye(free)
    if np.linalg.cond(scaled) > 1e15:
        theta = np.full(free, np.nan)
    else:
        theta = np.linalg.solve(scaled, side / size[:free]) / size[:free]
    return (theta if known is None else np.append(theta, known)), condition
