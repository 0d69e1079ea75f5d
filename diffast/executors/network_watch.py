"""Whether a network still has the memory and the modules that a graph was captured with."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import torch


class NetworkWatch:
    """Remembers where a network's parameters lie, and its modules.

    A graph reads the parameters' memory. Values written in place (an optimizer, load_state_dict)
    are seen by the next replay. Parameters that have moved (`.to`, `.half`), parameters or modules
    that were replaced, and modules that went from evaluation to training are not. A network that is
    no torch module, and wraps none under `parameters`, cannot be watched.
    """

    def __init__(self, network: Callable[..., Any]):
        """Looks at the network as it is; keeps its parameters alive, not the network."""
        owner = getattr(getattr(network, "parameters", None), "__self__", None)
        modules = list(owner.modules()) if isinstance(owner, torch.nn.Module) else []
        self._modes = [(vars(module), module.training) for module in modules]
        held = [d for m in modules for d in (m._parameters, m._buffers, m._modules)]
        self._held = [(kept, dict(kept)) for kept in held if kept]
        tensors = [t for kept in held for t in kept.values() if isinstance(t, torch.Tensor)]
        self._tensors = [(t, t.data_ptr()) for t in tensors]

    def changed(self) -> bool:
        """Returns whether a replay would not be the network as it is now."""
        return (
            any(tensor.data_ptr() != at for tensor, at in self._tensors)
            or any(own["training"] is not mode for own, mode in self._modes)
            or any(not _same_objects(kept, before) for kept, before in self._held)
        )


def _same_objects(kept: dict[str, Any], before: dict[str, Any]) -> bool:
    return len(kept) == len(before) and all(map(is_, kept.values(), before.values()))
