"""Potentials of particles: how a reward at every stage weighs a path, with the right total."""

from __future__ import annotations

import torch

POTENTIALS = ("difference", "max", "sum")


class Potential:
    """The potentials of one run, each particle's along its own path.

    Singhal et al. 2025 ("A general framework for inference-time scaling and steering of diffusion
    models", arXiv:2501.06848), section 3: with the reward r_i at the estimate of stage i

        difference    log G_i = r_i - r_{i-1}       (the first: r_0; also TDS, Wu et al. 2023)
        max           log G_i = max of r_0 .. r_i
        sum           log G_i = r_0 + .. + r_i

    and at the end log G = r(sample) - the sum of all before, so that a path's total is r(sample).

    Args:
        kind: one of POTENTIALS.
        like: [N, K] float64, zeros.
    """

    def __init__(self, kind: str, like: torch.Tensor):
        """Begins with paths of no stage."""
        self.kind = kind
        self.total = torch.zeros_like(like)  # of log G along the path
        self.memory = torch.zeros_like(like) if kind != "max" else torch.full_like(like, -torch.inf)

    def step(self, reward: torch.Tensor) -> torch.Tensor:
        """Returns log G of a stage, [N, K], for its rewards [N, K]."""
        if self.kind == "difference":
            made, self.memory = _less(reward, self.memory), reward
            self.total = reward
            return made
        if self.kind == "max":
            self.memory = torch.maximum(self.memory, reward)
        else:
            self.memory = self.memory + reward
        self.total = self.total + self.memory
        return self.memory

    def last(self, reward: torch.Tensor) -> torch.Tensor:
        """Returns log G of the samples, [N, K], for their rewards [N, K]."""
        return _less(reward, self.total)

    def take(self, index: torch.Tensor) -> None:
        """Makes the paths those of the particles with these numbers, [N, K]."""
        self.total, self.memory = self.total.gather(1, index), self.memory.gather(1, index)


def _less(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns a - b, and -inf where a is: a particle that is ruled out stays so."""
    return torch.where((a == -torch.inf) | (b == -torch.inf), -torch.inf, a - b)
