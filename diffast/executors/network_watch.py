"""Whether a network still has the memory and the modules that a graph was captured with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class NetworkWatch:
    """Remembers where the parameters of networks lie, and their modules.

    A graph reads the parameters' memory. Values written in place (an optimizer, load_state_dict)
    are seen by the next replay. Parameters that have moved (`.to`, `.half`), parameters or modules
    that were replaced, and modules that went from evaluation to training are not. A network that is
    no torch module, and wraps none under `parameters`, cannot be watched.
    """

    def __init__(self, *networks: Callable[..., Any]):
        """Looks at the networks as they are; keeps their parameters alive, not the networks."""
        owners = (getattr(getattr(n, "parameters", None), "__self__", None) for n in networks)
        modules = [m for own in owners if isinstance(own, torch.nn.Module) for m in own.modules()]
        self._own = [vars(module) for module in modules]
        self._modes = [own["training"] for own in self._own]
        # Objects that are held have numbers (`id`) of their own.
        held = [d for m in modules for d in (m._parameters, m._buffers, m._modules) if d]
        self._held = [(kept, list(kept.values()), [*map(id, kept.values())]) for kept in held]
        tensors = [t for kept in held for t in kept.values() if isinstance(t, torch.Tensor)]
        self._tensors, self._at = tensors, [t.data_ptr() for t in tensors]

    def changed(self) -> bool:
        """Returns whether a replay would not be the network as it is now."""
        return (
            [t.data_ptr() for t in self._tensors] != self._at
            or [own["training"] for own in self._own] != self._modes
            or any([*map(id, kept.values())] != before for kept, _, before in self._held)
        )
