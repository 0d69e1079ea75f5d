"""`DIFFAST_SYNC=1`: every kernel is waited for, so that the op whose kernel failed raises.

A kernel that fails on a GPU is noticed when the host waits for the device, in an op that may have
nothing to do with it. With this variable each op waits for its own kernels, and indices in device
memory are looked at before a kernel follows them. While a CUDA graph is captured nothing runs, and
nothing is waited for.
"""

import functools
import os
from collections.abc import Callable

import torch


def wants_sync() -> bool:
    """Returns whether `DIFFAST_SYNC` is 1.

    Raises:
        ValueError: it is neither unset nor 0 nor 1.
    """
    value = os.environ.get("DIFFAST_SYNC", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"DIFFAST_SYNC is {value!r} but must be 0, 1 or unset")
    return value == "1"


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def indices_are_checked(device: torch.device) -> bool:
    """Returns whether checks look at tensors of indices there: the host may have to wait."""
    if device.type in ("cpu", "meta"):
        return device.type == "cpu"
    return wants_sync() and not _is_captured(device)


def _devices(arguments) -> set[torch.device]:
    """Returns the CUDA devices of the tensors among the arguments, and in lists among them."""
    flat = [t for a in arguments for t in (a if isinstance(a, list | tuple) else (a,))]
    return {t.device for t in flat if isinstance(t, torch.Tensor) and t.device.type == "cuda"}


def waiting(name: str, function: Callable) -> Callable:
    """Returns the op's function, which then waits for the devices of its tensors.

    Args:
        name: of the op, which begins the message.
        function: launches kernels for its arguments.
    """

    @functools.wraps(function)
    def wait(*arguments):
        result = function(*arguments)
        for device in _devices(arguments):
            if _is_captured(device):
                continue
            try:
                torch.cuda.synchronize(device)
            except RuntimeError as error:
                raise RuntimeError(f"{name}: its kernel failed on {device}: {error}") from error
        return result

    return wait
