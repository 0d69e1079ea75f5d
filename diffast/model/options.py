"""What is checked of a `Denoiser`'s arguments before the first call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffast import _arguments as arguments
from diffast.guidance.guide import Guide

_WHO = "Denoiser"


def check_options(denoiser: Any, formats: Mapping[Any, int]) -> None:
    """Raises TypeError or ValueError for arguments that no denoiser has, or that disagree."""
    if not callable(denoiser.network):
        raise ValueError(
            f"{_WHO}: network is a {type(denoiser.network).__name__} but must be callable"
        )
    given, blank = denoiser.conditions, denoiser.unconditional
    for name, values in (("conditions", given), ("unconditional", blank)):
        if values is not None or name == "conditions":
            _check_names(name, values)
    if blank is not None and set(blank) != set(given):
        raise ValueError(
            f"{_WHO}: conditions are {sorted(given)} but unconditional ones are {sorted(blank)}"
        )
    if isinstance(denoiser.guidance, bool):
        raise ValueError(
            f"{_WHO}: guidance is {denoiser.guidance} but must be a number, a function of the "
            "model time or a rule of df.guidance"
        )
    arguments.floating(_WHO, "dtype", denoiser.dtype)
    arguments.flag(_WHO, "round_times", denoiser.round_times)
    if denoiser.memory_format not in formats:
        raise ValueError(
            f"{_WHO}: memory_format is {denoiser.memory_format} but must be one of "
            f"{', '.join(map(str, formats))}"
        )


def _check_names(name: str, values: Any) -> None:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ValueError(
            f"{_WHO}: {name} is {arguments.shown(values)} but must be a dict: a value for each of "
            "the network's keyword arguments"
        )


def terms_of(guides: Any) -> tuple[Guide, ...]:
    """Returns the guidance terms, or raises ValueError for what is none."""
    if not isinstance(guides, (Guide, tuple, list)):
        raise ValueError(
            f"{_WHO}: guides is {arguments.shown(guides)} but must be a list of df.guidance's terms"
        )
    given = (guides,) if isinstance(guides, Guide) else tuple(guides)
    for term in given:
        if not isinstance(term, Guide):
            raise ValueError(
                f"{_WHO}: guides holds a {type(term).__name__}, but terms are made by "
                "df.guidance; its ugd and tfg return two terms: guides=[*terms]"
            )
    if len(given) > 9:
        raise ValueError(f"{_WHO}: {len(given)} guides, but at most 9 can be weighed")
    return given
