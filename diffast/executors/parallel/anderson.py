"""Triangular Anderson mixing: the next points from the sweeps of several rounds.

With G_t the points that round t's sweep made of its points x_t, and f_t = G_t - x_t, the next
points are

    G_t - sum_i gamma_i (G_{t-i+1} - G_{t-i}),
    gamma = argmin |f_t - sum_i gamma_i (f_{t-i+1} - f_{t-i})|^2

where the minimum of stage n runs over the stages up to n: what happens later has no say (Tang et
al. 2024, "Accelerating parallel sampling of diffusion models", section 4). Where stages begin to be
settled the points are G_t themselves, so each round settles one more.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops

# Of the Gram matrix's mean diagonal; keeps gamma small where differences hardly differ.
_RIDGE = 1e-3


class Mixing:
    """The rounds that are mixed, m of them before the present one.

    Args:
        memory: m, 1 to 3.
    """

    def __init__(self, memory: int):
        """Begins with none."""
        self.memory = memory
        self.rounds: list[tuple[torch.Tensor, torch.Tensor]] = []  # (x, G), the present one first
        self.spare: list[torch.Tensor] = []

    def note(self, x: torch.Tensor, made: torch.Tensor) -> torch.Tensor | None:
        """Notes a round; returns the inner products of f_t and the differences, [rows, pairs].

        Args:
            x: [rows, ...] the points of the round.
            made: [rows, ...] what its sweep made of them.
        """
        self.rounds.insert(0, (x, made))
        for pair in self.rounds[self.memory + 1 :]:
            self.spare += pair
        del self.rounds[self.memory + 1 :]
        count = len(self.rounds)
        if count == 1:
            return None
        weights = torch.zeros((len(x), count, 2 * count), dtype=torch.float64)
        for i in range(count):
            weights[:, i, 2 * max(i - 1, 0) : 2 * max(i - 1, 0) + 2] = torch.tensor([-1.0, 1.0])
            if i:
                weights[:, i, 2 * i : 2 * i + 2] = torch.tensor([1.0, -1.0])
        sums = torch.empty((len(x), count * (count + 1) // 2), dtype=torch.float64, device=x.device)
        xs = [tensor for pair in self.rounds for tensor in pair]
        ops.gram(xs, weights.to(x.device), sums)
        return sums

    def gammas(self, sums: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """Returns gamma of each stage of a window, [w, m'].

        Args:
            sums: [w, pairs] inner products of the window's rows.
            ages: [w] rounds that each row has been at its stage, the present one included.
        """
        count = len(self.rounds)
        upper = np.triu_indices(count)
        gram = np.zeros((len(sums), count, count))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = sums
        known = ages[:, None] > np.arange(count)  # [w, m' + 1]
        gram *= known[:, :, None] * known[:, None, :]
        gram = np.cumsum(gram, axis=0)
        left, right = gram[:, 1:, 1:].copy(), gram[:, 1:, 0]
        middle = np.trace(left, axis1=1, axis2=2) / (count - 1)
        left += (_RIDGE * middle + 1e-30)[:, None, None] * np.eye(count - 1)
        with np.errstate(all="ignore"):
            found = np.linalg.solve(left, right[..., None])[..., 0]
        return np.where(np.isfinite(found) & known[:, 1:], found, 0.0)

    def mix(self, gammas: np.ndarray, like: torch.Tensor) -> torch.Tensor:
        """Returns the next points, [rows, ...].

        Args:
            gammas: [rows, m'], 0 for rows that are to be the sweep's.
            like: a tensor of rows.
        """
        count = len(self.rounds)
        weights = np.zeros((len(gammas), 1, count))
        weights[:, 0, 0] = 1.0
        weights[:, 0, :-1] -= gammas
        weights[:, 0, 1:] += gammas
        out = self.spare.pop() if self.spare else torch.empty_like(like)
        made = [pair[1] for pair in self.rounds]
        table = torch.from_numpy(weights).to(like.device)
        ops.combine_table_out(made, table, None, None, [], [out], None)
        return out

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """Returns a buffer for the next sweep."""
        return self.spare.pop() if self.spare else torch.zeros_like(like)

    def select(self, index: torch.Tensor) -> None:
        """Keeps the given rows, in that order."""
        self.rounds = [tuple(t.index_select(0, index) for t in pair) for pair in self.rounds]
        self.spare = []
