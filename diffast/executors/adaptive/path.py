"""noise="path": one Brownian path a sample, whatever steps the sample takes."""

from __future__ import annotations

from typing import Any

import torch

from diffast import ops
from diffast.lowering.trial_steps import numbers
from diffast.ops.schema import PATH_RANGE
from diffast.solvers.embedded import Step
from diffast.solvers.embedded.bridge import HELD, NEW, increment

PATH_DEPTH = 20
PATH_CELL = 2.0 * PATH_RANGE / 2.0**PATH_DEPTH  # between two nodes of a path, in log-SNR


def draw_start(
    step: Step, streams: torch.Tensor, increment_out: torch.Tensor, value_out: torch.Tensor
) -> None:
    """Writes the path's values [B, ...] at the step's start; `increment_out` is overwritten too."""
    end = _tree_nodes(step.xp, step.start.lam)
    _draw(step, 0.0 * end - 1.0, end, streams, None, increment_out, value_out)


def draw_step(
    step: Step,
    streams: torch.Tensor,
    held: torch.Tensor,
    increment_out: torch.Tensor,
    value_out: torch.Tensor,
) -> None:
    """Writes the steps' N(0, 1) noise, and the path's values at their ends' nearest nodes.

    All are [B, ...]; `held` are the values at the steps' starts.
    """
    start, end = (_tree_nodes(step.xp, node.lam) for node in (step.start, step.end))
    _draw(step, start, end, streams, held, increment_out, value_out)


def _draw(step: Step, start: Any, end: Any, streams, held, increment_out, value_out) -> None:
    xp = step.xp
    # A step has at least one cell; what ends in its own has no length and no noise.
    end = xp.where(end > start, end, start + 1.0)
    row = increment(xp, "lam", start * PATH_CELL, end * PATH_CELL)
    weights = numbers(step, 1, 2, {(0, 0): row[NEW], (0, 1): row[HELD]})[:, 0]
    nodes = numbers(step, 1, 2, {(0, 0): start, (0, 1): end})[:, 0].to(torch.int64)
    ops.brownian_out(streams, nodes, weights, PATH_DEPTH, held, increment_out, value_out)


def _tree_nodes(xp: Any, lam: Any) -> Any:
    """Returns the numbers of the tree's nodes nearest to log-SNRs, as float64."""
    most = 2.0**PATH_DEPTH - 1.0
    number = xp.round((lam + PATH_RANGE) / PATH_CELL)
    number = xp.where(number < 0.0, 0.0, number)
    return xp.where(number > most, most, number)
