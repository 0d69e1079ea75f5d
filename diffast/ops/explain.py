"""Calls of the ops that say which arguments disagree.

The compiled kernels refuse every bad call in one sentence. The functions made here then run the
op's Python checks on the same arguments, and raise what those say.
"""

from collections.abc import Callable

from diffast.ops.load import modules
from diffast.ops.schema import overload_of

REFUSAL = "the arguments do not fit together"  # csrc/core/checks.h
CHECKS = {name: check for m in modules("checks") for name, check in m.CHECKS.items()}


def _reason(error: RuntimeError, check: Callable, args: tuple, named: dict):
    """Returns what the checks raise for the call, or None if they have nothing to say."""
    if REFUSAL not in str(error):
        return None
    try:
        check(*args, **named)
    except RuntimeError as reason:
        return reason
    return None


def explained(name: str) -> Callable:
    """Returns a function that calls an op and explains what the op refuses.

    torch.compile traces through the function: the graph holds the op, and a bad call is refused by
    the op's fake, which runs the Python checks itself.

    Args:
        name: of an overload, `combine.out`. The function has the overload's arguments.
    """
    overload, check = overload_of(name), CHECKS[name]

    def call(*args, **named):
        try:
            return overload(*args, **named)
        except RuntimeError as error:
            reason = _reason(error, check, args, named)
            if reason is None:
                raise
            raise reason from None

    call.__name__ = call.__qualname__ = name
    return call
