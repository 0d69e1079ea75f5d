"""Guidance rules by name: the short text of the command line and of ComfyUI's node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from diffast._namespace import lookup
from diffast.guidance.rule import Rule

# Arguments of guidance rules that a command line has no words for.
_NETWORKS = ("autoguidance", "perturbed")


def split(flag: str, text: str) -> tuple[str, dict[str, str]]:
    """Returns the name and the options, as texts, of NAME:key=value,key=value.

    Raises:
        ValueError: an option without a value, or given twice.
    """
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if rest.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"{flag} {text!r}: {part.strip()!r}, but NAME:key=value is needed")
        if key in options:
            raise ValueError(f"{flag} {text!r}: {key} is given twice")
        options[key] = value
    return name.strip(), options


def number(flag: str, key: str, text: str) -> Any:
    """Returns a number, True, False, or the text as it is where it is a word.

    Several numbers stand between slashes: 10/5.

    Raises:
        ValueError: for a text that begins as a number and is none.
    """
    if "/" in text:
        return [number(flag, key, part) for part in text.split("/")]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if not text or text[0].isdigit() or text[0] in "+-.":
        raise ValueError(f"{flag}: {key} is {text!r}, but a number is needed")
    return text


def check_known(flag: str, name: str, given: Mapping[str, Any], known: list[str]) -> None:
    """Raises ValueError for an option that is not known, with those that are."""
    for key in given:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{flag} {name}: option {key!r}, but the options are: {listed}")


def parse(text: str, scale: float = 1.0, who: str = "guidance rule") -> Rule:
    """Returns the guidance rule that a text names.

    Args:
        text: NAME or NAME:key=value,... of `df.guidance`: "apg:eta=0.5,norm_threshold=10",
            "interval:low=0.2,high=5", "rescale:phi=0.7".
        scale: of classifier-free guidance, where the text says none.
        who: begins the messages.

    Raises:
        ValueError: an unknown name or option; a scale of 1, where the rule changes nothing; what
            the rule's builder raises.
    """
    name, texts = split(who, text)
    if name in _NETWORKS:
        raise ValueError(
            f"{who} {name} needs another network or other conditions, which a text cannot give: "
            "use df.guidance from Python"
        )
    build = lookup("guidance rule", _builders(), name)
    parameters = inspect.signature(build).parameters
    options = {key: number(f"{who} {name}", key, value) for key, value in texts.items()}
    within = next((p for p in ("rule", "scale") if p in parameters), None)
    known = [p for p in parameters if p != within]
    check_known(who, name, options, known if within is None else [*known, "scale"])
    if within is not None:
        options[within] = options.pop("scale", scale)
        if options[within] == 1.0 and name != "dynamic_threshold":
            raise ValueError(
                f"{who} {name} changes nothing at a scale of 1: give another scale, as in "
                f"{name}:scale=2"
            )
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if needed:
        raise ValueError(f"{who} {name} needs {', '.join(needed)}: {name}:{needed[0]}=...")
    try:
        return build(**options)
    except TypeError as error:
        raise ValueError(f"{who} {text!r}: {error}") from None


def _builders() -> dict[str, Callable[..., Any]]:
    """Returns the builders that return a rule, by name."""
    from diffast import guidance

    found = {name: getattr(guidance, name) for name in guidance.__all__}
    return {
        name: build
        for name, build in found.items()
        if inspect.isfunction(build)
        and inspect.signature(build).return_annotation in ("Rule", Rule)
        and name not in ("parse", *_NETWORKS)
    }
