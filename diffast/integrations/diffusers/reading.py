"""How a network's output gives x0 where its input was scaled: affine weights at noise levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffast.model.prediction import without_guidance


@dataclass(frozen=True, eq=False)
class Reading:
    """x0 = a x + b output at each stage, as numbers.

    Args:
        a: [S] weights of the state.
        b: [S] weights of the network's output.
    """

    a: ArrayLike
    b: ArrayLike

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b), [S] each."""
        return (
            np.broadcast_to(np.asarray(self.a, np.float64), np.shape(times)),
            np.broadcast_to(np.asarray(self.b, np.float64), np.shape(times)),
        )

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns 1 at each time: the pipeline has applied the guidance."""
        return np.ones(len(times))

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns a plan's guidance scales if all are 1; raises ValueError for others."""
        return without_guidance(scales)


def sigma_reading(kind: str) -> Callable:
    """Returns (sigmas, raised sigmas) -> Reading for x = x0 + sigma eps, input x / sqrt(sigma^2+1).

    Args:
        kind: "epsilon", "x0" or "v" (of the scaled input).
    """

    def read(sigma, raised=None):
        ones = np.ones_like(sigma)
        if kind == "x0":
            return Reading(0.0 * ones, ones)
        if kind == "v":  # with the level before it was raised, as diffusers has it
            return Reading(1.0 / (sigma**2 + 1.0), -sigma / np.sqrt(sigma**2 + 1.0))
        if kind != "epsilon":
            raise ValueError(f"the prediction is {kind!r}, but epsilon, sample and v have sigmas")
        return Reading(ones, -(sigma if raised is None else raised))

    return read


def edm_reading(config) -> Callable:
    """Returns (sigmas, raised sigmas) -> Reading of EDM's preconditioned network.

    Karras et al. 2022, table 1: x0 = c_skip x + c_out output, at the raised level.

    Args:
        config: with sigma_data and prediction_type, whose v has the opposite sign.
    """
    kind = config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type is {kind!r}, but EDM's is 'epsilon' or 'v_prediction'")
    sign = 1.0 if kind == "epsilon" else -1.0
    data = float(config.sigma_data)

    def read(sigma, raised=None):
        level = sigma if raised is None else raised
        total = level**2 + data**2
        return Reading(data**2 / total, sign * level * data / np.sqrt(total))

    return read
