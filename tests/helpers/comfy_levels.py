"""Noise levels, ancestral steps and Lagrange integrals, for the formulas of ComfyUI's samplers."""

from math import exp, inf, log, sqrt

import numpy as np


class Space:
    """Levels of x0 + sigma eps, or of a flow's (1 - sigma) x0 + sigma eps."""

    def __init__(self, flow):
        self.flow = flow

    def alpha(self, s):
        return 1.0 - s if self.flow else 1.0

    def lam(self, s):
        return log(self.alpha(s) / s) if s > 0.0 and self.alpha(s) > 0.0 else inf

    def sigma(self, lam):
        return 1.0 / (1.0 + exp(lam)) if self.flow else exp(-lam)


def split(s, t, eta):
    """Returns (down, up) of an ancestral step."""
    up = min(t, eta * sqrt(t**2 * (s**2 - t**2) / s**2))
    return sqrt(max(t**2 - up**2, 0.0)), up


def flow_split(s, t, eta):
    """Returns (down, factor of the state, up) of a flow's ancestral step."""
    down = t * (1.0 + (t / s - 1.0) * eta)
    grow = (1.0 - t) / (1.0 - down)
    return down, grow, sqrt(max(t**2 - (down * grow) ** 2, 0.0))


def lagrange(nodes, low, high, weight=None, points=20):
    """Returns the integrals from low to high of the polynomials that are 1 at one node."""
    at, w = np.polynomial.legendre.leggauss(points)
    at, w = 0.5 * (high - low) * at + 0.5 * (low + high), 0.5 * (high - low) * w
    if weight is not None:
        w = w * weight(at)
    rows = []
    for j, node in enumerate(nodes):
        others = [o for k, o in enumerate(nodes) if k != j]
        rows.append(float((w * np.prod([(at - o) / (node - o) for o in others], axis=0)).sum()))
    return rows
