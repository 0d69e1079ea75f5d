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

from bench.networks.problems import Problem, joined

# Velocities that a step weighs, at most: each is a tensor of the size of the state, and the op
# `combine` takes 16 tensors.
MEMORY = 10


@dataclass
class Row:
    """Levels tau_n / tau_0 [N], the first one 1, and weights [N, N], lower triangular."""

    levels: np.ndarray
    weights: np.ndarray


def remembered(row: Row) -> Row:
    """Returns a row that weighs the newest MEMORY velocities alone.

    The weights of older ones go to the oldest that is kept.
    """
    weights = row.weights.copy()
    for n in range(MEMORY, len(weights)):
        weights[n, : n - MEMORY + 1] = 0.0
        weights[n, n - MEMORY + 1] += 1.0 - weights[n].sum()
    return Row(row.levels, weights)


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


def run(problem: Problem | Group, levels: torch.Tensor, weights: torch.Tensor, y: torch.Tensor):
    """Returns y at the end; levels and weights may need gradients."""
    taus = levels.reshape(-1, *[1] * (problem.first.dim() if torch.is_tensor(problem.first) else 0))
    taus = taus * problem.first
    slopes = []
    n_calls = len(levels)
    for n in range(n_calls):
        tau = taus[n]
        slopes.append(problem.velocity(y, tau if tau.requires_grad or tau.dim() else float(tau)))
        to = taus[n + 1] if n + 1 < n_calls else torch.zeros_like(taus[0])
        step = to - tau
        y = y + step * torch.tensordot(weights[n, : n + 1], torch.stack(slopes), 1)
    return y


def errors(problems: list[Problem], row: Row) -> np.ndarray:
    """Returns the error of a row on each problem."""
    levels = torch.as_tensor(row.levels, dtype=torch.float32)
    weights = torch.as_tensor(row.weights, dtype=torch.float32)
    with torch.no_grad():
        return np.array([p.error(run(p, levels, weights, p.start.float())) for p in problems])


class Group:
    """Problems that are followed as one: closed forms of one shape, or one network.

    Attributes:
        problems: P of them.
        first: tau at the start, a number or [P, 1, 1].
        velocity: (y [B, ...] or [P, B, D], tau) -> eps - x0.
    """

    def __init__(self, problems: list[Problem]):
        """Puts the problems together."""
        self.problems = problems
        one = problems[0]
        self.start, self.fine = one.start.float(), one.fine.float()
        self.first, self.velocity, self.axis = one.first, one.velocity, 0
        self.spread: float | torch.Tensor = one.spread
        if len(problems) > 1:
            self.axis = 1
            self.start, self.fine = (
                torch.stack([getattr(p, name).float() for p in problems])
                for name in ("start", "fine")
            )
            self.first = torch.tensor([p.first for p in problems]).reshape(-1, 1, 1)
            self.spread = torch.tensor([p.spread for p in problems])
            self.velocity = joined([p.closed for p in problems])

    def errors(self, levels, weights, batch: int, generator) -> torch.Tensor:
        """Returns the errors [P] on so many samples."""
        y, fine = self.start, self.fine
        if y.shape[self.axis] > batch:
            some = torch.randperm(y.shape[self.axis], generator=generator)[:batch]
            y, fine = (t.index_select(self.axis, some) for t in (y, fine))
        square = (run(self, levels, weights, y) - fine).square()
        mean = square.mean((1, 2)) if self.axis else square.mean().reshape(1)
        return mean.sqrt() / self.spread


def together(problems: list[Problem]) -> list[Group]:
    """Returns the problems in groups that are followed at once."""
    shapes: dict = {}
    for p in problems:
        shapes.setdefault(p.shape if p.closed is not None else p.name, []).append(p)
    return [Group(held) for held in shapes.values()]


class _Free(torch.nn.Module):
    """Free parameters: logarithms of the steps, and the weights below the diagonal."""

    def __init__(self, row: Row, least: float):
        super().__init__()
        levels = np.append((row.levels - least) / (1 - least), 0.0)
        steps = np.maximum(levels[:-1] - levels[1:], 1e-4)
        self.steps = torch.nn.Parameter(torch.as_tensor(np.log(steps / steps.sum())))
        below = np.tril(row.weights, -1)
        self.below = torch.nn.Parameter(torch.as_tensor(below))
        near = np.tril(np.ones(below.shape), -1) - np.tril(np.ones(below.shape), -MEMORY)
        self.register_buffer("near", torch.as_tensor(near))
        self.least = least

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns levels [N] and weights [N, N]."""
        share = torch.softmax(self.steps, 0)
        levels = torch.flip(torch.cumsum(torch.flip(share, [0]), 0), [0])
        levels = self.least + (1 - self.least) * levels
        below = self.below * self.near
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
    start = remembered(start)
    free = _Free(start, least).double()
    at = free.below.detach().clone()
    optimizer = torch.optim.Adam(free.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(3)
    groups = together(problems)
    order = [p for group in groups for p in group.problems]
    scale = torch.as_tensor([reference[problems.index(p)] for p in order])
    best, best_value = None, math.inf
    for step in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / iterations)))
        levels, weights = free()
        logs = [
            group.errors(levels.float(), weights.float(), batch, generator).log()
            for group in groups
        ]
        ratios = torch.cat(logs).double() - scale.log()
        value = torch.logsumexp(sharp * ratios, 0) / sharp
        loss = value + shrink * (free.below - at).square().sum()
        optimizer.zero_grad()
        loss.backward()
        if not all(torch.isfinite(q.grad).all() for q in free.parameters()):
            continue
        torch.nn.utils.clip_grad_norm_(free.parameters(), 5.0)
        if step % 50 == 49 or step == iterations - 1:
            row = free.row()
            now = float((np.log(errors(problems, row)) - np.log(reference)).max())
            if now < best_value:
                best, best_value = row, now
        optimizer.step()
    row = free.row()
    if (np.log(errors(problems, row)) - np.log(reference)).max() < best_value:
        best = row
    return best if best is not None else start
