"""Small arrays on their way to a device and back: many in one copy, one wait to read.

A copy from ordinary host memory to a GPU waits for the GPU's queue, and each copy costs about as
much host time as a kernel. `Upload` therefore packs all arrays of a round into one page-locked
buffer. `Readback` is the other way, and the one place where a run waits for its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
    return torch.empty(count, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor, in page-locked memory if it has to be copied from the host to a GPU."""
    return tensor.pin_memory() if device.type == "cuda" and on_host(tensor.device) else tensor


class _Buffers:
    """A buffer of bytes on the host and one on the device, of one size."""

    def __init__(self, size: int, device: torch.device):
        self.host = host_buffer(size, torch.uint8, device)
        self.bytes = self.host.numpy()
        self.there = torch.empty(size, dtype=torch.uint8, device=device)
        self.copied: Any = None  # the event after the last copy
        # By shapes and dtypes: how many bytes, the arrays' places on the host and on the device.
        self.layouts: dict[tuple, tuple[int, list[np.ndarray], list[torch.Tensor]]] = {}

    @torch.inference_mode(False)
    def lay_out(self, key: tuple) -> tuple[int, list[np.ndarray], list[torch.Tensor]]:
        """Finds places for arrays of these shapes and dtypes, one after the other."""
        at, host, there, typed = 0, [], [], {}
        for shape, dtype in key:
            size = math.prod(shape) * dtype.itemsize
            host.append(self.bytes[at : at + size].view(dtype).reshape(shape))
            if dtype not in typed:
                typed[dtype] = self.there.view(torch.from_numpy(np.empty(0, dtype)).dtype)
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            there.append(typed[dtype].as_strided(shape, strides, at // dtype.itemsize))
            at += _room(size)
        if len(self.layouts) >= _LAYOUTS:
            self.layouts.clear()
        self.layouts[key] = at, host, there
        return self.layouts[key]


def _room(size: int) -> int:
    """Returns how many bytes of a buffer an array of that many bytes takes."""
    return -(-size // _ALIGNED) * _ALIGNED


class Upload:
    """Sends arrays to a device in one copy that is not waited for.

    Two pairs of buffers take turns, one of a pair on the host and one on the device. The tensors
    are views of the latter and hold what was sent until the send after the next one. The buffers
    stay where they are as long as the arrays fit in them.

    Args:
        device: where the arrays go; the CPU takes them as they are.
    """

    def __init__(self, device: torch.device):
        """Begins without buffers; they are made when they are first needed."""
        self.device, self.direct = device, on_host(device)
        self.buffers: list[_Buffers] = [_Buffers(0, device)] * 2
        self.turn = 0

    def send(self, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the arrays as tensors on the device, by name.

        On the CPU the tensors share the arrays' memory.
        """
        if self.direct:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        key = tuple((array.shape, array.dtype) for array in arrays.values())
        turn = self.turn = 1 - self.turn
        buffers = self.buffers[turn]
        found = buffers.layouts.get(key)
        if found is None:
            size = sum(_room(array.nbytes) for array in arrays.values())
            if size > len(buffers.bytes):
                # What is still copied or read keeps the old buffers alive.
                size = max(2 * size, len(self.buffers[1 - turn].bytes))
                buffers = self.buffers[turn] = _Buffers(size, self.device)
            found = buffers.lay_out(key)
        size, host, there = found
        if buffers.copied is not None and not buffers.copied.query():
            buffers.copied.synchronize()
        for into, array in zip(host, arrays.values(), strict=True):
            into[...] = array
        buffers.there[:size].copy_(buffers.host[:size], non_blocking=True)
        buffers.copied = new_event(self.device)
        return dict(zip(arrays, there, strict=True))


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
        self.host = torch.empty(0, device="cpu")

    def take(self, tensor: torch.Tensor) -> np.ndarray:
        """Returns the tensor's numbers, flat; they hold until the next `take`."""
        if self.direct:
            return tensor.reshape(-1).numpy()
        count = tensor.numel()
        if count > len(self.host) or tensor.dtype != self.host.dtype:
            self.host = host_buffer(2 * count, tensor.dtype, self.device)
        host = self.host[:count]
        host.copy_(tensor.reshape(-1), non_blocking=True)
        new_event(self.device).synchronize()
        return host.numpy()
