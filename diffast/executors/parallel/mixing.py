"""Triangular Anderson mixing: the next points from the sweeps of several rounds.

Let G_t be the points that the sweep of round t made of its points x_t, and f_t = G_t - x_t. The
next points are

    G_t - sum_i gamma_i (G_{t-i+1} - G_{t-i}),
    gamma = argmin |f_t - sum_i gamma_i (f_{t-i+1} - f_{t-i})|^2

where the minimum for stage n runs over the stages up to n, so later stages have no influence (Tang
et al. 2024, "Accelerating parallel sampling of diffusion models", section 4). The first point of a
window is G_t itself, so each round settles at least one stage.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops
from diffast.executors.device import sent

# Ridge relative to the mean diagonal of the Gram matrix. It keeps gamma small where differences
# hardly differ.
_RIDGE = 1e-3


class Mixing:
    """The last rounds' points, and the weights by which they are mixed."""

    def __init__(self, memory: int, device: torch.device):
        """Begins with no round; 1 to 3 rounds before the present one will be mixed in."""
        self.memory, self.device = memory, device
        self.rounds: list[tuple[torch.Tensor, torch.Tensor]] = []  # (x, G), the present one first
        self.spare: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []  # of f_t and the differences, by number of rounds

    def open(self, size: int) -> None:
        """Puts the weights for that many rows, and for fewer, on the device."""
        tables = [_differences(count, size) for count in range(2, self.memory + 2)]
        self.weights = sent(self.device, *tables)

    def note(self, x: torch.Tensor, made: torch.Tensor) -> int:
        """Notes a round, whose sweep made of the points x, [rows, ...], the points `made`.

        Returns how many inner products of f_t and the differences there now are a row.
        """
        self.rounds.insert(0, (x, made))
        for pair in self.rounds[self.memory + 1 :]:
            self.spare += pair
        del self.rounds[self.memory + 1 :]
        count = len(self.rounds)
        return count * (count + 1) // 2 if count > 1 else 0

    def measure(self, sums: torch.Tensor) -> None:
        """Writes the inner products to `sums`, [rows, pairs]."""
        weights = self.weights[len(self.rounds) - 2][: len(sums)]
        ops.gram([tensor for pair in self.rounds for tensor in pair], weights, sums)

    def gammas(self, sums: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """Returns gamma of each stage of each window, [windows, w, m'].

        The inner products of the windows' rows are [windows, w, pairs]. A row's age, [windows, w],
        is how many rounds it has been at its stage, the present one included.
        """
        count = len(self.rounds)
        upper = np.triu_indices(count)
        gram = np.zeros((*ages.shape, count, count))
        gram[..., upper[0], upper[1]] = gram[..., upper[1], upper[0]] = sums
        known = ages[..., None] > np.arange(count)  # [windows, w, m' + 1]
        gram *= known[..., :, None] * known[..., None, :]
        gram = np.cumsum(gram, axis=1)
        left, right = gram[..., 1:, 1:].copy(), gram[..., 1:, 0]
        middle = np.trace(left, axis1=-2, axis2=-1) / (count - 1)
        left += (_RIDGE * middle + 1e-30)[..., None, None] * np.eye(count - 1)
        with np.errstate(all="ignore"):
            found = np.linalg.solve(left, right[..., None])[..., 0]
        return np.where(np.isfinite(found) & known[..., 1:], found, 0.0)

    def table(self, gammas: np.ndarray) -> np.ndarray:
        """Returns the weights of the rounds' sweeps in the next points, [rows, 1, m' + 1].

        Gammas [rows, m'] are 0 for rows whose next point is the sweep's.
        """
        weights = np.zeros((len(gammas), 1, len(self.rounds)))
        weights[:, 0, 0] = 1.0
        weights[:, 0, :-1] -= gammas
        weights[:, 0, 1:] += gammas
        return weights

    def mix(self, table: torch.Tensor) -> torch.Tensor:
        """Returns the next points [rows, ...] by a table of the rounds' weights on the device."""
        made = [pair[1] for pair in self.rounds]
        out = self.take(made[0])
        ops.combine_table_out(made, table, None, None, [], [out], None)
        return out

    @torch.inference_mode(False)  # see Place.empty
    def take(self, like: torch.Tensor) -> torch.Tensor:
        """Returns a buffer for the next sweep."""
        return self.spare.pop() if self.spare else torch.zeros_like(like)

    @torch.inference_mode(False)
    def select(self, index: torch.Tensor) -> None:
        """Keeps the given rows, in that order."""
        self.rounds = [(x.index_select(0, index), g.index_select(0, index)) for x, g in self.rounds]
        self.spare = []

    def clear(self, rows: torch.Tensor) -> None:
        """Sets the given rows to zero."""
        for pair in self.rounds:
            for points in pair:
                points.index_fill_(0, rows, 0.0)


def _differences(count: int, rows: int) -> np.ndarray:
    """Returns the weights of f_t and the differences over all points, [rows, m', 2 m']."""
    weights = np.zeros((count, 2 * count))
    for i in range(count):
        newer = 2 * max(i - 1, 0)
        weights[i, newer : newer + 2] = -1.0, 1.0
        if i:
            weights[i, 2 * i : 2 * i + 2] = 1.0, -1.0
    return np.ascontiguousarray(np.broadcast_to(weights, (rows, *weights.shape)))
