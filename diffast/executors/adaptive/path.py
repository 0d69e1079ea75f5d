"""noise="path": one Brownian path a sample, whatever steps the sample takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.ops.schema import PATH_RANGE
from diffast.solvers.embedded import Node, Step
from diffast.solvers.embedded.bridge import HELD, NEW, increment

PATH_DEPTH = 20
PATH_CELL = 2.0 * PATH_RANGE / 2.0**PATH_DEPTH  # between two nodes of a path, in log-SNR

Pair = tuple[Any, Any]


def step_arguments(step: Step) -> tuple[Pair, Pair]:
    """Returns (nodes, weights), what `brownian` takes for a step's N(0, 1) noise.

    The step is between the tree's nodes nearest to its ends. The weights are those of the path's
    values at the second node and at the first.
    """
    start, end = (_tree_node(step.xp, node.lam) for node in (step.start, step.end))
    return _arguments(step.xp, start, end)


def draw_start(
    start: Node, streams: torch.Tensor, increment_out: torch.Tensor, value_out: torch.Tensor
) -> None:
    """Writes the path's values [B, ...] at the node where all samples start.

    `increment_out` is overwritten too.
    """
    numbers = _arguments(np, -1.0, float(_tree_node(np, start.lam)[0]))
    nodes, weights = (
        torch.tensor([[float(number) for number in pair]], dtype=dtype, device=streams.device)
        .expand(len(streams), 2)
        .contiguous()
        for pair, dtype in zip(numbers, (torch.int64, torch.float64), strict=True)
    )
    ops.brownian_out(streams, nodes, weights, PATH_DEPTH, None, increment_out, value_out)


def _arguments(xp: Any, start: Any, end: Any) -> tuple[Pair, Pair]:
    # A step has at least one cell; what ends in its own has no length and no noise.
    end = xp.where(end > start, end, start + 1.0)
    row = increment(xp, "lam", start * PATH_CELL, end * PATH_CELL)
    return (start, end), (row[NEW], row[HELD])


def _tree_node(xp: Any, lam: Any) -> Any:
    """Returns the numbers of the tree's nodes nearest to log-SNRs, as float64."""
    most = 2.0**PATH_DEPTH - 1.0
    number = xp.round((lam + PATH_RANGE) / PATH_CELL)
    number = xp.where(number < 0.0, 0.0, number)
    return xp.where(number > most, most, number)
