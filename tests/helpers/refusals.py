"""What is asserted of a call that an op refuses."""

import pytest
import torch

from diffast.ops.explain import REFUSAL
from diffast.ops.schema import overload_of


def bytes_of(value):
    """Returns the bytes of every CPU tensor of a call, its whole storage."""
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in bytes_of(part)]
    if isinstance(value, torch.Tensor) and value.device.type == "cpu":
        return [bytes(value.untyped_storage().tolist())]
    return []


def said_of(function, arguments):
    with pytest.raises(RuntimeError) as error:
        function(*arguments)
    return str(error.value)


def by_the_kernel(name, arguments):
    """Returns what the CPU kernel itself says: a tensor on `meta` would lead to the fake one."""
    kernel = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return said_of(lambda *call: overload_of(name).redispatch(kernel, *call), arguments)


def check_refused(name, function, specification, arguments, text):
    """Asserts that a bad call is refused everywhere, in clear words, before anything is written.

    Args:
        name: of the op's overload, `combine.out`.
        function: the one of diffast.ops, which explains what the kernel refuses.
        specification: the reference.
        arguments: the call.
        text: how the clear words begin.
    """
    before = bytes_of(arguments)
    assert by_the_kernel(name, arguments) == f"diffast::{name.partition('.')[0]}: {REFUSAL}"
    clear = said_of(specification, arguments)
    assert clear.startswith(text)
    assert said_of(function, arguments) == clear
    said_of(overload_of(name), arguments)
    assert bytes_of(arguments) == before


def check_fake_refuses(name, arguments, text):
    """Asserts that a bad call is refused while torch.compile traces it, in the same words."""

    def fake(value):
        if isinstance(value, list):
            return [fake(item) for item in value]
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    mode = torch._subclasses.FakeTensorMode()
    with mode:
        said = said_of(overload_of(name), [fake(argument) for argument in arguments])
    assert said.startswith(text)


def can_be_faked(text):
    """Whether a fake tensor can be so wrong: it has no memory, and is on no other device."""
    return not any(word in text for word in ("overlaps", "is on", "is read after"))
