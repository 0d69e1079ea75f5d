"""Errors that the network raised, and the option of `Denoiser` that would prevent each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

# Messages of torch and numpy for an index that is not of integers: nn.Embedding, table[t],
# index_select, gather, take, one_hot, take_along_dim, a list or an array indexed by a tensor.
INDEX = re.compile(
    r"scalar types: Long|used as indices|for index\b|long tensor for index|LongTensor|"
    r"dtype of indices|converted to an index|of integer \(or boolean\) type"
)
# Messages of torch for operands of different dtypes.
MISMATCH = re.compile(
    r"(same|mixed|weight) dtype|should be the same|scalar type|type promoting", re.IGNORECASE
)

# The errors that a network may raise for its arguments.
RAISED = (RuntimeError, TypeError, IndexError, ValueError)


def first_parameter(network: Callable[..., Any]) -> torch.Tensor | None:
    """Returns the network's first parameter; None if it has none."""
    parameters: Any = getattr(network, "parameters", None)
    if not callable(parameters):
        return None
    every: Any = parameters()
    return next(iter(every), None)


def explanation(
    error: Exception, network: Callable[..., Any], x: torch.Tensor, t: torch.Tensor
) -> str | None:
    """Returns a sentence on the option that prevents the error of network(x, t), or None."""
    said = str(error)
    if INDEX.search(said):
        if not t.is_floating_point():
            return None
        return (
            "Denoiser: the network indexed a table with a floating-point tensor and was given the "
            f"time as {t.dtype}: if the time is that index (nn.Embedding), set "
            "time_dtype=torch.long"
        )
    parameter = first_parameter(network)
    if parameter is None or not parameter.is_floating_point() or not MISMATCH.search(said):
        return None
    own = parameter.dtype
    if own != x.dtype:
        return (
            f"Denoiser: the network's parameters are {own} but it was given x as {x.dtype}: set "
            f"dtype={own}"
        )
    if t.is_floating_point() and own != t.dtype:
        return (
            f"Denoiser: the network's parameters are {own} but it was given the time as {t.dtype}: "
            f"if that is what it refused, and not a condition, set time_dtype={own}"
        )
    return None
