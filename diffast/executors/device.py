"""Small arrays on their way to a device and back: many in one copy, one wait to read.

A copy from ordinary host memory to a GPU waits for the GPU's queue, and each copy costs about as
much host time as a kernel. `Upload` therefore packs all arrays of a round into one page-locked
buffer. `Readback` is the other way, and the one place where a run waits for its results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

_ALIGNED = 16  # bytes; where an array begins in the packed buffer
_LAYOUTS = 32  # that are remembered at most: shapes of a run repeat


def on_host(device: torch.device) -> bool:
    """Returns whether the CPU reads tensors of the device without a copy and without a wait."""
    return device.type == "cpu"


def new_event(device: torch.device) -> Any:
    """Returns an event, recorded at this point of the device's current stream."""
    if device.type == "cuda":
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
    else:
        event = torch.Event(device)
        event.record()
    return event


@torch.inference_mode(False)
def host_buffer(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Returns a tensor [count] on the host that copies from and to the device do not wait for."""
    return torch.empty(count, dtype=dtype, pin_memory=device.type == "cuda")


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor, in page-locked memory if it has to be copied from the host to a GPU."""
    return tensor.pin_memory() if device.type == "cuda" and on_host(tensor.device) else tensor


class _Layout(NamedTuple):
    """Where arrays of certain shapes lie: views of both pairs of buffers."""

    size: int
    host: list[list[np.ndarray]]
    there: list[list[torch.Tensor]]


class Upload:
    """Sends arrays to a device in one copy that is not waited for.

    Two pairs of buffers take turns, one of a pair on the host and one on the device. The tensors
    are views of the latter and hold what was sent until the send after the next one. The buffers
    stay where they are as long as the arrays fit in them.

    Args:
        device: where the arrays go; the CPU takes them as they are.
    """

    def __init__(self, device: torch.device):
        """Begins without buffers; the first `send` makes them."""
        self.device, self.direct = device, on_host(device)
        self.host: list[torch.Tensor] = []
        self.there: list[torch.Tensor] = []
        self.events: list[Any] = [None, None]
        self.turn = 0
        self.layouts: dict[tuple, _Layout] = {}

    def send(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the arrays as tensors on the device, by name.

        On the CPU the tensors share the arrays' memory.
        """
        if self.direct:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        key = tuple((array.shape, array.dtype) for array in arrays.values())
        layout = self.layouts.get(key) or self._laid_out(key)
        turn = self.turn = 1 - self.turn
        event = self.events[turn]
        if event is not None and not event.query():
            event.synchronize()
        for into, array in zip(layout.host[turn], arrays.values(), strict=True):
            into[...] = array
        size = layout.size
        self.there[turn][:size].copy_(self.host[turn][:size], non_blocking=True)
        self.events[turn] = new_event(self.device)
        return dict(zip(arrays, layout.there[turn], strict=True))

    @torch.inference_mode(False)
    def _laid_out(self, key: tuple) -> _Layout:
        """Returns the layout for arrays of these shapes and dtypes; makes larger buffers for it."""
        starts, size = [], 0
        for shape, dtype in key:
            starts.append(size)
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNED) * _ALIGNED
        if not self.there or size > len(self.there[0]):
            # The old ones live as long as a copy or a tensor needs them.
            self.layouts.clear()
            self.host = [host_buffer(2 * size, torch.uint8, self.device) for _ in range(2)]
            room = {"dtype": torch.uint8, "device": self.device}
            self.there = [torch.empty(2 * size, **room) for _ in range(2)]
        elif len(self.layouts) >= _LAYOUTS:
            self.layouts.clear()
        parts = [(start, *form) for start, form in zip(starts, key, strict=True)]
        hosts = [[_part(host, *part).numpy() for part in parts] for host in self.host]
        there = [[_part(buffer, *part) for part in parts] for buffer in self.there]
        layout = self.layouts[key] = _Layout(size, hosts, there)
        return layout


def _part(buffer: torch.Tensor, start: int, shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
    """Returns the part of a buffer of bytes that holds an array of that shape."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    size = int(np.prod(shape)) * dtype.itemsize
    return buffer[start : start + size].view(kind).view(shape)


def sent(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Returns arrays as tensors of their own on the device, after one copy, not waited for.

    For what a run sends once, or seldom. On the CPU the tensors share the arrays' memory.
    """
    named = {str(i): array for i, array in enumerate(arrays)}
    return list(Upload(device).send(named).values())


class Readback:
    """Reads a tensor from a device: one copy, and one wait.

    Args:
        device: where the tensors are; those of the CPU are read as they are.
    """

    def __init__(self, device: torch.device):
        """Begins without a buffer."""
        self.device, self.direct = device, on_host(device)
        self.host = torch.empty(0)

    def take(self, tensor: torch.Tensor) -> np.ndarray:
        """Returns the tensor's numbers, flat; they hold until the next `take`."""
        if self.direct:
            return tensor.reshape(-1).numpy()
        count = tensor.numel()
        if count > len(self.host) or tensor.dtype != self.host.dtype:
            self.host = host_buffer(count, tensor.dtype, self.device)
        host = self.host[:count]
        host.copy_(tensor.reshape(-1), non_blocking=True)
        new_event(self.device).synchronize()
        return host.numpy()
