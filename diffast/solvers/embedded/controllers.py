"""Step-size controllers: the numbers of the rule that `diffast.ops` runs for every sample."""

from __future__ import annotations

import math
from typing import Any

# All numbers of a rule, with the values of the plain integral controller. Other controllers change
# some of them. diffast/ops/accept/reference.py says what each number does.
PLAIN: dict[str, float] = {
    "threshold": 1.0,
    "safety": 0.9,
    "error_power": 1.0,
    "before_power": 0.0,
    "before2_power": 0.0,
    "least": 0.2,
    "most": 5.0,
    "reject_safety": 0.9,
    "reject_power": 1.0,
    "reject_least": 0.2,
    "reject_most": 0.9,
    "error_floor": 0.0,
    "error_eps": 0.0,
    "noise_floor": 1.0,
    "step_min": 0.0,
    "step_max": math.inf,
    "balance": 0,
    "calm": 0,
    "by_factor": 0,
}

# Numbers that belong to the method. They stay when a controller is chosen by name.
OF_THE_METHOD = ("step_min", "step_max", "balance", "noise_floor", "error_eps")


def plain(power: float, safety: float = 0.9, **changes: float) -> dict[str, float]:
    """Returns h <- safety h E^-power after a step of error E, clipped to [1/5, 5].

    Args:
        power: the exponent, 1 over the order of the error in h.
        safety: factor on every step.
        changes: other numbers, by name.
    """
    rule = PLAIN | {"safety": safety, "error_power": power}
    return rule | {"reject_safety": safety, "reject_power": power} | changes


def gotta_go_fast(r: float = 0.9, theta: float = 0.9) -> dict[str, float]:
    """Returns h <- theta h E^-r without bounds (Jolicoeur-Martineau et al. 2021, algorithm 1).

    Args:
        r: the exponent.
        theta: factor on every step.
    """
    free = {"least": 0.0, "most": math.inf, "reject_least": 0.0, "reject_most": math.inf}
    return plain(r, theta, **free)


def proportional_integral(order: float, **changes: float) -> dict[str, float]:
    """Returns the PI rule h <- 0.9 h E^(-0.7/k) E_before^(0.4/k), k = order.

    Gustafsson 1991; the exponents of Hairer, Norsett & Wanner, "Solving ODEs I", section IV.2.

    Args:
        order: order of the error estimate in h.
        changes: other numbers, by name.
    """
    power = {"error_power": 0.7 / order, "before_power": 0.4 / order, "reject_power": 1.0 / order}
    return PLAIN | power | {"error_floor": 1e-4, "calm": 1} | changes


def pid(
    order: float,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    **changes: float,
) -> dict[str, float]:
    """Returns the PID rule of k-diffusion: limited factor 1 + atan(f - 1), accepted by its size.

    Args:
        order: of the method.
        pcoeff: proportional coefficient.
        icoeff: integral coefficient.
        dcoeff: differential coefficient.
        accept_safety: least factor of an accepted step.
        changes: other numbers, by name.
    """
    powers = {
        "error_power": (pcoeff + icoeff + dcoeff) / order,
        "before_power": (pcoeff + 2.0 * dcoeff) / order,
        "before2_power": dcoeff / order,
    }
    free = {"threshold": accept_safety, "safety": 1.0, "least": 0.0, "most": math.inf}
    return PLAIN | free | powers | {"error_eps": 1e-8, "by_factor": 1} | changes


# Controllers that a run may choose by name, whatever its method: without the method's numbers.
NAMED = {
    name: {key: value for key, value in rule.items() if key not in OF_THE_METHOD}
    for name, rule in (("pi", proportional_integral(2.0)), ("ggf", gotta_go_fast()))
}


def factor(rule: dict, error: Any, before: Any, before2: Any) -> Any:
    """Returns E^-error_power E1^before_power E2^-before2_power, of numbers or tensors.

    Args:
        rule: the numbers of a controller.
        error: of the step just tried.
        before: of the accepted step before.
        before2: of the one before that.
    """
    found = error ** -rule["error_power"] * before ** rule["before_power"]
    return found * before2 ** -rule["before2_power"]
