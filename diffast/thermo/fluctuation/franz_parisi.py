"""`franz_parisi`: the free energy of a posterior sample held at a distance from another one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.thermo.estimate import Estimate, mean_of
from diffast.thermo.mixture import GaussianMixture

# Deviations of the trapezoidal rule, and points along each of its two axes.
_REACH, _POINTS = 9.0, 401


class FranzParisi(NamedTuple):
    """A Franz-Parisi potential at one noise level.

    Attributes:
        q: [Q] squared distances.
        value: [Q] float64, V(q) in nats.
        error: [Q] standard errors; 0 for the quadrature.
        logs: [Q, N] ln Z of each sample, [Q, 0] for the quadrature.
    """

    q: np.ndarray
    value: np.ndarray
    error: np.ndarray
    logs: np.ndarray

    def difference(self, i: int, j: int) -> Estimate:
        """Returns V(q_i) - V(q_j), whose error is that of the difference: both have one sample."""
        if not self.logs.shape[1]:
            return Estimate(float(self.value[i] - self.value[j]), 0.0, 0)
        return mean_of(self.logs[j] - self.logs[i])


def franz_parisi(
    density: GaussianMixture,
    t: float,
    q: Any,
    *,
    schedule: Any = None,
    samples: int | None = None,
    seed: int = 0,
) -> FranzParisi:
    """Returns the Franz-Parisi potential of one-dimensional data in closed form.

    With x = alpha y + sigma eps a noised sample and y' a draw of the data given x,

        V(q) = -E_x E_y'|x ln int exp(-H(y|x)) delta(q - (y - y')^2) dy
        H(y|x) = (x - alpha y)^2 / (2 sigma^2) - ln p(y)

    (Franz and Parisi 1995; Yu and Huang 2025, eq. 70 to 79). In one dimension the integral is
    [exp(-H(y' + sqrt q)) + exp(-H(y' - sqrt q))] / (2 sqrt q). While noise is high V rises from its
    least value at once: all draws are of one state. A plateau or a second minimum at the distance
    of two modes tells that draws fall into different ones.

    Args:
        density: data with d = 1 and variances above 0.
        t: model time; without a schedule that of the Ornstein-Uhlenbeck process, alpha = exp(-t),
            sigma^2 = 1 - exp(-2 t).
        q: [Q] squared distances, above 0, in the unit of the data squared.
        schedule: whose alpha(t), sigma(t) are taken.
        samples: how many pairs (y', x) are drawn; None: the means are integrals by the trapezoidal
            rule, exact to about 1e-6.
        seed: of the samples.

    Raises:
        ValueError: data of more dimensions, or points; distances or levels that are not positive;
            fewer than 2 samples.
    """
    if density.d != 1:
        raise ValueError(
            f"franz_parisi: the data have d = {density.d}, but the shell of points at a distance "
            "is two points for d = 1 alone"
        )
    if not bool((density.variances > 0.0).all()):
        raise ValueError("franz_parisi: a variance is 0, but points (Dirac data) have no density")
    distances = np.atleast_1d(np.asarray(q, dtype=np.float64))
    if distances.ndim != 1 or not ((distances > 0.0) & np.isfinite(distances)).all():
        raise ValueError(f"franz_parisi: q = {q}, but squared distances above 0 are needed")
    alpha, sigma = _level(t, schedule)
    y, x, weight = _pairs(density, alpha, sigma, samples, seed)
    logs = torch.stack([_log_shell(density, y, x, r, alpha, sigma) for r in distances**0.5])
    if weight is not None:
        value = -(logs * weight).sum(1).numpy()
        return FranzParisi(distances, value, np.zeros_like(value), np.empty((len(value), 0)))
    found = [mean_of(-each) for each in logs]
    return FranzParisi(
        distances,
        np.array([each.value for each in found]),
        np.array([each.error for each in found]),
        logs.numpy(),
    )


def _level(t: float, schedule: Any) -> tuple[float, float]:
    t = float(t)
    if schedule is None:
        alpha, sigma = math.exp(-t), math.sqrt(max(-math.expm1(-2.0 * t), 0.0))
    else:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    if not (sigma > 0.0 and math.isfinite(alpha)):
        raise ValueError(
            f"franz_parisi: sigma = {sigma:g} at t = {t:g}, but a noise level above 0 is needed"
        )
    return alpha, sigma


def _pairs(density, alpha, sigma, samples, seed):
    """Returns (y' [N], x [N], weights [N] or None): y' is a draw of the data given x."""
    if samples is not None:
        if samples < 2:
            raise ValueError(f"franz_parisi: samples = {samples}, but 2 or more are needed")
        y = density.sample(samples, seed)[:, 0]
        drawn = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(samples, generator=drawn, dtype=torch.float64)
        return y, alpha * y + sigma * noise, None
    u = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    own = (-0.5 * u.square()).exp()
    own = own / own.sum()
    spread = density.variances[:, 0].sqrt()
    y = (density.means + spread[:, None] * u).reshape(-1)  # [K P]
    weight = (density.weights[:, None] * own).reshape(-1)
    x = alpha * y[:, None] + sigma * u
    pairs = weight[:, None] * own
    return y[:, None].expand_as(x).reshape(-1), x.reshape(-1), pairs.reshape(-1)


def _log_shell(density, y, x, distance, alpha, sigma) -> torch.Tensor:
    """Returns ln Z at a distance, [N]."""
    two = []
    for at in (y + distance, y - distance):
        energy = (x - alpha * at).square() / (2.0 * sigma**2)
        two.append(density.log_density(at[:, None]) - energy)
    return torch.stack(two).logsumexp(0) - math.log(2.0 * distance)
