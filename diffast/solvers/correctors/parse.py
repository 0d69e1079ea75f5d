"""Correctors by name: the table, and the short text of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from diffast._namespace import lookup
from diffast.solvers.correctors.corrector import Corrector, whole
from diffast.solvers.correctors.overdamped import leimkuhler_matthews, overdamped, snr
from diffast.solvers.correctors.underdamped import baoab, underdamped

CORRECTORS: dict[str, Callable[..., Corrector]] = {
    "overdamped": overdamped,
    "leimkuhler_matthews": leimkuhler_matthews,
    "underdamped": underdamped,
    "baoab": baoab,
    "snr": snr,
}

# Names of the literature.
SHORT = {"olmc": "overdamped", "lm": "leimkuhler_matthews", "ulmc": "underdamped"}

# Options of a text that say how visits are, not what the corrector is.
_OF_VISITS = ("n", "low", "high")


def get(name: str) -> Callable[..., Corrector]:
    """Returns the builder of the corrector of that name: options -> Corrector.

    Raises:
        ValueError: an unknown name; the message gives the nearest ones, and all of them.
    """
    short = {short: CORRECTORS[name] for short, name in SHORT.items()}
    return lookup("corrector", CORRECTORS | short, name)


class Named(NamedTuple):
    """What a text says.

    Attributes:
        corrector: the corrector.
        n: calls of a visit; None: not said.
        low: least sigma/alpha of a visit; None: not said.
        high: largest sigma/alpha of a visit; None: not said.
    """

    corrector: Corrector
    n: int | None = None
    low: float | None = None
    high: float | None = None


def parse(text: str) -> Named:
    """Returns the corrector that a text names, and what the text says of the visits.

    The text is a name, then options after a colon: "ulmc", "olmc:n=2,step=0.3",
    "baoab:n=12,low=0.8,high=1.6". n is the number of calls of a visit, low and high limit the
    sigma/alpha of its place; the others are the options of the corrector's builder. "olmc", "lm"
    and "ulmc" are short for "overdamped", "leimkuhler_matthews" and "underdamped".

    Raises:
        ValueError: an unknown name or option; a value that is no number; an option given twice.
    """
    who = f"corrector {text!r}"
    name, _, rest = str(text).partition(":")
    build = get(name.strip())
    known = [*_OF_VISITS, *inspect.signature(build).parameters]
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise ValueError(f"{who}: option {key!r} is not known, but {', '.join(known)} are")
        if key in options:
            raise ValueError(f"{who}: {key} is given twice")
        options[key] = _number(who, key, value if equals else "")
    visits = {key: options.pop(key) for key in _OF_VISITS if key in options}
    try:
        return Named(build(**options), **visits)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None


def corrector_of(who: str, corrector: Corrector | str) -> Named:
    """Returns a corrector that is given as it is or as a text, and what the text says of visits.

    Raises:
        ValueError: neither; what `parse` raises.
    """
    if isinstance(corrector, str):
        return parse(corrector)
    if not isinstance(corrector, Corrector):
        raise ValueError(
            f"{who}: corrector is a {type(corrector).__name__}, but one of df.correctors or a text "
            "such as 'ulmc:n=2' is needed"
        )
    return Named(corrector)


def _number(who: str, key: str, value: str) -> float | int:
    kind = int if key == "n" else float
    try:
        number = kind(value)
    except ValueError:
        wanted = "a whole number" if key == "n" else "a number"
        raise ValueError(f"{who}: {key} = {value!r}, but it must be {wanted}") from None
    return whole(who, number) if key == "n" else number
