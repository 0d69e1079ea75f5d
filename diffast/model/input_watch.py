"""Whether a network wrote into its input, which a solver still needs.

Torch counts what its own operations write (`Tensor._version`), on every device and for nothing. It
does not count writes through `.data`, numpy or another library. Those are found on the host by
looking at numbers of the input before and after the call: all of them where there are few and in
the first call of a denoiser, else some that are spread over the tensor. On a device that look would
wait, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

# Inputs of at most so many numbers are compared in full in every call, larger ones at about PLACES
# numbers: together with the look before the call that takes 0.2 us.
SMALL = 1024
PLACES = 64

# What numpy has too.
_PLAIN = (torch.float32, torch.float64, torch.float16)
# What has the width of a number, for dtypes that numpy does not know.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class InputWritten(ValueError):
    """A network changed its input, or a condition.

    Args:
        who: the function that called the network.
        when: words on the call.
        what: was written into.
    """

    def __init__(self, who: str = "Denoiser", when: str = "", what: str = "input"):
        """Says what to do."""
        super().__init__(
            f"{who}: the network wrote into its {what}{when}, but the solver still needs it: give "
            "it a copy"
        )


class InputWatch:
    """Looks at a tensor before and after a network call.

    Args:
        x: the network's input; the watch of a tensor that lives longer may be used again.
        beside: other tensors that the network could have kept from earlier calls, and that the
            solver needs. Only writes that torch counts are noticed in them.
    """

    __slots__ = ("_numbers", "_places", "_versioned", "beside", "shape", "x")

    def __init__(self, x: torch.Tensor, beside: Sequence[torch.Tensor] = ()):
        """Finds the numbers that are looked at."""
        self.x, self.shape = x, x.shape
        self.beside = [other for other in beside if not other.is_inference()]
        self._versioned = not x.is_inference()  # such tensors count no writes
        self._numbers = self._places = numbers_of(x)
        if self._numbers is not None and self._numbers.size > SMALL:
            # An odd step: the places are not all in one column of an image.
            self._places = self._numbers[:: (self._numbers.size // PLACES) | 1]

    def look(self, whole: bool = False) -> tuple[int, bytes]:
        """Returns what a write changes; `whole`: also a write to one number anywhere."""
        numbers = self._numbers if whole else self._places
        version = self.x._version if self._versioned else 0
        if self.beside:
            version += sum(other._version for other in self.beside)
        return version, b"" if numbers is None else numbers.tobytes()


def watches_of(inputs: Sequence[torch.Tensor]) -> list[InputWatch]:
    """Returns a watch for each of these tensors: one for all views of a tensor of one shape."""
    made: dict[tuple, InputWatch] = {}
    found: list[InputWatch] = []
    for x in inputs:
        if found and found[-1].x is x:
            found.append(found[-1])
            continue
        base = x if x._base is None else x._base
        key = id(base), x.shape
        if key not in made:
            made[key] = InputWatch(x)
        found.append(made[key])
    if len(made) > 1:  # a network may have kept an input where the state lies now
        for watch in made.values():
            watch.beside = [other.x for other in made.values() if other is not watch]
    return found


# What a write between two steps changes, of a tensor that a loop of the caller's holds.
_MARK = "_diffast_mark"


def mark(x: torch.Tensor) -> None:
    """Notes on a tensor how it is now; the tensor itself is not kept alive."""
    if not torch.compiler.is_compiling():
        setattr(x, _MARK, InputWatch(x).look())


def is_changed(x: torch.Tensor) -> bool:
    """Returns whether a tensor was written to since `mark`; False for one without a mark."""
    if torch.compiler.is_compiling():
        return False
    before = getattr(x, _MARK, None)
    return before is not None and InputWatch(x).look() != before


def versions_of(arguments: Mapping[str, Any]) -> list[int]:
    """Returns how often each tensor among a network's conditions was written to."""
    return [
        value._version
        for value in arguments.values()
        if isinstance(value, torch.Tensor) and not value.is_inference()
    ]


def numbers_of(x: torch.Tensor):
    """Returns the numbers of a tensor as a flat numpy array on the same memory.

    None: the tensor is on a device, or none of plain memory that lies without gaps.
    """
    if type(x) is not torch.Tensor or x.device.type != "cpu" or not x.numel():
        return None
    try:
        x = x.detach() if x.requires_grad else x
        if x.is_contiguous() and x.dtype in _PLAIN:
            return x.numpy().reshape(-1)
        if not x.is_contiguous():
            order = (0, *range(2, x.dim()), 1)  # channels last
            x = x.permute(order) if x.dim() > 2 else x
            if not x.is_contiguous():
                return None
        return x.view(_WORDS[x.element_size()]).numpy().reshape(-1)
    except (RuntimeError, TypeError, ValueError, KeyError):  # a tensor of a transform, or a fake
        return None
