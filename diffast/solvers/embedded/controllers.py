"""Step-size controllers: the numbers of the rule that `diffast.ops` runs for every sample."""

from __future__ import annotations

import math

# The integral controller that does nothing special; the others say where they differ.
PLAIN = {
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


def plain(power: float, safety: float = 0.9, **changes) -> dict:
    """Returns h <- safety h E^-power after an attempt of error E, clipped to [1/5, 5].

    Args:
        power: the exponent, 1 over the order of the error in h.
        safety: factor on every step.
        changes: other numbers, by name.
    """
    rule = PLAIN | {"safety": safety, "error_power": power}
    return rule | {"reject_safety": safety, "reject_power": power} | changes


def proportional_integral(order: float, **changes) -> dict:
    """Returns the PI rule h <- 0.9 h E^(-0.7/k) E_before^(0.4/k), k = order.

    Gustafsson 1991; the exponents of Hairer, Norsett & Wanner, "Solving ODEs I", section IV.2.

    Args:
        order: order of the error estimate in h.
        changes: other numbers, by name.
    """
    power = {"error_power": 0.7 / order, "before_power": 0.4 / order, "reject_power": 1.0 / order}
    return PLAIN | power | {"error_floor": 1e-4, "calm": 1} | changes


def pid(order, pcoeff=0.0, icoeff=1.0, dcoeff=0.0, accept_safety=0.81, **changes) -> dict:
    """Returns the PID rule of k-diffusion: limited factor 1 + atan(f - 1), accepted by its size.

    Args:
        order: of the method.
        pcoeff: proportional coefficient.
        icoeff: integral coefficient.
        dcoeff: differential coefficient.
        accept_safety: least factor of an accepted attempt.
        changes: other numbers, by name.
    """
    return (
        PLAIN
        | {
            "threshold": accept_safety,
            "safety": 1.0,
            "error_power": (pcoeff + icoeff + dcoeff) / order,
            "before_power": (pcoeff + 2.0 * dcoeff) / order,
            "before2_power": dcoeff / order,
            "least": 0.0,
            "most": math.inf,
            "error_eps": 1e-8,
            "by_factor": 1,
        }
        | changes
    )
