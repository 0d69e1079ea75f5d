"""Docstrings of functions that share arguments: what is said once for all of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def documented(arguments: dict[str, str], errors: str) -> Callable[[Function], Function]:
    """Returns a decorator that completes "Args:" and "Raises:" of a function's docstring.

    Args:
        arguments: what is said of arguments that the docstring leaves out, by name.
        errors: what is said under "Raises:" where the docstring says nothing.

    Raises:
        KeyError: from the decorator, for an argument that nothing is said about.
    """

    def complete(function: Function) -> Function:
        if function.__doc__ is None:  # python -OO
            return function
        rest, _, raises = inspect.cleandoc(function.__doc__).partition("\n\nRaises:\n")
        about, _, own = rest.partition("\n\nArgs:\n")
        said = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", own, flags=re.M))
        names = inspect.signature(function).parameters
        lines = [f"    {name}: {said.get(name) or arguments[name]}" for name in names]
        args = "\n".join(lines)
        function.__doc__ = f"{about}\n\nArgs:\n{args}\n\nRaises:\n{raises or '    ' + errors}\n"
        return function

    return complete
