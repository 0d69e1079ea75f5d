"""Device work as a CUDA graph: warm-up and capture on a side stream, replays on the current one.

The work is a function without arguments that uses no number of the host which changes between
replays: `ReplayableRun.run`, for one. It is not known here what the work is.
"""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from diffast.executors.device import host_buffer, new_event

Work = Callable[[], None]

# What torch and CUDA say of something that cannot be captured.
_REFUSED = re.compile(r"captur|legacy stream", re.IGNORECASE)

_OWN = Path(__file__).resolve().parents[1]
_TORCH = Path(torch.__file__).resolve().parent


class GraphError(RuntimeError):
    """A run cannot be a CUDA graph; the message names the cause."""


class Backend(Protocol):
    """What a graph needs of a device."""

    def aside(self, work: Work) -> None:
        """Runs the work on a side stream, after and before what the current stream does."""
        ...

    def tidy(self) -> None:
        """Waits for the device, and gives back what torch's allocator holds and nobody uses."""
        ...

    def capture(self, work: Work) -> Any:
        """Returns the work as a graph, which has `replay()`; raises what the work raises."""
        ...

    def reserved(self) -> int:
        """Returns the bytes that torch has taken from the device."""
        ...

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Copies a small tensor to the host without a wait; what is returned waits and reads."""
        ...

    def follow(self) -> None:
        """Lets the current stream wait for the last `mark`, whichever stream that was on."""
        ...

    def mark(self) -> None:
        """Marks what the current stream has been given so far."""
        ...


class CudaBackend:
    """`torch.cuda` as a backend."""

    def __init__(self, device: torch.device):
        """Makes the side stream."""
        self.device = device
        self.stream, self.done = torch.cuda.Stream(device), torch.cuda.Event()

    def aside(self, work: Work) -> None:
        """Runs the work on the side stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                work()
        finally:
            current.wait_stream(self.stream)

    def tidy(self) -> None:
        """In capture nothing can be freed to make room, and no finalizer should run."""
        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()

    def capture(self, work: Work) -> torch.cuda.CUDAGraph:
        """Captures the work on the side stream; after a failure the device is as before."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            # Other threads may go on allocating: only this one is watched.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, pool)
                raise
        current.wait_stream(self.stream)
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        """Ends a capture that failed, and mends what torch leaves of it."""
        index = self.device.index
        try:
            graph.capture_end()
        except Exception:
            # torch stops here before it takes the pool from the allocator. It has no public call
            # for that; where a version has none at all, the pool's memory stays reserved.
            for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
                with suppress(AttributeError, RuntimeError):
                    getattr(torch._C, name)(index, pool)
        with suppress(RuntimeError):
            graph.reset()
        with suppress(AttributeError, RuntimeError):
            self._free_generator(torch.cuda.default_generators[index])

    def _free_generator(self, generator: torch.Generator) -> None:
        """Lets torch's generator draw again, if it still believes in a capture that failed."""
        offset = generator.get_offset()
        try:
            torch.rand(1, device=self.device)
        except RuntimeError:  # a copy of its state is in no capture
            generator.graphsafe_set_state(generator.clone_state())
        generator.set_offset(offset)

    def reserved(self) -> int:
        """Returns the bytes that torch's allocator holds."""
        return torch.cuda.memory_reserved(self.device)

    def fetch(self, tensor: torch.Tensor) -> Callable[[], np.ndarray]:
        """Copies into page-locked memory."""
        host = host_buffer(tensor.numel(), tensor.dtype, self.device)
        host.copy_(tensor.reshape(-1), non_blocking=True)
        event = new_event(self.device)

        def read() -> np.ndarray:
            event.synchronize()
            return host.numpy()

        return read

    def follow(self) -> None:
        """Lets the current stream wait for the event; the first time there is none."""
        torch.cuda.current_stream(self.device).wait_event(self.done)

    def mark(self) -> None:
        """Records the event."""
        self.done.record(torch.cuda.current_stream(self.device))


# By type of device. Tests put a backend in that plays capture and replay on the CPU.
BACKENDS: dict[str, Callable[[torch.device], Backend]] = {"cuda": CudaBackend}


def backend_of(who: str, device: torch.device) -> Backend:
    """Returns the backend of a device.

    Raises:
        ValueError: if the device has no graphs.
    """
    if device.type not in BACKENDS:
        raise ValueError(
            f"{who}: a graph is for CUDA devices but the run is on {device}: use df.sample and "
            "leave executor out"
        )
    return BACKENDS[device.type](device)


class Graph:
    """Work that was captured.

    Args:
        work: what is captured. It is run before, as often as `warm_ups` says, so that libraries
            have chosen their kernels and compilers are done.
        backend: of the device.
        warm_ups: how many times.

    Attributes:
        pool: bytes that the graph's own memory pool took from the device.

    Raises:
        GraphError: if the work cannot be captured, or the memory does not suffice; the message
            names the cause. The streams are usable afterwards.
        Exception: what the work raises when it is run and not captured.
    """

    def __init__(self, work: Work, backend: Backend, warm_ups: int = 1):
        """Warms up and captures."""
        self.backend = backend
        try:
            for _ in range(warm_ups):
                backend.aside(work)
        except torch.OutOfMemoryError as error:
            raise GraphError(cause_of(error)) from error
        try:
            backend.tidy()  # first, or what it frees would hide what the graph takes
            before = backend.reserved()
            self._graph = backend.capture(work)
        except Exception as error:
            raise GraphError(cause_of(error)) from error
        self.pool = max(backend.reserved() - before, 0)

    def replay(self) -> None:
        """Gives the whole work to the current stream, as one launch."""
        self._graph.replay()


def cause_of(error: BaseException) -> str:
    """Returns why the work could not be captured: a clause without a full stop."""
    where = _where(error)
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device has too little memory for a graph, which keeps its own ({said})"
    if _REFUSED.search(said):
        return (
            f"the network waits for the device or copies to the host{where}, as .item(), .cpu() or "
            f"an `if` on a tensor do ({said})"
        )
    return f"the network raised {type(error).__name__} in capture{where}: {said}"


def _where(error: BaseException) -> str:
    """Returns the last line of the caller's code in the error's traceback, as " at file:line"."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_file() and not {_OWN, _TORCH}.intersection(path.resolve().parents):
            place = f" at {path.name}:{frame.lineno}"
    return place
