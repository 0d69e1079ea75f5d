"""What the public namespaces answer: `dir`, `help` and a misspelt name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" with the known names nearest to `name`, or ""."""
    from difflib import get_close_matches

    lowered = {one.lower(): one for one in known}
    found = [lowered[near] for near in get_close_matches(name.lower(), lowered)]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def attributes(module: str, known: Iterable[str]) -> tuple[Callable[[str], Any], Callable]:
    """Returns `__getattr__` and `__dir__` of a module whose public names are `known`."""
    names = sorted(known)

    def getattr_(name: str) -> NoReturn:
        raise AttributeError(f"module {module!r} has no attribute {name!r}{nearest(name, names)}")

    return getattr_, lambda: names


def lookup(kind: str, table: Mapping[str, Any], name: str) -> Any:
    """Returns table[name].

    Raises:
        ValueError: an unknown name; the message gives the nearest ones, and all of them.
    """
    if name not in table:
        near = nearest(name, table)
        raise ValueError(f"{kind} {name!r} is not known{near}, but these are: {', '.join(table)}")
    return table[name]


def listing(module: str, table: Mapping[str, Any]) -> str:
    """Returns a line for each entry: its name, and the first sentence of its docstring."""
    width = max(map(len, table))
    lines = (f"    {name:{width}}  {_summary(what)}".rstrip() for name, what in table.items())
    return f"\n{module} has, in one line each:\n\n" + "\n".join(lines) + "\n"


def _summary(what: Any) -> str:
    first = (getattr(what, "func", what).__doc__ or "").partition("\n")[0]
    return first.removeprefix("Returns ").removeprefix("the ")
