"""The error of a plan: how far its samples lie from the teacher's, from the same noises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffast.executors.sequential import sample
from diffast.plans import Plan
from diffast.tuning.pilots import Pilots, pieces

Features = Callable[[torch.Tensor], torch.Tensor]


def samples_of(
    plan: Plan, pilots: Pilots, ids: torch.Tensor, rows: int, update: Callable = lambda n: None
) -> torch.Tensor:
    """Returns the samples [B, ...] that `df.sample` makes of pilots, on the CPU, in batches."""
    made = []
    for piece in pieces(len(ids), rows):
        own = ids[piece]
        result = sample(
            pilots.rows(own),
            plan,
            (len(own), *pilots.shape),
            seed=pilots.seed,
            ids=own,
            device=pilots.device,
            throw=False,
        )
        made.append(result.x.cpu())
        update(len(own) * plan.nfe)
    return torch.cat(made)


class Judge:
    """Distances to the teacher's samples, relative to their spread.

    Args:
        wanted: the teacher's samples [B, ...].
        features: what is compared, a function of samples; None: the samples themselves.
        device: where the features are computed.
    """

    def __init__(
        self,
        wanted: torch.Tensor,
        features: Features | None = None,
        device: torch.device | str = "cpu",
    ):
        """Works out the spread."""
        self.features, self.device = features, device
        self.wanted = self._seen(wanted)
        self.spread = spread_of(self.wanted)

    def _seen(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.features is None else features_of(self.features, x.to(self.device))

    def error(self, x: torch.Tensor, rows: slice = slice(None)) -> float:
        """Returns the root mean square distance over the spread; infinity if not finite."""
        gap = (self._seen(x) - self.wanted[rows]).double()
        found = float(gap.square().mean().sqrt()) / self.spread
        return found if found == found else float("inf")

    def residual(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns [B, F] of distances whose mean square is the squared error, float32.

        Args:
            x: samples [B, ...].
            rows: [B] which of the wanted ones they are to be.
        """
        gap = self._seen(x) - self.wanted[rows.to(self.wanted.device)].to(x.device)
        return gap.reshape(len(x), -1) / self.spread


def features_of(features: Features, x: torch.Tensor) -> torch.Tensor:
    """Returns the features of samples [B, ...].

    Raises:
        ValueError: for what is no tensor of B rows of floating point.
    """
    found = features(x)
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        got = found.dtype if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"tune: features returned {got}, but a tensor of floats is needed")
    if not found.dim() or len(found) != len(x):
        raise ValueError(
            f"tune: features were given {len(x)} samples, but returned {list(found.shape)}: one "
            "row a sample is needed"
        )
    return found


def spread_of(x: torch.Tensor) -> float:
    """Returns the root mean square distance of samples [B, ...] from their mean.

    Raises:
        ValueError: if they do not differ, so that no error can be relative to their spread.
    """
    found = float((x.double() - x.double().mean(0)).square().mean().sqrt())
    if not found > 0.0 or found != found:
        raise ValueError(
            f"tune: the teacher's samples have a spread of {found:g}: more than 1 pilot is needed, "
            "and a network whose samples differ"
        )
    return found
