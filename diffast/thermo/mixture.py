"""`GaussianMixture`: data with a closed form at every noise level, to test methods on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from diffast.model.denoiser import Denoiser


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, noised in closed form: x = alpha y + sigma eps.

    Everything is float64 torch. Level arguments are numbers or tensors [B].

        two = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)      1-D, two modes
        grid = GaussianMixture(None, means, covs)                 equal weights, [K, d], [K, d, d]

    Args:
        weights: [K], positive; they are divided by their sum. None: all equal.
        means: [K] (d = 1) or [K, d].
        variances: one number; [K], isotropic; [K, d], diagonal; or [K, d, d], full covariances. 0
            is allowed: points.

    Raises:
        ValueError: for shapes that disagree, weights that are not positive, or covariances that are
            not symmetric with eigenvalues >= 0.
    """

    def __init__(self, weights: Any, means: Any, variances: Any):
        """Keeps eigenvalues and eigenvectors of each covariance."""
        means = torch.as_tensor(np.asarray(means, dtype=np.float64))
        self.means = means.reshape(-1, 1) if means.dim() == 1 else means  # [K, d]
        if self.means.dim() != 2 or not len(self.means):
            raise ValueError(f"GaussianMixture: means are {list(means.shape)}, not [K] or [K, d]")
        count, d = self.means.shape
        chosen = np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64)
        if chosen.shape != (count,) or not (chosen > 0).all() or not np.isfinite(chosen).all():
            raise ValueError(
                f"GaussianMixture: weights are {chosen.tolist()}, but {count} positive ones are "
                "needed, one a mean"
            )
        self.weights = torch.as_tensor(chosen / chosen.sum())  # [K]
        self.variances, self.axes = _eigen(variances, count, d)  # [K, d], [K, d, d] (columns)

    @property
    def d(self) -> int:
        """Returns the number of dimensions."""
        return self.means.shape[1]

    @property
    def mean(self) -> torch.Tensor:
        """Returns the mean [d]."""
        return self.weights @ self.means

    @property
    def covariance(self) -> torch.Tensor:
        """Returns the covariance [d, d]."""
        own = torch.einsum("kij,kj,klj->kil", self.axes, self.variances, self.axes)
        apart = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, own + apart[:, :, None] * apart[:, None])

    @property
    def energy(self) -> float:
        """Returns E|y|^2."""
        return float(self.covariance.trace() + self.mean.square().sum())

    def sample(self, count: int, seed: int = 0) -> torch.Tensor:
        """Returns samples [count, d] float64."""
        drawn = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=drawn)
        z = torch.randn(count, self.d, generator=drawn, dtype=torch.float64)
        moved = torch.einsum("bij,bj->bi", self.axes[which], self.variances[which].sqrt() * z)
        return self.means[which] + moved

    def log_density(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> torch.Tensor:
        """Returns log p(x) [B] of x [B, d] at a noise level."""
        return self._parts(*self._at(x, alpha, sigma))[0].logsumexp(1)

    def responsibilities(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> torch.Tensor:
        """Returns P(component | x), [B, K]."""
        return self._parts(*self._at(x, alpha, sigma))[0].softmax(1)

    def score(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> torch.Tensor:
        """Returns grad log p(x), [B, d]."""
        x, alpha, sigma = self._at(x, alpha, sigma)
        logs, turned, total = self._parts(x, alpha, sigma)
        own = -torch.einsum("kij,bkj->bki", self.axes, turned / total)  # [B, K, d]
        return torch.einsum("bk,bki->bi", logs.softmax(1), own)

    def x0(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> torch.Tensor:
        """Returns E[y | x], [B, d]: the exact x0 estimate."""
        x, alpha, sigma = self._at(x, alpha, sigma)
        logs, turned, total = self._parts(x, alpha, sigma)
        return torch.einsum("bk,bki->bi", logs.softmax(1), self._own_x0(alpha, turned, total))

    def posterior_covariance(self, x: Any, alpha: Any = 1.0, sigma: Any = 0.0) -> torch.Tensor:
        """Returns Cov[y | x], [B, d, d]. The Jacobian of x0(x) is alpha / sigma^2 times it."""
        x, alpha, sigma = self._at(x, alpha, sigma)
        logs, turned, total = self._parts(x, alpha, sigma)
        chosen, own = logs.softmax(1), self._own_x0(alpha, turned, total)
        # sigma^2 v / (alpha^2 v + sigma^2) along each axis of a component
        left = sigma.square()[:, None, None] * self.variances / total
        inner = torch.einsum("kij,bkj,klj->bkil", self.axes, left, self.axes)
        apart = own - torch.einsum("bk,bki->bi", chosen, own)[:, None]
        return torch.einsum(
            "bk,bkij->bij", chosen, inner + apart[..., :, None] * apart[..., None, :]
        )

    def mmse(self, rho: Any, points: int = 4001) -> np.ndarray:
        """Returns E|y - E[y|x]|^2 at noise levels rho = sigma / alpha, by quadrature; d = 1.

        The trapezoidal rule over x, 12 deviations beyond the outer components: about 1e-12 exact.

        Raises:
            ValueError: d > 1, where no quadrature is made: average `posterior_covariance` over
                samples.
        """
        if self.d != 1:
            raise ValueError(f"GaussianMixture: mmse by quadrature needs d = 1, but d = {self.d}")
        levels, found = np.asarray(rho, dtype=np.float64), []
        for level in levels.reshape(-1).tolist():
            # Points are near every component: its own grid, weighted by its own density.
            spread = (self.variances[:, 0] + level**2).sqrt()
            u = torch.linspace(-12.0, 12.0, points, dtype=torch.float64)
            density = (-0.5 * u.square()).exp() / math.sqrt(2.0 * math.pi) * (u[1] - u[0])
            total = 0.0
            for k in range(len(self.means)):
                x = self.means[k] + spread[k] * u[:, None]
                inner = self.posterior_covariance(x, 1.0, level)[:, 0, 0]
                total += float(self.weights[k] * (density * inner).sum())
            found.append(total)
        return np.array(found).reshape(levels.shape)

    def denoiser(self, schedule: Any) -> Denoiser:
        """Returns the exact denoiser of the mixture for a schedule; states are [B, d]."""
        return Denoiser(_Exact(self, schedule), schedule, predicts="x0")

    def _at(self, x, alpha, sigma):
        x = torch.as_tensor(x, dtype=torch.float64)
        x = x.reshape(-1, self.d) if x.dim() < 2 else x
        if x.shape[1:] != (self.d,):
            raise ValueError(f"GaussianMixture: x is {list(x.shape)}, not [B, {self.d}]")
        level = [torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (alpha, sigma)]
        return x, *level

    def _parts(self, x, alpha, sigma):
        """Returns (log of weight times density [B, K], x in each component's axes, variances)."""
        total = alpha.square()[:, None, None] * self.variances + sigma.square()[:, None, None]
        apart = x[:, None] - alpha[:, None, None] * self.means
        turned = torch.einsum("kij,bki->bkj", self.axes, apart)  # [B, K, d]
        logs = -0.5 * (turned.square() / total + (2.0 * math.pi * total).log()).sum(2)
        return logs + self.weights.log(), turned, total

    def _own_x0(self, alpha, turned, total):
        gain = alpha[:, None, None] * self.variances / total
        return self.means + torch.einsum("kij,bkj->bki", self.axes, gain * turned)


class _Exact(torch.nn.Module):
    """The exact x0 estimate as a network: called on x [B, d] and model times [B]."""

    def __init__(self, mixture: GaussianMixture, schedule: Any):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns E[y | x] [B, d]; where sigma = 0 that is x / alpha."""
        schedule = self.schedule
        ends = sorted((float(schedule.t_start), float(schedule.t_end)))
        # A float32 time may lie beyond the schedule's end by its rounding.
        times = t.detach().cpu().double().numpy()
        near = np.clip(times, ends[0], ends[1])
        times = np.where(np.abs(times - near) <= 1e-6 * ends[1], near, times)
        alpha, sigma = (torch.as_tensor(f(times)) for f in (schedule.alpha, schedule.sigma))
        made = self.mixture.x0(x.double(), alpha, sigma.clamp(min=1e-150))
        return made.to(x.dtype)


def _eigen(variances, count, d):
    """Returns (eigenvalues [K, d], eigenvectors [K, d, d]) of K covariances."""
    given = torch.as_tensor(np.asarray(variances, dtype=np.float64))
    plain = torch.eye(d, dtype=torch.float64).expand(count, d, d)
    if given.dim() == 3:
        if given.shape != (count, d, d) or not torch.allclose(given, given.mT, atol=1e-12):
            raise ValueError(
                f"GaussianMixture: covariances are {list(given.shape)}, but symmetric ones "
                f"[{count}, {d}, {d}] are needed"
            )
        values, axes = torch.linalg.eigh(given)
        values = values.clamp(min=0.0) if bool((values > -1e-12).all()) else values
    else:
        shape = {0: (1, 1), 1: (count, 1)}.get(given.dim(), tuple(given.shape))
        try:
            values, axes = given.reshape(shape).expand(count, d), plain
        except RuntimeError:
            raise ValueError(
                f"GaussianMixture: variances are {list(given.shape)}, but there are {count} means "
                f"of {d} elements"
            ) from None
    if not bool((values >= 0).all()):
        raise ValueError(
            f"GaussianMixture: a variance is {float(values.min()):g}, but it must be 0 or more"
        )
    return values.contiguous(), axes.contiguous()
