"""Names for what is wrong with a sampler, found in the steps of its stored trajectories."""

from __future__ import annotations

import math

import numpy as np

from diffast.thermo.estimate import Estimate, mean_of
from diffast.thermo.fluctuation.sums import Sums

# Standard errors beyond which a number is another one. With a few numbers a test, chance reaches 5
# in one of a million.
SURE = 5.0
# Steps that are not Euler's own change the factors by their own error, of the order of a step.
ALLOWED = 0.1

_NOISES = {
    2.0: "sqrt(2) times too large: sqrt(2 T dt) is meant, and sqrt(4 T dt) is drawn",
    0.5: "sqrt(2) times too small: sqrt(2 T dt) is meant, and sqrt(T dt) is drawn",
    4.0: "twice too large",
    0.25: "half of what it should be",
}
_DRIFTS = {
    2.0: "is taken twice",
    0.5: "is taken half",
    -1.0: "has the other sign",
    0.0: "is missing",
}


def noise_slip(noise: Estimate, exact: bool) -> str | None:
    """Returns what is wrong with the noise, given the measured variance over the believed one."""
    if _near(noise.value, noise.error, 1.0, exact):
        return None
    known = _nearest(noise.value, _NOISES)
    said = _NOISES[known] if known else f"{math.sqrt(noise.value):.4g} times what it should be"
    return f"the fresh noise is {said} (variance over the meant one: {noise})"


def drift_slips(
    names: list[str], factors: np.ndarray, errors: np.ndarray, exact: bool
) -> list[str]:
    """Returns what is wrong with the parts of the drift, given their fitted factors."""
    found = []
    for name, factor, error in zip(names, factors.tolist(), errors.tolist(), strict=True):
        if not math.isfinite(factor) or _near(factor, error, 1.0, exact):
            continue
        near = [value for value in _DRIFTS if _near(factor, error, value, exact)]
        said = f"{_DRIFTS[near[0]]}" if near else f"is taken {factor:.4g} times"
        found.append(f"the drift's part {name!r} {said} (factor {factor:.4g} +- {error:.1g})")
    return found


def turned_slip(sums: Sums) -> str | None:
    """Returns whether the steps fit the drift better at times counted from the other end."""
    if not bool(sums.turned.isfinite().all()):
        return None
    gain = mean_of(sums.turned)
    if not gain.value > SURE * gain.error:
        return None
    return (
        "the time runs in the other direction: the steps fit the drift at t_first + t_last - t "
        f"better, by {gain} nats a path"
    )


def work_slip(work, sums: Sums) -> str | None:
    """Returns which sum a caller's own integral of f o dx / T is, where it is not Stratonovich's.

    Args:
        work: [B] the caller's sums.
        sums: ours.
    """
    rules = {
        "Ito's (the drift at the start of each step)": sums.ito,
        "the anti-Ito sum (the drift at the end of each step)": sums.late,
    }
    middle = 0.5 * (sums.ito + sums.late)
    gap = float((work - middle).square().mean().sqrt())
    apart = float((sums.ito - sums.late).square().mean().sqrt())
    for name, rule in rules.items():
        if float((work - rule).square().mean().sqrt()) < 0.1 * apart and gap > 0.3 * apart:
            return (
                f"the integral of f o dx / T is {name}, but the theorem needs Stratonovich's (the "
                "drift at the middle): for Ito's it lacks the divergence of the drift, div f dt"
            )
    return None


def _near(value: float, error: float, wanted: float, exact: bool) -> bool:
    """Returns whether a measured factor may be another number."""
    allowed = 0.0 if exact else ALLOWED * max(abs(wanted), 1.0)
    return abs(value - wanted) <= SURE * error + allowed


def _nearest(value: float, known: dict[float, str]) -> float | None:
    """Returns the known ratio within 5 % of a value."""
    return next((ratio for ratio in known if abs(value / ratio - 1.0) < 0.05), None)
