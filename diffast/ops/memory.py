"""The one rule of memory that all ops share: a written tensor overlaps no other argument.

Which arguments an op writes stands in its schema (`Tensor(a!)`), so that no op can leave one out.
The compiled kernels make the same test (csrc/core/memory.h).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffast.ops.checks import check, overlap
from diffast.ops.schema import SCHEMAS, overload_of

# Arguments that an op reads element by element, before it writes the same element: here an output
# may be an input itself, the same tensor. Every other overlap is refused.
IN_PLACE = {
    "combine.out": ("xs", "outs"),
    "combine.table_out": ("xs", "outs"),
    "combine_error.out": ("xs", "outs"),
    "accept": ("sources", "targets"),
    "brownian.out": ("last", "increment", "value"),
    "sweep": ("x", "points"),
}
Named = tuple[str, str, torch.Tensor]  # the argument, what messages call the tensor, the tensor


@functools.cache
def parameters_of(name: str) -> tuple[tuple[str, bool], ...]:
    """Returns (argument, whether it is written) of the op that SCHEMAS calls so, in order."""
    return tuple(
        (argument.name, argument.alias_info is not None and argument.alias_info.is_write)
        for argument in overload_of(name)._schema.arguments
    )


@functools.cache
def written_of(name: str) -> slice:
    """Returns where the written arguments of an op stand; they follow one another."""
    places = [i for i, (_, written) in enumerate(parameters_of(name)) if written]
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)


WRITING = tuple(name for name in SCHEMAS if written_of(name).stop)


def flat(arguments: Any) -> list[torch.Tensor]:
    """Returns the tensors among arguments, and those in lists among them."""
    found = []
    for value in arguments:
        if isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, torch.Tensor)]
        elif isinstance(value, torch.Tensor):
            found.append(value)
    return found


def collector_of(name: str) -> Callable[[tuple], list[torch.Tensor]]:
    """Returns a function of a call's arguments in their order -> its written tensors.

    Every step of a plan is a call of it: the usual form, outputs and perhaps a status, is quick.
    """
    first, last = written_of(name).start, written_of(name).stop
    kinds = [str(argument.type) for argument in overload_of(name)._schema.arguments[first:last]]

    def outputs_and_status(args):
        outs = args[first] if len(args) > first else []
        if len(args) > first + 1 and args[first + 1] is not None:
            return [*outs, args[first + 1]]
        return outs

    def any_others(args):
        return flat(args[first:last])

    usual = kinds == ["List[Tensor]", "Optional[Tensor]"]
    return outputs_and_status if usual else any_others


def named_tensors(name: str, arguments: tuple, named: dict) -> Iterator[tuple[bool, Named]]:
    """Yields (whether it is written, its names and itself) for every tensor of a call."""
    for i, (argument, written) in enumerate(parameters_of(name)):
        value = arguments[i] if i < len(arguments) else named.get(argument)
        if isinstance(value, torch.Tensor):
            yield written, (argument, argument, value)
        elif isinstance(value, (list, tuple)):
            for k, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    yield written, (argument, f"{argument}[{k}]", item)


def check_memory(name: str, arguments: tuple, named: dict) -> None:
    """Refuses written tensors that share memory with another argument; all are contiguous."""
    op, in_place = name.partition(".")[0], IN_PLACE.get(name, ())
    read: list[Named] = []
    written: list[Named] = []
    for is_written, tensor in named_tensors(name, arguments, named):
        (written if is_written else read).append(tensor)
    for k, (argument, text, out) in enumerate(written):
        for other, other_text, t in read:
            if argument in in_place and other in in_place:
                check(
                    _is_same(t, out) or not overlap(t, out),
                    f"{op}: {text} overlaps {other_text} without being the same tensor",
                )
            else:
                check(
                    not overlap(t, out),
                    f"{op}: {text} overlaps {other_text} but is written while that is read",
                )
        for _, other_text, t in written[:k]:
            check(not overlap(t, out), f"{op}: {text} overlaps {other_text} but both are written")


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two contiguous tensors have the same bytes and the same dtype."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and a.numel() == b.numel()


def checks_memory(name: str) -> Callable:
    """Returns a decorator of an op's check: the op's own tests, and then that of the memory.

    The check has the arguments of the overload, and `pointers`: whether the tensors have memory.
    """

    def decorated(check_call: Callable) -> Callable:
        @functools.wraps(check_call)
        def call(*arguments, pointers=True, **named):
            result = check_call(*arguments, pointers=pointers, **named)
            if pointers:
                check_memory(name, arguments, named)
            return result

        return call

    return decorated
