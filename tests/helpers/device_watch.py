"""What a device is asked to do meanwhile: waits of the host for it, kernels launched on it.

On CUDA the driver answers: torch's sync-debug mode and its profiler. On the CPU, where the tests of
tests/gpu can be tried out, nothing waits, and the operations that torch dispatches are counted.
"""

import contextlib
import warnings

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Words of torch 2.11 and of 2.13, at the first call of set_sync_debug_mode in a process.
PROTOTYPE = "Synchronization debug mode is a prototype feature"
# Words of torch 2.11 at the first profile of a process, about profiles of several cycles.
CYCLE = "Warning: Profiler clears events at the end of each cycle"
WAITED = "called a synchronizing CUDA operation"
# Operations that launch nothing: they make views, or memory without contents.
FREE = ("view", "expand", "slice", "select", "split", "unsqueeze", "squeeze", "alias", "detach")
FREE += ("empty", "as_strided", "transpose", "permute", "t.default", "reshape", "unbind", "chunk")


def _set_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PROTOTYPE, UserWarning)
        torch.cuda.set_sync_debug_mode(mode)


def reset_waits() -> None:
    """Switches sync-debug mode off, whatever a test has left behind."""
    if torch.cuda.is_available() and torch.cuda.get_sync_debug_mode() != 0:
        _set_mode("default")


@contextlib.contextmanager
def no_waits(device="cuda"):
    """Makes any wait of the host for the device an error; the mode is off again in every case."""
    if torch.device(device).type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    try:
        _set_mode("error")
        yield
    finally:
        _set_mode("default")


class Waits(list):
    """The words of the waits that were seen."""


@contextlib.contextmanager
def counted_waits(device="cuda"):
    """Yields a list that holds, when the block is left, one entry for each wait for the device."""
    seen = Waits()
    if torch.device(device).type != "cuda":
        yield seen
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _set_mode("warn")
            warnings.simplefilter("always")
            yield seen
        finally:
            _set_mode("default")
    seen += [str(w.message) for w in caught if WAITED in str(w.message)]
    for other in caught:
        if WAITED not in str(other.message) and PROTOTYPE not in str(other.message):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


class _Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not any(word in str(func) for word in FREE):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def launches(function, device="cuda") -> list[str]:
    """Returns the names of the kernels that a call of `function` launches.

    Copies and fills by the copy engine are left out. On the CPU: the operations that torch
    dispatches, views and empty tensors left out.
    """
    if torch.device(device).type != "cuda":
        with _Dispatched() as seen:
            function()
        return seen.names
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", CYCLE, UserWarning)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            function()
            torch.cuda.synchronize()
    names = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in names if not name.startswith(("Memcpy", "Memset"))]
