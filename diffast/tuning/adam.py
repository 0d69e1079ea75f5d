"""Polish by gradient descent, for networks that have a gradient.

Adam (Kingma and Ba 2015) with a rate that falls by a cosine. It averages over many small batches,
where Levenberg and Marquardt's method has fitted a few larger ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from diffast.tuning.levenberg import Residual, Runner
from diffast.tuning.pilots import Pilots, ids_of, pieces
from diffast.tuning.run import Rows, run, without_own_gradients

_FIRST_RATE, _LAST_RATE = 5e-3, 5e-4
_MEMORY = 0.9, 0.99


class Descent(NamedTuple):
    """Where descent stands.

    Attributes:
        vector: [P].
        mean: [P] of gradients.
        square: [P] of squared gradients.
        skipped: iterations without a finite gradient, in the last round.
        calls: network evaluations by sample, in the last round.
    """

    vector: np.ndarray
    mean: np.ndarray
    square: np.ndarray
    skipped: int = 0
    calls: int = 0


def begin(vector: np.ndarray) -> Descent:
    """Returns descent at its start."""
    return Descent(vector, np.zeros_like(vector), np.zeros_like(vector))


class Adam:
    """Rounds of iterations, each of a small batch.

    Args:
        runner: parameters and pilots.
        residual: as for `levenberg.Marquardt`.
        pilots: [B] ids to draw from.
        batch: pilots of an iteration.
        total: iterations that the fall of the rate is for.
        seed: of the batches.
        saves: whether activations are computed again, in place of being kept.
    """

    def __init__(
        self,
        runner: Runner,
        residual: Residual,
        pilots: torch.Tensor,
        batch: int,
        total: int,
        seed: int,
        saves: bool,
    ):
        """Keeps them; see the class."""
        self.runner, self.residual, self.pilots = runner, residual, pilots
        self.batch, self.total, self.seed, self.saves = batch, total, seed, saves

    def go(self, at: Descent, first: int, count: int) -> Descent:
        """Returns descent after the iterations first .. first + count - 1."""
        vector, mean, square = at.vector.copy(), at.mean.copy(), at.square.copy()
        skipped = calls = 0
        with without_own_gradients(self.runner.pilots.denoiser.network):
            for i in range(first, first + count):
                drawn = np.random.default_rng([self.seed % 2**63, 1, i])
                chosen = np.sort(drawn.permutation(len(self.pilots))[: self.batch])
                slope, made = self._slope(vector, self.pilots[torch.from_numpy(chosen)])
                calls += made
                if not np.isfinite(slope).all():
                    skipped += 1
                    continue
                mean = _MEMORY[0] * mean + (1.0 - _MEMORY[0]) * slope
                square = _MEMORY[1] * square + (1.0 - _MEMORY[1]) * slope**2
                even = [1.0 - memory ** (i + 1) for memory in _MEMORY]
                fall = 0.5 * (1.0 + math.cos(math.pi * i / self.total))
                rate = _LAST_RATE + (_FIRST_RATE - _LAST_RATE) * fall
                vector = vector - rate * (mean / even[0]) / (np.sqrt(square / even[1]) + 1e-12)
        return Descent(vector, mean, square, skipped, calls)

    def _slope(self, vector: np.ndarray, ids: torch.Tensor) -> tuple[np.ndarray, int]:
        """Returns the derivative of the error [P] and the network evaluations it took."""
        runner = self.runner
        total, made, calls = torch.zeros(len(vector), dtype=torch.float64, device="cpu"), 0.0, 0
        for piece in pieces(len(ids), runner.rows):
            own = ids[piece]
            with torch.enable_grad():
                learned = torch.from_numpy(vector).requires_grad_()
                numbers = runner.parameters.numbers(learned)
                x = runner.pilots.noise(own, 1.0)
                x = numbers.levels[0, 1].to(x) * x
                rows = Rows(runner.pilots.rows(own), x, self.saves)
                loss = self.residual(run(rows, numbers), own).square().mean() * len(own) / len(ids)
                (found,) = torch.autograd.grad(loss, learned)
            total += found
            made += float(loss.detach())
            calls += 3 * len(own) * len(numbers.keep)  # forwards, and about two backwards
        return (total / (2.0 * math.sqrt(made) if made > 0.0 else 1.0)).numpy(), calls


def has_gradient(pilots: Pilots, start: float) -> bool:
    """Returns whether the network's output has a gradient in its input, by one call and back."""
    ids = ids_of(1)
    with without_own_gradients(pilots.denoiser.network), torch.enable_grad():
        x = pilots.noise(ids, 1.0).requires_grad_()
        try:
            told = torch.tensor(start, dtype=torch.float64, device="cpu")
            made = Rows(pilots.rows(ids), x).output(x, told, "cond")
            (found,) = torch.autograd.grad(made.square().sum(), x)
        except (RuntimeError, NotImplementedError):  # no graph, inference tensors, no derivative
            return False
    return bool(found.isfinite().all())
