"""Weights of particles: their effective number, and systematic resampling."""

from __future__ import annotations

import math

import torch

from diffast import ops


def normalised(log_weights: torch.Tensor) -> torch.Tensor:
    """Returns weights [N, K] that add up to 1; equal ones where all particles have weight 0."""
    lost = (log_weights == -torch.inf).all(dim=1, keepdim=True)
    return torch.softmax(torch.where(lost, 0.0, log_weights), dim=1)


def effective_number(log_weights: torch.Tensor) -> torch.Tensor:
    """Returns 1 / sum w^2 of the normalised weights, [N]: from 1 to K."""
    return 1.0 / normalised(log_weights).square().sum(dim=1)


def log_mean(log_weights: torch.Tensor) -> torch.Tensor:
    """Returns log mean_k exp(log w_k), [N]; -inf where all particles have weight 0."""
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])


def uniforms(seed: int, ids: torch.Tensor, stage: int) -> torch.Tensor:
    """Returns a number in [0, 1) for each sample, [N] float64, from (seed, id, stage) alone."""
    word = ops.GUIDANCE_NOISE + (stage << 8) + 255
    normal = ops.normal((len(ids), 1), seed=seed, stage=word, ids=ids)[:, 0].double()
    return (0.5 * (1.0 + torch.erf(normal / math.sqrt(2.0)))).clamp(max=1.0 - 2.0**-53)


def systematic(weights: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Returns which particle each slot takes, [N, K] int64: w_k K copies of particle k, or one off.

    Systematic resampling (Douc, Cappe and Moulines 2005, section 2.4): the points (u + k) / K on
    the weights' cumulative sum. A particle that is taken keeps its slot for one of its copies.

    Args:
        weights: [N, K], adding up to 1 in every row.
        start: u, [N] in [0, 1).
    """
    count = weights.shape[1]
    slots = torch.arange(count, device=weights.device)
    points = (start[:, None] + slots) / count
    total = torch.cumsum(weights, dim=1)
    total = total / total[:, -1:]
    taken = torch.searchsorted(total, points.contiguous(), right=True).clamp(max=count - 1)
    copies = torch.zeros_like(taken).scatter_add_(1, taken, torch.ones_like(taken))
    # the copies beyond the first fill the slots of particles that are not taken, both in order
    extra = (copies - 1).clamp(min=0)
    free = copies == 0
    order = torch.cumsum(free, dim=1) - 1  # number of a free slot
    ends = torch.cumsum(extra, dim=1)
    filled = torch.searchsorted(ends, order.contiguous(), right=True).clamp(max=count - 1)
    return torch.where(free, filled, slots.expand_as(taken))
