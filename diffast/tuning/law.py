"""The error of a stochastic plan: how far the law of its samples is from that of the teacher's."""

from __future__ import annotations

import math

import torch

from diffast.tuning.judge import Features, features_of, spread_of

# Directions that samples are projected on.
_DIRECTIONS = 64


class LawJudge:
    """Sliced Wasserstein-2 distances to the teacher's samples, relative to their spread.

    In one dimension the distance is that of sorted samples, so it has residuals: those of the
    samples' projections on fixed directions (Bonneel et al. 2015, "Sliced and Radon Wasserstein
    barycenters of measures"). Features of one dimension are projected on themselves.

    Args:
        wanted: the teacher's samples [B, ...].
        features: what is compared, a function of samples; None: the samples themselves.
        seed: of the directions.
        device: where the features are computed.
    """

    def __init__(
        self,
        wanted: torch.Tensor,
        features: Features | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        """Works out the directions, and the teacher's sorted projections."""
        self.features, self.device = features, device
        flat = self._seen(wanted)
        size = flat.shape[1]
        drawn = torch.Generator("cpu").manual_seed(seed % 2**63)
        shape, how = (_DIRECTIONS, size), {"dtype": torch.float64, "device": "cpu"}
        directions = torch.randn(shape, generator=drawn, **how)
        if size == 1:
            directions = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        directions = directions / directions.norm(dim=1, keepdim=True)
        self.directions = directions.float().T
        # A projection holds the share 1 / size of the squared spread.
        self.spread = spread_of(flat)
        self.wanted = (flat @ self.directions).sort(0).values

    def _seen(self, x: torch.Tensor) -> torch.Tensor:
        if self.features is not None:
            x = features_of(self.features, x.to(self.device))
        x = x.cpu()
        return x.reshape(len(x), -1).float()

    def error(self, x: torch.Tensor, rows: slice = slice(None)) -> float:
        """Returns the sliced distance over the spread; infinity if not finite."""
        del rows  # the law has no rows
        found = float(self._gaps(x).double().square().mean().sqrt())
        return found if math.isfinite(found) else math.inf

    def residual(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Returns [B, F] of gaps between sorted projections; row i is the rank i."""
        del ids
        return self._gaps(x)

    def _gaps(self, x: torch.Tensor) -> torch.Tensor:
        flat = self._seen(x)
        if not flat.isfinite().all():
            return torch.full((len(flat), self.wanted.shape[1]), math.nan, device="cpu")
        made = (flat @ self.directions).sort(0).values
        return (made - _quantiles(self.wanted, len(made))) / self.spread


def _quantiles(values: torch.Tensor, count: int) -> torch.Tensor:
    """Returns sorted values [N, K] at the ranks of `count` samples, linear between neighbours."""
    if len(values) == count:
        return values
    at = ((torch.arange(count, device="cpu") + 0.5) / count * len(values) - 0.5).clamp(
        0, len(values) - 1
    )
    low = at.floor().long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], (at - low)[:, None].to(values.dtype))
