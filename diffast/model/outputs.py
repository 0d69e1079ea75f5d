"""The tensor in a network's output: a tensor, a tuple, a dict, or an object with fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch._subclasses import FakeTensor

from diffast.model.prediction import PREDICTIONS


def tensor_of(output: Any, predicts: str | None = None, who: str = "Denoiser") -> torch.Tensor:
    """Returns the one tensor in a network's output.

    A tensor: itself. A tuple or a list: its first tensor. An object with `.sample`, as diffusers'
    outputs have: this tensor. A dict, a dataclass or a named tuple: the entry "sample"; else the
    entry "pred" or one named after the prediction type ("x0", "denoised", "eps", ...); else the
    only tensor.

    Args:
        output: what the network returned.
        predicts: the prediction type. A dict whose only known entry is of another type is refused;
            None: any type's name is known.
        who: the class that called the network, for the message.

    Raises:
        ValueError: where there is no such tensor, or more than one.
    """
    # The common kinds first: this runs after every network call.
    if isinstance(output, torch.Tensor):
        return output
    if type(output) is tuple and output and isinstance(output[0], torch.Tensor):
        return output[0]
    sample = getattr(output, "sample", None)
    if isinstance(sample, torch.Tensor):
        return sample
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        first = next((item for item in output if isinstance(item, torch.Tensor)), None)
        if first is None:
            kinds = ", ".join(type(item).__name__ for item in output)
            raise ValueError(
                f"{who}: the network returned a {type(output).__name__} of ({kinds}), but no "
                "tensor is among them"
            )
        return first
    fields = _fields(output)
    if fields is not None:
        return _entry(fields, type(output).__name__, predicts, who)
    raise ValueError(
        f"{who}: the network returned a {type(output).__name__}, but a tensor is needed, or a "
        "tuple, a dict or an object with .sample that holds one"
    )


def output_complaint(x: torch.Tensor, output: torch.Tensor) -> str:
    """Returns what is wrong with a network's output that is not shaped as x, or no numbers."""
    given, made = list(x.shape), list(output.shape)
    if len(given) > 1 and made == [given[0], 2 * given[1], *given[2:]]:
        return (
            f"Denoiser: the network was given x of shape {given} but returned twice the channels, "
            f"{made}: if half of them are a learned variance, wrap the network in "
            "df.LearnedVariance, or in a function that returns the prediction's channels alone"
        )
    if made != given:
        return f"Denoiser: the network was given x of shape {given} but returned {made}"
    return (
        f"Denoiser: the network was given {x.dtype} but returned {output.dtype}, which is no "
        "floating-point type"
    )


def check_plain(x: torch.Tensor, output: torch.Tensor, who: str = "Denoiser") -> None:
    """Raises ValueError for an output that holds no row of numbers in memory.

    Args:
        x: what the network was given.
        output: a tensor of another layout than strided, or of a subclass.
        who: the class that called the network, for the message.
    """
    if output.layout is not torch.strided:
        raise ValueError(
            f"{who}: the network returned a tensor of layout {output.layout}, but a dense one is "
            "needed: return output.to_dense()"
        )
    if isinstance(output, FakeTensor) and not isinstance(x, FakeTensor):
        raise ValueError(
            f"{who}: the network returned a fake tensor, which holds no numbers, but was given "
            "ordinary ones: leave FakeTensorMode to the tracer"
        )


def _fields(output: Any) -> dict[str, Any] | None:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple):  # a named one
        return dict(zip(getattr(output, "_fields", ()), output, strict=True))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return None


@cache
def _names(predicts: str | None) -> tuple[set[str], set[str]]:
    """Returns the names of an entry that holds this prediction, and those that hold another."""
    every = {key for kind in PREDICTIONS.values() for key in kind.keys}
    own = every if predicts is None else {*PREDICTIONS[predicts].keys}
    return {"pred", *own}, every - own


def _entry(fields: dict[str, Any], kind: str, predicts: str | None, who: str) -> torch.Tensor:
    tensors = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    if "sample" in tensors:
        return tensors["sample"]
    known, foreign = _names(predicts)
    found = [name for name in tensors if name in known]
    if not found and len(tensors) == 1:
        found = [name for name in tensors if name not in foreign]
    if len(found) == 1:
        return tensors[found[0]]
    for_type = "" if predicts is None else f" for predicts={predicts!r}"
    why = f"{' and '.join(map(repr, found))} could each be it" if found else "none of them is it"
    raise ValueError(
        f"{who}: the network returned a {kind} with the entries {sorted(map(str, fields))}, but "
        f"one tensor is needed{for_type} and {why}: wrap the network so that it returns the tensor"
    )
