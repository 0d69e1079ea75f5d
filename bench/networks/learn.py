"""Weights and levels of a multistep method, learned over many problems at once.

The method remembers every velocity v = eps - x0 (see `problems`): with tau_0 > ... > tau_N = 0,

    y_{n+1} = y_n + (tau_{n+1} - tau_n) sum_{j <= n} b[n, j] v_j,      sum_j b[n, j] = 1.

Learned are the levels and b. What is minimised is the largest ratio, over the problems, of the
error to the error of a good standard method on the same problem, as a smooth maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bench.networks.problems import Problem


@dataclass
class Row:
    """Levels tau_n / tau_0 [N], the first one 1, and weights [N, N], lower triangular."""

    levels: np.ndarray
    weights: np.ndarray


def adams_row(calls: int, order: int, power: float, end: float = 0.0, fall: bool = False) -> Row:
    """Returns Adams-Bashforth in tau on levels ((N - n)/N)^power, bent to stop at `end`."""
    ends = np.arange(calls, -1, -1) / calls
    levels = ends**power
    levels = levels * (1 - end) + end
    levels[-1] = 0.0
    b = np.zeros((calls, calls))
    for n in range(calls):
        most = min(order, n + 1, (calls - n) if fall else order)
        nodes = levels[n + 1 - most : n + 1]
        k = np.arange(most)
        a, c = levels[n] - levels[n], levels[n + 1] - levels[n]
        moments = (c ** (k + 1) - a ** (k + 1)) / (k + 1) / (c - a)
        b[n, n + 1 - most : n + 1] = np.linalg.solve((nodes - levels[n]) ** k[:, None], moments)
    return Row(levels[:-1], b)


def run(problem: Problem, levels: torch.Tensor, weights: torch.Tensor, y: torch.Tensor):
    """Returns y at the end; levels and weights may need gradients."""
    taus = levels * problem.first
    slopes = []
    n_calls = len(levels)
    for n in range(n_calls):
        tau = taus[n]
        slopes.append(problem.velocity(y, tau if tau.requires_grad else float(tau)))
        to = taus[n + 1] if n + 1 < n_calls else torch.zeros((), dtype=taus.dtype)
        step = to - tau
        mean = sum(weights[n, j] * slopes[j] for j in range(n + 1))
        y = y + step * mean
    return y


def errors(problems: list[Problem], row: Row) -> np.ndarray:
    """Returns the error of a row on each problem."""
    levels = torch.as_tensor(row.levels, dtype=torch.float32)
    weights = torch.as_tensor(row.weights, dtype=torch.float32)
    with torch.no_grad():
        return np.array([p.error(run(p, levels, weights, p.start.float())) for p in problems])


class _Free(torch.nn.Module):
    """Free parameters: logarithms of the steps, and the weights below the diagonal."""

    def __init__(self, row: Row, least: float):
        super().__init__()
        levels = np.append((row.levels - least) / (1 - least), 0.0)
        steps = np.maximum(levels[:-1] - levels[1:], 1e-4)
        self.steps = torch.nn.Parameter(torch.as_tensor(np.log(steps / steps.sum())))
        below = np.tril(row.weights, -1)
        self.below = torch.nn.Parameter(torch.as_tensor(below))
        self.least = least

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns levels [N] and weights [N, N]."""
        share = torch.softmax(self.steps, 0)
        levels = torch.flip(torch.cumsum(torch.flip(share, [0]), 0), [0])
        levels = self.least + (1 - self.least) * levels
        below = torch.tril(self.below, -1)
        return levels, below + torch.diag(1 - below.sum(1))

    def row(self) -> Row:
        """Returns the row, in float64."""
        with torch.no_grad():
            levels, weights = self()
        levels = levels.numpy().copy()
        levels[0] = 1.0
        return Row(levels, weights.numpy())


def learn(
    problems: list[Problem],
    start: Row,
    reference: np.ndarray,
    iterations: int = 300,
    rate: float = 0.01,
    sharp: float = 3.0,
    least: float = 1e-3,
    shrink: float = 0.0,
    batch: int = 128,
) -> Row:
    """Returns the learned row.

    Args:
        problems: to be good on.
        start: where to begin.
        reference: the error on each problem that its ratio is counted from.
        iterations: of Adam.
        rate: of Adam, falling by a cosine to a hundredth.
        sharp: of the smooth maximum of ratios: (mean ratio^sharp)^(1/sharp).
        least: no level is below this share of the first one.
        shrink: weight of the squared distance of the weights to those of `start`.
        batch: samples of a problem in an iteration.
    """
    free = _Free(start, least).double()
    at = free.below.detach().clone()
    optimizer = torch.optim.Adam(free.parameters(), lr=rate)
    scale = torch.as_tensor(reference)
    generator = torch.Generator().manual_seed(3)
    held = [(p.start.float(), p.fine.float(), p.spread) for p in problems]
    best, best_value = None, math.inf
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / iterations)))
        levels, weights = free()
        logs = []
        for p, (y, fine, spread) in zip(problems, held, strict=True):
            some = slice(None)
            if len(y) > batch:
                some = torch.randperm(len(y), generator=generator)[:batch]
            end = run(p, levels.float(), weights.float(), y[some])
            logs.append(((end - fine[some]).square().mean() / spread**2).log() * 0.5)
        ratios = torch.stack(logs).double() - scale.log()
        value = torch.logsumexp(sharp * ratios, 0) / sharp
        loss = value + shrink * (free.below - at).square().sum()
        optimizer.zero_grad()
        loss.backward()
        if not all(torch.isfinite(q.grad).all() for q in free.parameters()):
            continue
        torch.nn.utils.clip_grad_norm_(free.parameters(), 5.0)
        if step % 25 == 24 or step == iterations - 1:
            row = free.row()
            now = float((np.log(errors(problems, row)) - np.log(reference)).max())
            if now < best_value:
                best, best_value = row, now
        optimizer.step()
    row = free.row()
    if (np.log(errors(problems, row)) - np.log(reference)).max() < best_value:
        best = row
    return best if best is not None else start
