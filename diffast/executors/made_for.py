"""Whether a plan that was made for a network is run with that network."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary, ref

from diffast.model.fingerprint import fingerprint
from diffast.plans import Plan

# Networks that a plan was compared with, by plan. A comparison reads parameters, so it is made once
# a plan and network.
_compared: WeakKeyDictionary = WeakKeyDictionary()

# The same output with another sign and another direction of time.
_SAME = {"reverse_flow": "flow"}


def check_made_for(who: str, plan: Plan, denoiser: Any) -> None:
    """Compares a plan's `made_for` with the denoiser of a run.

    A fine-tuned network, another guidance scale and other guidance terms are warned of, once: such
    a plan runs, but the measured errors are not those of the run.

    Raises:
        ValueError: if the plan was made for another prediction type.
    """
    made_for = plan.made_for
    if not made_for:
        return
    own, predicts = made_for.get("predicts"), getattr(denoiser, "predicts", None)
    if own and predicts and _SAME.get(own, own) != _SAME.get(predicts, predicts):
        raise ValueError(
            f"{who}: plan {plan.name} was made for a network that predicts {own!r}, but the "
            f"denoiser's predicts {predicts!r}"
        )
    network = getattr(denoiser, "network", None)
    if network is None:
        return
    guidance = getattr(denoiser, "guidance", None)
    terms = tuple(term.name for term in getattr(denoiser, "guides", ()))
    rule = getattr(getattr(denoiser, "rule", None), "name", None)
    own = guidance if isinstance(guidance, int | float) else rule
    key = _identity(network), own, terms
    compared = _compared.setdefault(plan, set())
    if key in compared:
        return
    compared.add(key)
    tuned, found = made_for.get("network"), fingerprint(network)
    if tuned and found and tuned != found:
        warnings.warn(
            f"{who}: plan {plan.name} was made for a network with the fingerprint {tuned}, but "
            f"that of this network is {found}: its measured error is not that of this network",
            stacklevel=4,
        )
    scale = made_for.get("guidance")
    if key[1] is not None and scale is not None and scale != key[1]:
        result = (
            "the measured error is not that of this run"
            if plan.guidance is None
            else "the plan has a scale of its own for each call, and the denoiser's is not used"
        )
        warnings.warn(
            f"{who}: plan {plan.name} was made for guidance {scale:g}, but the denoiser's guidance "
            f"is {key[1] if rule else f'{key[1]:g}'}: {result}",
            stacklevel=4,
        )
    made_with = tuple(made_for.get("guides", ()))
    if terms != made_with:
        warnings.warn(
            f"{who}: plan {plan.name} was made for {_listed(made_with)}, but the denoiser has "
            f"{_listed(terms)}: the measured error is not that of this run",
            stacklevel=4,
        )


def _listed(terms: tuple[str, ...]) -> str:
    return f"the guidance terms {', '.join(terms)}" if terms else "no guidance terms"


def _identity(network: Any) -> Any:
    """Returns what stands for a network in a set, without keeping it alive."""
    try:
        return ref(network)
    except TypeError:
        return id(network)
