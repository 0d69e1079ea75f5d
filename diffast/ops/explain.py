"""Calls of the ops that say which arguments disagree.

The compiled kernels refuse every bad call in one sentence. The functions made here then run the
op's Python checks on the same arguments, and raise what those say.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from diffast.ops import autograd
from diffast.ops.checks import check_dense
from diffast.ops.load import modules
from diffast.ops.memory import collector_of, named_tensors, written_of
from diffast.ops.schema import overload_of

REFUSAL = "the arguments do not fit together"  # csrc/core/checks.h
CHECKS = {name: check for m in modules("checks") for name, check in m.CHECKS.items()}

# A kernel and torch's dispatcher raise RuntimeError. The fakes of tensors without memory see the
# arguments as they are: an argument of a wrong kind is noticed by any of the others.
_ANY = (RuntimeError, TypeError, ValueError, AttributeError, IndexError)

_is_inference_mode = torch.is_inference_mode_enabled
_is_traced = torch.compiler.is_dynamo_compiling
_increment_version = torch._C._increment_version


def _raise_reason(error: Exception, name: str, args: tuple, named: dict) -> NoReturn:
    """Raises an op's error; in the op's own words where torch or a kernel has only said no."""
    text, op = str(error), name.partition(".")[0]
    reason = None
    try:
        if not text.startswith(f"{op}: "):
            _check_kinds(name, args, named)
            if REFUSAL in text:
                CHECKS[name](*args, **named)
            if "API call failed at" in text:  # the line of torch's header follows
                text = f"{op}: torch gives the kernel no memory of a tensor of the call"
                reason = RuntimeError(text)
    except _ANY as said:
        reason = said if isinstance(said, RuntimeError) else error
    if reason is None:
        raise error
    raise reason from None


def _check_kinds(name: str, args: tuple, named: dict) -> None:
    """Refuses arguments that are missing, unknown or no numbers or tensors as the schema has them.

    What torch's dispatcher says of them is seven lines long.
    """
    op, parameters = name.partition(".")[0], overload_of(name)._schema.arguments
    known = [parameter.name for parameter in parameters]
    if len(args) > len(known):
        raise RuntimeError(f"{op}: {len(args)} arguments but {', '.join(known)} are all")
    for argument in named:
        if argument not in known[len(args) :]:
            what = "given twice" if argument in known else "unknown"
            raise RuntimeError(f"{op}: {argument} is {what} but {', '.join(known)} are needed")
    for i, parameter in enumerate(parameters):
        if i >= len(args) and parameter.name not in named:
            if not parameter.has_default_value():
                raise RuntimeError(f"{op}: {parameter.name} is missing")
            continue
        value = args[i] if i < len(args) else named[parameter.name]
        wanted = str(parameter.type)
        if not _is_kind(value, wanted):
            raise RuntimeError(
                f"{op}: {parameter.name} is {_described(value)} but {_WORDS[wanted]} is needed"
            )
    for _, (_, text, t) in named_tensors(name, args, named):
        check_dense(op, text, t)


_WORDS = {
    "Tensor": "a tensor",
    "Optional[Tensor]": "a tensor or None",
    "List[Tensor]": "a list of tensors",
    "List[float]": "a list of numbers",
    "List[int]": "a list of integers of 64 bits",
    "float": "a number",
    "int": "an integer of 64 bits",
    "bool": "True or False",
}


def _is_kind(value: Any, wanted: str) -> bool:
    """Returns whether a value is of a schema's type; True for types that are not known here."""
    if wanted.startswith("Optional["):
        return value is None or _is_kind(value, wanted[9:-1])
    if wanted.startswith("List["):
        many = isinstance(value, (list, tuple))
        return many and all(_is_kind(item, wanted[5:-1]) for item in value)
    if wanted == "Tensor":
        return isinstance(value, torch.Tensor)
    if wanted == "int":
        whole = isinstance(value, int) or (hasattr(value, "__index__") and value.ndim == 0)
        return whole and -(1 << 63) <= value.__index__() < 1 << 63
    if wanted == "float":
        return isinstance(value, (int, float)) or (hasattr(value, "dtype") and value.ndim == 0)
    if wanted == "bool":
        return isinstance(value, (bool, int)) or (hasattr(value, "dtype") and value.ndim == 0)
    return True


def _described(value: Any) -> str:
    """Returns a value's type in words; that of the first item that is no tensor, in a list."""
    if isinstance(value, (list, tuple)):
        kinds = {type(item).__name__ for item in value if not isinstance(item, torch.Tensor)}
        return f"a {type(value).__name__} with {' and '.join(sorted(kinds)) or 'tensors'}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"a {type(value).__name__}" if value is not None else "None"


def explained(name: str) -> Callable:
    """Returns a function that calls an op and explains what the op refuses.

    torch.compile traces through the function: the graph holds the op, and a bad call is refused by
    the op's fake, which runs the Python checks itself.

    Args:
        name: of an overload, `combine.out`. The function has the overload's arguments.
    """
    overload = overload_of(name)
    if written_of(name).stop:
        call = _writing(name, overload)
    else:

        def call(*args, **named):
            try:
                return overload(*args, **named)
            except _ANY as error:
                _raise_reason(error, name, args, named)

    call.__name__ = call.__qualname__ = name
    return call


def _writing(name: str, overload: torch._ops.OpOverload) -> Callable:
    """Returns the function of an op that writes into given tensors.

    Autograd's kernel (ops/autograd.py) is not called in inference mode, nor where all tensors were
    made in that mode, nor below autograd, where integrations call the ops. What it would do is done
    here.
    """
    first, collect = written_of(name).start, collector_of(name)

    def call(*args, **named):
        if _is_traced():  # the graph holds the op, whose fake and autograd kernel refuse
            return overload(*args, **named)
        try:
            if _is_inference_mode():  # no tangents there
                overload(*args, **named)
                outs = collect(args)
                if named:
                    tensors = named_tensors(name, args, named)
                    outs = [t for is_written, (*_, t) in tensors if is_written]
                _increment_version(outs)
                return
            if forward_ad._current_level >= 0:
                autograd.refuse_duals(name, (*args, *named.values()))
            # Autograd's kernel looks at all outputs, unless all tensors are of inference mode.
            out = args[first] if len(args) > first else None
            if type(out) is list and out:
                out = out[0]
            if type(out) is not torch.Tensor or out.is_inference():
                autograd.refuse_inference(name, args, named)
            overload(*args, **named)
        except _ANY as error:
            _raise_reason(error, name, args, named)

    return call
