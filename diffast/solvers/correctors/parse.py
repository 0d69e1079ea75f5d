"""Correctors by name: the table, and the short text of the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

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


def get(name: str) -> Callable[..., Corrector]:
    """Returns the builder of the corrector of that name: options -> Corrector.

    Raises:
        ValueError: an unknown name; the message gives the nearest ones, and all of them.
    """
    short = {short: CORRECTORS[name] for short, name in SHORT.items()}
    return lookup("corrector", CORRECTORS | short, name)


def parse(text: str) -> tuple[Corrector, int | None]:
    """Returns the corrector that a text names, and the calls of a visit, None if it says none.

    The text is a name, then options after a colon: "ulmc", "olmc:n=2,step=0.3",
    "baoab:step=0.5,friction=1". n is the number of calls; the others are the options of the
    corrector's builder. "olmc", "lm" and "ulmc" are short for "overdamped", "leimkuhler_matthews"
    and "underdamped".

    Raises:
        ValueError: an unknown name or option; a value that is no number; an option given twice.
    """
    who = f"corrector {text!r}"
    name, _, rest = str(text).partition(":")
    build = get(name.strip())
    known = ["n", *inspect.signature(build).parameters]
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise ValueError(f"{who}: option {key!r} is not known, but {', '.join(known)}")
        if key in options:
            raise ValueError(f"{who}: {key} is given twice")
        options[key] = _number(who, key, value if equals else "")
    n = options.pop("n", None)
    try:
        return build(**options), n
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None


def corrector_of(who: str, corrector: Corrector | str) -> tuple[Corrector, int | None]:
    """Returns a corrector that is given as it is or as a text, and the calls that the text says.

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
    return corrector, None


def _number(who: str, key: str, value: str) -> float | int:
    kind = int if key == "n" else float
    try:
        number = kind(value)
    except ValueError:
        wanted = "a whole number" if key == "n" else "a number"
        raise ValueError(f"{who}: {key} = {value!r}, but it must be {wanted}") from None
    return whole(who, number) if key == "n" else number
