"""Checks of arguments at the door: numbers, shapes, devices, functions, in the caller's words.

Every message begins with the name of the public function (`who`) and names the argument and what
was given. A value that is unusual and clear (a number of numpy, a tensor of one number, a whole
float for a count) is taken.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shown(value: Any) -> str:
    """Returns what messages say of a value: a few characters of it, or its type."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)} and {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and {value.dtype}"
    text = repr(value)
    if isinstance(value, (int, float, complex, str, bytes, bool, list, tuple, dict, type(None))):
        return text if len(text) < 60 else f"{text[:56]}..."
    return text if isinstance(value, np.generic) else f"a {type(value).__name__}"


def flag(who: str, name: str, value: Any) -> bool:
    """Returns True or False; 1 and 0 are taken for them.

    Raises:
        TypeError: for anything else.
    """
    if value is True or value is False:
        return value
    if isinstance(value, (np.bool_, int, np.integer)) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{who}: {name} is {shown(value)} but must be True or False")


def whole(who: str, name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns a count; floats that are whole numbers are taken.

    Raises:
        TypeError: for what is no number.
        ValueError: for a number that is not whole, or lies outside of [least, most].
    """
    if type(value) is int and value >= least and (most is None or value <= most):
        return value
    number = _number(value)
    if number is None:
        raise TypeError(
            f"{who}: {name} is {shown(value)} but must be a whole number{_range(least)}"
        )
    if not math.isfinite(number) or number != int(number):
        raise ValueError(
            f"{who}: {name} is {shown(value)} but must be a whole number{_range(least)}"
        )
    count = operator.index(value) if hasattr(value, "__index__") else int(number)
    if count < least or (most is not None and count > most):
        raise ValueError(
            f"{who}: {name} is {count} but must be a whole number{_range(least, most)}"
        )
    return count


def _range(least: int, most: int | None = None) -> str:
    return f" from {least}" if most is None else f" from {least} to {most}"


def _number(value: Any) -> float | None:
    """Returns a value as a float; None for what is no real number."""
    if isinstance(value, (bool, np.bool_, str, bytes, bytearray, complex, np.complexfloating)):
        return None
    if isinstance(value, (torch.Tensor, np.ndarray)):
        dims = value.dim() if isinstance(value, torch.Tensor) else value.ndim
        kind = str(value.dtype)
        if dims or "complex" in kind or "bool" in kind:
            return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def number(
    who: str,
    name: str,
    value: Any,
    words: str = "be finite",
    holds: Callable[[float], bool] = math.isfinite,
) -> float:
    """Returns a real number as a float.

    Args:
        who: the public function.
        name: of the argument.
        value: a number; of numpy, of a fraction, or a tensor of one number.
        words: what the number must do: "be positive".
        holds: whether it does.

    Raises:
        TypeError: for what is no real number.
        ValueError: for NaN, and for a number that is not as the words say.
    """
    found = _number(value)
    if found is None:
        raise TypeError(f"{who}: {name} is {shown(value)} but must be a number")
    if not holds(found):
        raise ValueError(f"{who}: {name} is {shown(value)} but must {words}")
    return found


def positive(who: str, name: str, value: Any, finite: bool = False) -> float:
    """Returns a number above 0; raises as `number`."""
    words = "be above 0 and finite" if finite else "be above 0"
    return number(who, name, value, words, lambda n: n > 0 and (n < math.inf or not finite))


def function(who: str, name: str, value: Any, optional: bool = True) -> None:
    """Raises ValueError for what cannot be called; None is left alone where it is `optional`."""
    if not (callable(value) or (value is None and optional)):
        raise ValueError(f"{who}: {name} is {shown(value)} but must be a function")


def choice(who: str, name: str, value: Any, known: Iterable[str]) -> None:
    """Raises ValueError for what is not one of these names."""
    names = tuple(known)
    if not (isinstance(value, str) and value in names):
        raise ValueError(f"{who}: {name} is {shown(value)} but must be one of {', '.join(names)}")


def sizes(who: str, shape: Any) -> tuple[int, ...]:
    """Returns a shape [B, ...] as a tuple of whole numbers.

    Raises:
        ValueError: for what is none.
    """
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        given = shape
        if isinstance(shape, (str, bytes, Mapping, set, frozenset)):
            given = None
        try:
            shape = tuple(_size(n) for n in given)  # pyright: ignore[reportOptionalIterable]
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{who}: shape is {shown(shape)} but [B, ...] is needed, whole numbers"
            ) from None
    if len(shape) < 1 or min(shape) < 0:
        raise ValueError(f"{who}: shape is {list(shape)} but [B, ...] is needed")
    if math.prod(shape) >= 1 << 60:
        raise ValueError(f"{who}: shape is {list(shape)}, more numbers than any memory holds")
    return shape


def _size(n: Any) -> int:
    if isinstance(n, (bool, np.bool_)) or (isinstance(n, torch.Tensor) and n.dtype == torch.bool):
        raise TypeError
    return operator.index(n)


def device(who: str, value: Any) -> torch.device:
    """Returns a device by its name.

    Raises:
        ValueError: for a name that torch does not know, or a CUDA device that is not there.
    """
    if type(value) is not torch.device:
        number_of_one = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not (isinstance(value, str) or number_of_one):
            raise ValueError(f"{who}: device is {shown(value)} but must be a device or its name")
        try:
            value = torch.device(value if isinstance(value, str) else int(value))
        except RuntimeError:
            raise ValueError(
                f"{who}: device is {value!r}, which torch does not know: 'cpu' or 'cuda:0'"
            ) from None
    if value.type == "cuda" and (value.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"{who}: device is '{value}' but there are {count} CUDA devices")
    return value


def floating(who: str, name: str, value: Any, optional: bool = True) -> None:
    """Raises ValueError for what is no floating-point dtype that diffast computes with."""
    if not (value in FLOATS or (value is None and optional)):
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"{who}: {name} is {shown(value)} but must be one of {known}")


def ids(who: str, given: Any, batch: int) -> torch.Tensor:
    """Returns the numbers that tell samples apart as int64 [B], where they are given.

    Raises:
        ValueError: for what are no B integers of 64 bits.
    """
    try:
        numbers = given if isinstance(given, torch.Tensor) else torch.as_tensor(given, device="cpu")
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: ids must be integers of 64 bits, signed: {error}") from None
    whole_ones = not numbers.dtype.is_floating_point and not numbers.dtype.is_complex
    if numbers.numel() and not (whole_ones and numbers.dtype != torch.bool):
        raise ValueError(f"{who}: ids are {numbers.dtype} but integers are needed")
    if tuple(numbers.shape) != (batch,):
        raise ValueError(f"{who}: ids are {list(numbers.shape)} but there are {batch} samples")
    return numbers.to(torch.int64)


def state(who: str, name: str, x: Any) -> torch.Tensor:
    """Returns a state [B, ...] as it is.

    Raises:
        ValueError: for what is no dense tensor of float32 or float64 with a batch dimension.
    """
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{who}: {name} is {shown(x)} but the state is a tensor")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{who}: {name} is {x.dtype} but the state is float32 or float64")
    if x.dim() < 1:
        raise ValueError(f"{who}: {name} has no batch dimension, but [B, ...] is needed")
    if x.layout is not torch.strided:
        raise ValueError(f"{who}: {name} is of layout {x.layout} but the state is a dense tensor")
    return x


def no_fake_mode(who: str) -> None:
    """Raises ValueError inside of torch's FakeTensorMode, whose tensors hold no numbers."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        raise ValueError(
            f"{who}: a run inside of torch's FakeTensorMode would make no numbers: trace or export "
            "the network, not the run"
        )
