"""A network's fingerprint: cheap, stable, and other after a fine-tune."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

# How many values of a tensor are looked at. A fine-tune changes nearly all of them.
_LOOKED_AT = 16

# Prefixes that a wrapper puts before the names: torch.compile, data-parallel training.
_WRAPPERS = ("_orig_mod.", "module.")

_known: WeakKeyDictionary = WeakKeyDictionary()


def fingerprint(network: Any) -> str | None:
    """Returns 16 hexadecimal digits of a network's parameters and buffers; None if it has none.

    They are made of the names, the shapes, the dtypes, and 16 values of each tensor, evenly spaced,
    as float32. So the fingerprint is the same on every device, and a large network costs one small
    transfer. It is worked out once a network, and again after its weights were written.

    Args:
        network: a torch module, or a callable that hands on a module's `parameters`.
    """
    owner = _module_of(network)
    if owner is None:
        return None
    written = _written(owner)
    known = _known.get(owner)
    if known is None or known[0] != written:
        known = _known[owner] = written, _made(owner)
    return known[1]


def _written(owner: torch.nn.Module) -> int:
    """Returns what changes when a parameter or buffer is written in place or replaced."""
    tensors = (*owner.parameters(), *owner.buffers())
    # inference tensors count no writes
    return hash(tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors))


def _module_of(network: Any) -> torch.nn.Module | None:
    if isinstance(network, torch.nn.Module):
        return network
    owner = getattr(getattr(network, "parameters", None), "__self__", None)
    return owner if isinstance(owner, torch.nn.Module) else None


def _made(owner: torch.nn.Module) -> str | None:
    tensors = [*owner.named_parameters(), *owner.named_buffers()]
    if not tensors:
        return None
    found = hashlib.sha256()
    parts: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in sorted(tensors, key=lambda pair: _plain(pair[0])):
        found.update(f"{_plain(name)} {list(tensor.shape)} {tensor.dtype}\n".encode())
        # a tensor without memory (offloaded weights) or of another layout counts by its shape
        if tensor.numel() and not tensor.is_meta and tensor.layout == torch.strided:
            parts.setdefault(tensor.device, []).append(_values(tensor))
    for values in parts.values():
        found.update(torch.cat(values).cpu().numpy().astype("<f4").tobytes())
    return found.hexdigest()[:16]


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@torch.no_grad()
def _values(tensor: torch.Tensor) -> torch.Tensor:
    """Returns some values [<= 16] float32, without a copy of the tensor."""
    flat = np.unique(np.linspace(0, tensor.numel() - 1, _LOOKED_AT).astype(np.int64))
    places = np.unravel_index(flat, tuple(tensor.shape)) if tensor.dim() else ()
    at = tuple(torch.from_numpy(place).to(tensor.device) for place in places)
    values = tensor.detach()[at].reshape(-1)
    return values.abs().float() if values.is_complex() else values.float()
