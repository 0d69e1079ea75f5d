"""Densities of noise levels in log(rho), of what a pilot run measured.

A grid takes equal shares of a density's integral between its levels. `mmse` [M] is the loss of the
x0 estimate, summed over all d elements, at levels rho [M].
"""

from __future__ import annotations

import numpy as np


def arctan(rho: np.ndarray, deviation: float) -> np.ndarray:
    """Returns the density that makes a grid even in the arctangent of rho / c, c the deviation.

    Such a grid minimises the global error of DDIM for Gaussian data of deviation c. It is the
    closed form of Sabour et al. 2024, "Align your steps", theorem 3.1.
    """
    return deviation * rho / (deviation**2 + rho**2)


def entropic(rho: np.ndarray, mmse: np.ndarray) -> np.ndarray:
    """Returns mmse / rho^2: equal falls of the conditional entropy of x0.

    Stancevic, Handke and Ambrogioni 2025, "Entropic time schedulers": dH = mmse / rho^3 d rho.
    """
    return mmse / rho**2


def rescaled_entropic(rho: np.ndarray, mmse: np.ndarray) -> np.ndarray:
    """Returns mmse / rho: the entropic density times rho; same source."""
    return mmse / rho


def equal_entropy_production(rho: np.ndarray, mmse: np.ndarray, elements: int) -> np.ndarray:
    """Returns d - mmse / rho^2, not below 0: equal entropy production in each step.

    The entropy of the noisy marginal rises by E|eps estimate|^2 d log(rho), which is this density
    for an exact network (Ikeda et al. 2024, arXiv 2407.04495, for the entropy production).
    """
    return np.maximum(elements - mmse / rho**2, 0.0)


def acceleration(rho: np.ndarray, slope: np.ndarray, deviation: float) -> np.ndarray:
    """Returns sqrt(|dD / d log(rho)| / sqrt(c^2 + rho^2)): the local error of a DDIM step.

    A DDIM step of length h in log(rho) errs by h^2/2 dD / d log(rho), D the x0 estimate along the
    flow. How far an error is carried to the end is taken from Gaussian data of deviation c. For
    such data this is `arctan`.

    Args:
        rho: levels [M].
        slope: rms of dD / d log(rho) along the flow, [M].
        deviation: c, the deviation of the data.
    """
    return np.sqrt(slope / np.sqrt(deviation**2 + rho**2))


def rising(values: np.ndarray) -> np.ndarray:
    """Returns the nearest sequence (least squares) that does not fall: [M] pooled neighbours.

    A loss curve rises with the noise level. What is measured with few samples may not.
    """
    blocks: list[list[float]] = []  # (mean, count)
    for value in np.asarray(values, dtype=np.float64):
        blocks.append([float(value), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count)
            blocks[-1][1] += count
    return np.concatenate([np.full(int(count), mean) for mean, count in blocks])
