"""How far x0 lies from its estimate: the variance r^2 that rules assume for x0 given x."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from diffast.guidance.guide import Point

# The deviation of the data, or (alpha, sigma) -> r^2.
Spread = float | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_spread(who: str, spread: Spread) -> None:
    """Raises ValueError for a deviation that is not positive and finite."""
    if not callable(spread) and not 0.0 < spread < math.inf:
        raise ValueError(f"{who}: spread is {spread}, but it must be finite and above 0")


def spread_at(spread: Spread, at: Point) -> torch.Tensor:
    """Returns r^2 at a point, [B, 1, ...].

    With a deviation c of the data r^2 = c^2 sigma^2 / (c^2 alpha^2 + sigma^2): the variance of a
    normal x0 given x (Song et al. 2023, PiGDM, section 3.2, for c = 1).
    """
    if callable(spread):
        made = spread(at.alpha, at.sigma)
        return torch.as_tensor(made, device=at.alpha.device).expand_as(at.alpha)
    noise, data = at.sigma.square(), spread**2
    return data * noise / (data * at.alpha.square() + noise)
