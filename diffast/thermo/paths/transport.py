"""Optimal transport from noise to data as velocity fields, for `df.Denoiser.from_velocity`.

The map z -> T(z) of least mean squared distance carries N(0, sigma^2) to the data. Its path

    x(s) = (1 - s) z + s T(z),        s from 0 (noise) to 1 (data),

is walked at the constant velocity T(z) - z. No path between both ends has less action: c_2 is the
squared distance W2^2 = E|T(z) - z|^2. No scalar schedule has these marginals, unless the data are
normal with one variance in all directions.

A field is called as field(x=x, t=s), the convention of `from_velocity`, and `action` is its c_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast.plans.gaussian import Gaussian

# The one-dimensional map is tabulated between these quantiles of the noise, in deviations: beyond
# them 1 - F has lost its digits. The points are even in the data, where the map may be steep.
REACH, POINTS = 7.0, 20001
# More pairs than this are not assigned: the time grows like the cube of their number.
MOST_PAIRS = 5000


class GaussianTransport:
    """Optimal transport from N(0, sigma^2) to a normal law, in closed form.

    T(z) = mean + C^(1/2) z / sigma. Calling it returns the velocity [B, ...] at x [B, ...] and s.

    Args:
        law: mean and covariance of the data.
        sigma: deviation of the noise, unit of the data.

    Raises:
        ValueError: a sigma that is not positive.
    """

    def __init__(self, law: Gaussian, sigma: float = 1.0):
        """Keeps the gain along each axis."""
        self.law, self.sigma = law, _positive("GaussianTransport", sigma)
        self.gains = np.sqrt(law.variances) / self.sigma
        self.rest = math.sqrt(law.rest) / self.sigma

    @property
    def action(self) -> float:
        """Returns W2^2 = |mean|^2 + sum_i (sqrt(l_i) - sigma)^2, the c_2 of this path.

        For data with this mean and covariance and any law it is a lower bound of W2^2 (Gelbrich
        1990).
        """
        apart = np.sqrt(self.law.spectrum) - self.sigma
        return float((self.law.mean**2).sum() + (apart**2).sum())

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """Returns dx/ds at x [B, ...] and s = t, one for all or [B]."""
        s = _times(x, t)
        rows = x.reshape(len(x), -1)
        like = {"dtype": x.dtype, "device": x.device}
        mean = torch.as_tensor(self.law.mean.copy(), **like)
        basis = torch.as_tensor(self.law.basis.copy(), **like)
        gains = torch.as_tensor(self.gains, **like)
        apart = rows - s * mean  # ((1 - s) + s A) z
        along = apart @ basis.T
        own = (gains - 1.0) / (1.0 - s + s * gains)
        rest = (self.rest - 1.0) / (1.0 - s + s * self.rest)
        found = mean + rest * apart + ((own - rest) * along) @ basis
        return found.reshape(x.shape)


class MonotoneTransport:
    """Optimal transport from N(0, sigma^2) to a law on the line: the monotone map.

    T = F^-1(Phi(z / sigma)), tabulated out to 7 deviations and continued by straight lines. Calling
    it returns the velocity, shaped as x; elements are independent.

    Args:
        cdf: the distribution function F of the data, on float64 tensors [N].
        low: a point below which the law has no mass of note.
        high: a point above which it has none.
        sigma: deviation of the noise, unit of the data.

    Raises:
        ValueError: a sigma that is not positive; a function that does not rise from 0 at `low` to 1
            at `high`.
    """

    def __init__(
        self,
        cdf: Callable[[torch.Tensor], torch.Tensor],
        low: float,
        high: float,
        sigma: float = 1.0,
    ):
        """Tabulates the map."""
        self.sigma = _positive("MonotoneTransport", sigma)
        ends = cdf(torch.tensor([low, high], dtype=torch.float64))
        if not (float(ends[0]) < 1e-6 and float(ends[1]) > 1.0 - 1e-6):
            raise ValueError(
                f"MonotoneTransport: the distribution function is {float(ends[0]):g} at {low:g} "
                f"and {float(ends[1]):g} at {high:g}, but it must rise from 0 to 1 between them"
            )
        y = torch.linspace(low, high, POINTS, dtype=torch.float64)
        z = torch.special.ndtri(cdf(y).clamp(0.0, 1.0))
        # strictly rising, and no quantile further out than can be told
        sure = (z.abs() < REACH) & (z > torch.cat([z[:1] - 1.0, z.cummax(0).values[:-1]]))
        self.z, self.y = sigma * z[sure], y[sure]

    @classmethod
    def of(cls, data: Any, sigma: float = 1.0) -> MonotoneTransport:
        """Returns the map to samples [N] or [N, 1]: their quantiles, joined by straight lines.

        Raises:
            ValueError: fewer than 10 samples, samples of more than one element, or not finite.
        """
        rows = torch.as_tensor(np.asarray(data, dtype=np.float64)).reshape(len(data), -1)
        if len(rows) < 10 or rows.shape[1] != 1 or not bool(rows.isfinite().all()):
            raise ValueError(
                f"MonotoneTransport: {len(rows)} samples of {rows.shape[1]} elements, but at least "
                "10 finite ones of 1 element are needed"
            )
        made = cls.__new__(cls)
        made.sigma = _positive("MonotoneTransport", sigma)
        made.y = rows[:, 0].sort().values
        share = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
        made.z = sigma * torch.special.ndtri(share)
        return made

    def map(self, z: torch.Tensor) -> torch.Tensor:
        """Returns T(z), shaped as z."""
        return _lines(self.z.to(z), self.y.to(z), z)

    @property
    def action(self) -> float:
        """Returns W2^2 = E(T(z) - z)^2, the c_2 of this path, by the trapezoidal rule."""
        z = self.z / self.sigma
        density = (-0.5 * z.square()).exp() / math.sqrt(2.0 * math.pi)
        return float(torch.trapezoid(density * (self.y - self.z).square(), z))

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """Returns dx/ds at x [B] or [B, 1] and s = t, one for all or [B]."""
        s = _times(x, t)
        rows = x.reshape(len(x), -1)
        known, target = self.z.to(x), self.y.to(x)
        if bool((s == s[0]).all()):
            share = s[0]
            found = _lines((1.0 - share) * known + share * target, target - known, rows)
        else:
            found = torch.cat(
                [
                    _lines((1.0 - own) * known + own * target, target - known, row)
                    for own, row in zip(s, rows[:, None], strict=True)
                ]
            )
        return found.reshape(x.shape)


class SampledTransport:
    """Optimal transport between samples of noise and as many of the data, by assignment.

    The pairs (z_i, y_i) of least total squared distance are found by the Hungarian method
    (`scipy.optimize.linear_sum_assignment`). The velocity between them is a kernel average,
    sum_i K_i (y_i - z_i) / sum_i K_i, with a Gaussian K of x - x_i(s).

    Between samples of more than a few elements the assignment says little of the laws: its cost is
    then above W2^2 by an amount that falls like N^(-2/d).

    Args:
        data: [N, d].
        sigma: deviation of the noise.
        width: deviation of the kernel; None: the mean distance to the nearest other x_i(1/2).
        seed: of the noise.

    Raises:
        ImportError: without scipy.
        ValueError: fewer than 2 or more than 5,000 samples; samples that are not finite.
    """

    def __init__(self, data: Any, sigma: float = 1.0, width: float | None = None, seed: int = 0):
        """Finds the pairs."""
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise ImportError(
                "SampledTransport: needs scipy: pip install 'diffast[thermo]'"
            ) from None
        rows = torch.as_tensor(np.asarray(data, dtype=np.float64)).reshape(len(data), -1)
        if not 2 <= len(rows) <= MOST_PAIRS or not bool(rows.isfinite().all()):
            raise ValueError(
                f"SampledTransport: {len(rows)} samples, but 2 to {MOST_PAIRS} finite ones are "
                "needed"
            )
        drawn = torch.Generator().manual_seed(seed)
        z = torch.randn(rows.shape, generator=drawn, dtype=torch.float64)
        z = _positive("SampledTransport", sigma) * z
        cost = torch.cdist(z, rows).square()
        first, second = linear_sum_assignment(cost.numpy())
        self.sigma = float(sigma)
        self.z, self.y = z[first], rows[second]  # [N, d] each, in pairs
        if width is None:
            middle = 0.5 * (self.z + self.y)
            apart = torch.cdist(middle, middle).fill_diagonal_(math.inf)
            width = float(apart.amin(1).mean())
        self.width = _positive("SampledTransport", width)

    @property
    def action(self) -> float:
        """Returns the mean squared distance of the pairs, the c_2 of the path of these samples."""
        return float((self.y - self.z).square().sum(1).mean())

    def __call__(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        """Returns dx/ds at x [B, ...] and s = t, one for all or [B]."""
        s = _times(x, t)
        rows = x.reshape(len(x), -1)
        z, y = self.z.to(x), self.y.to(x)
        parts = []
        for own in s.unique():
            at = s[:, 0] == own
            apart = torch.cdist(rows[at], (1.0 - own) * z + own * y).square()
            weights = (-0.5 * apart / self.width**2).softmax(1)
            parts.append((at, weights @ (y - z)))
        found = torch.empty_like(rows)
        for at, part in parts:
            found[at] = part
        return found.reshape(x.shape)


def _lines(known, values, x):
    """Returns the piecewise linear function of points [N], continued by its end pieces, at x."""
    k = torch.searchsorted(known, x.contiguous()).clamp(1, len(known) - 1)
    left, right = known[k - 1], known[k]
    share = (x - left) / (right - left).clamp(min=1e-300)
    return values[k - 1] + share * (values[k] - values[k - 1])


def _times(x, t):
    s = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1)
    return s.expand(len(x)).reshape(-1, 1)


def _positive(who, value):
    if not 0.0 < value < math.inf:
        raise ValueError(f"{who}: {value} is given as a deviation, but it must be positive")
    return float(value)
