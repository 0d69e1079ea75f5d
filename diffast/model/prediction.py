"""Prediction types: how a network's output gives the clean data x0.

Every type is affine: x0 = a x + b output, with a and b from the schedule at the network's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class PredictionType(NamedTuple):
    """One prediction type.

    Attributes:
        weights: called as `weights(alpha, sigma, dalpha, dsigma)`, arrays of any array module;
            returns (a, b) of x0 = a x + b output. Each is x = alpha x0 + sigma eps solved for x0.
        known: which common networks predict this.
        keys: names under which networks return this prediction in a dict.
        sloped: whether `weights` needs the time derivatives dalpha and dsigma.
    """

    weights: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    known: str
    keys: tuple[str, ...]
    sloped: bool = False


PREDICTIONS: dict[str, PredictionType] = {
    "x0": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (0.0 * alpha, 1.0 + 0.0 * alpha),
        "the denoisers of EDM and k-diffusion",
        ("x0", "denoised"),
    ),
    # output = eps
    "epsilon": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (1.0 / alpha, -sigma / alpha),
        "DDPM, Stable Diffusion 1 and XL",
        ("epsilon", "eps"),
    ),
    # output = alpha eps - sigma x0 (Salimans and Ho 2022, section 4, for any alpha and sigma)
    "v": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (
            alpha / (alpha**2 + sigma**2),
            -sigma / (alpha**2 + sigma**2),
        ),
        "Stable Diffusion 2 at 768 pixels, Imagen Video",
        ("v",),
    ),
    # output = dx/dt along x = alpha x0 + sigma eps (flow matching; eps - x0 for alpha = 1 - t)
    "flow": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (
            dsigma / (alpha * dsigma - sigma * dalpha),
            -sigma / (alpha * dsigma - sigma * dalpha),
        ),
        "Stable Diffusion 3, Flux",
        ("flow", "velocity"),
        sloped=True,
    ),
    # output = gradient of log p_t(x) = -eps / sigma
    "score": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (1.0 / alpha, sigma**2 / alpha),
        "score-based SDE models, NCSN",
        ("score",),
    ),
    # output = -dx/dt, the flow seen by a time that runs from noise to data
    "reverse_flow": PredictionType(
        lambda alpha, sigma, dalpha, dsigma: (
            dsigma / (alpha * dsigma - sigma * dalpha),
            sigma / (alpha * dsigma - sigma * dalpha),
        ),
        "flow_matching, see Denoiser.from_velocity",
        ("velocity",),
        sloped=True,
    ),
}

# The default of `predicts`, which has to be given: a wrong type gives wrong samples silently.
MISSING = ""


def check_predicts(who: str, predicts: str) -> None:
    """Raises TypeError for a missing prediction type, and ValueError for an unknown one."""
    if not predicts:
        known = ", ".join(f"{name!r} ({kind.known})" for name, kind in PREDICTIONS.items())
        raise TypeError(
            f"{who}: predicts is missing, but it must say what the network was trained to predict: "
            f"{known}"
        )
    if predicts not in PREDICTIONS:
        raise ValueError(
            f"{who}: predicts {predicts!r} but the known predictions are {', '.join(PREDICTIONS)}"
        )


@dataclass(frozen=True)
class Prediction:
    """How a network's output gives x0, without the network: for loops that call it themselves.

    Args:
        schedule: the noise schedule it was trained for (`df.schedules`).
        predicts: "x0", "epsilon", "v", "flow", "score" or "reverse_flow".

    Raises:
        TypeError: if predicts is missing.
        ValueError: for an unknown prediction type.
    """

    schedule: Any
    predicts: str = MISSING

    def __post_init__(self) -> None:
        """Refuses a missing or an unknown prediction type."""
        check_predicts("Prediction", self.predicts)

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output at each model time, [S] float64 each.

        Raises:
            ValueError: where the prediction does not determine x0 (epsilon or score at alpha = 0).
        """
        times = np.asarray(times, dtype=np.float64)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        # Only a velocity needs the derivatives, which some schedules do not have everywhere.
        slopes = self.schedule.derivatives(times) if self.sloped else (0.0, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = self.weights(alpha, sigma, *slopes)
        a, b = np.broadcast_to(a, times.shape), np.broadcast_to(b, times.shape)
        bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))
        if bad.size:
            i = bad[0]
            raise ValueError(
                f"Denoiser: predicts {self.predicts!r} but at t = {times[i]:g} alpha is "
                f"{alpha[i]:g} and sigma {sigma[i]:g}, where that does not determine x0"
            )
        return a, b

    @property
    def sloped(self) -> bool:
        """Returns whether the prediction needs the derivatives of alpha and sigma."""
        return PREDICTIONS[self.predicts].sloped

    def weights(self, alpha: Any, sigma: Any, dalpha: Any = None, dsigma: Any = None) -> tuple:
        """Returns (a, b) with x0 = a x + b output, unchecked, for arrays of any array module.

        Args:
            alpha: of the schedule at the network's times.
            sigma: of the schedule there.
            dalpha: its derivative, only used if `sloped`.
            dsigma: its derivative, only used if `sloped`.
        """
        return PREDICTIONS[self.predicts].weights(alpha, sigma, dalpha, dsigma)

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns 1 at each time, [S]: the loop that calls the network applies guidance."""
        return np.ones(len(times))

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns the scales that a plan gives, if all are 1.

        Raises:
            ValueError: for another scale, which the loop that calls the network would not apply.
        """
        return without_guidance(scales)


def without_guidance(scales: np.ndarray) -> np.ndarray:
    """Returns a plan's guidance scales [S] if all are 1.

    Raises:
        ValueError: for another scale.
    """
    if (scales != 1.0).any():
        raise ValueError(
            f"the plan has a guidance scale of its own for each call (here {scales.min():g} to "
            f"{scales.max():g}), but another loop calls the network and applies guidance itself: "
            "use df.sample"
        )
    return scales
