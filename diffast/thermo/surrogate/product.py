"""The exact denoiser of independent coordinates, a mixture of Gaussians each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffast.thermo.surrogate.laws import Law


class Product(torch.nn.Module):
    """The exact x0 estimate of K independent coordinates, as a network for a schedule.

    It is called on x [B, K] and model times [B], and returns E[x0 | x] [B, K] in x's dtype.

    Args:
        laws: [K] of the coordinates.
        scales: [K] their deviations.
        schedule: says alpha and sigma at a model time.
        own_error: (levels rho [M] rising, rms errors [M]) of an imperfect network: its estimate is
            off by a smooth field of x of that size. None: the estimate is exact.
    """

    def __init__(
        self,
        laws: Sequence[Law],
        scales: Any,
        schedule: Any,
        own_error: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """Puts the components of all coordinates into arrays [K, C]."""
        super().__init__()
        self.schedule, self.own_error = schedule, own_error
        most = max(len(law.weights) for law in laws)
        logs = np.full((len(laws), most), -np.inf)
        means, variances = np.zeros_like(logs), np.ones_like(logs)
        for k, (law, scale) in enumerate(zip(laws, scales, strict=True)):
            own = slice(len(law.weights))
            logs[k, own] = np.log(law.weights)
            means[k, own] = scale * np.array(law.means)
            variances[k, own] = scale**2 * np.array(law.variances)
        self.spread = torch.as_tensor(np.asarray(scales, dtype=np.float64)).square()
        self.phase = 2.4 * torch.arange(len(laws), dtype=torch.float64)  # of the error fields
        self.logs, self.means, self.variances = map(torch.from_numpy, (logs, means, variances))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns the x0 estimate [B, K]; where sigma = 0 that is x / alpha."""
        times = t.detach().cpu().double().numpy().reshape(-1)
        if (times == times[0]).all():  # the usual call: one level for all rows
            times = times[:1]
        alpha, sigma = (
            torch.from_numpy(np.atleast_1d(np.asarray(f(times), dtype=np.float64)))[:, None, None]
            for f in (self.schedule.alpha, self.schedule.sigma)
        )
        noise = sigma.clamp(min=1e-150).square()
        total = alpha.square() * self.variances + noise  # [B or 1, K, C]
        y = x.double()[:, :, None]
        logs = self.logs - 0.5 * ((y - alpha * self.means).square() / total + total.log())
        own = (alpha * self.variances * y + noise * self.means) / total
        made = (logs.softmax(2) * own).sum(2)
        if self.own_error is not None:
            made = made + self._error(x.double(), alpha[:, :, 0], sigma[:, :, 0])
        return made.to(x.dtype)

    def _error(self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the error field [B, K]: a sine of the state in units of its own deviation."""
        assert self.own_error is not None
        rho = (sigma / alpha.clamp(min=1e-150)).numpy()
        size = torch.from_numpy(np.interp(rho, *self.own_error))
        deviation = (alpha.square() * self.spread + sigma.square()).clamp(min=1e-300).sqrt()
        return math.sqrt(2.0) * size * torch.sin(2.0 * x / deviation + self.phase)
