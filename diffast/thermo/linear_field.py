"""`linear_field`: where the entropy production of a linear velocity goes, in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class LinearField(NamedTuple):
    """The squared speed E|A x|^2 of a linear velocity on N(0, S), in its two parts.

    Divided by the temperature, these are rates of entropy production.

    Attributes:
        total: tr(A S A^T).
        excess: tr(G S G), the squared speed in the 2-Wasserstein distance: what has to be paid for
            the change of the law.
        housekeeping: tr((A - G) S (A - G)^T), what the rotating rest costs. It changes nothing.
        gradient: G [d, d], the symmetric matrix that moves the law as A does.
    """

    total: float
    excess: float
    housekeeping: float
    gradient: np.ndarray


def linear_field(velocity: Any, covariance: Any) -> LinearField:
    """Returns how much of a linear velocity A x on the law N(0, S) moves the law.

    G is symmetric and solves S G + G S = A S + S A^T: G x is the gradient field with the same
    change of the law (Ikeda et al., arXiv:2407.04495, on excess and housekeeping). A network is
    compared with it by its Jacobian at one state, see `df.thermo.nonconservativity`.

    Args:
        velocity: A [d, d].
        covariance: S [d, d], symmetric and positive definite.

    Raises:
        ValueError: matrices that are not square or differ in size, are not finite, or an S that is
            not symmetric or not positive definite.
    """
    a, s = (np.asarray(m, dtype=np.float64) for m in (velocity, covariance))
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape != s.shape:
        raise ValueError(
            f"linear_field: velocity is {list(a.shape)} and covariance {list(s.shape)}, but both "
            "must be [d, d]"
        )
    if not (np.isfinite(a).all() and np.isfinite(s).all()):
        raise ValueError("linear_field: velocity or covariance holds numbers that are not finite")
    if not np.allclose(s, s.T, rtol=0.0, atol=1e-12 * np.abs(s).max()):
        raise ValueError(
            f"linear_field: covariance is not symmetric, by {np.abs(s - s.T).max():.2g}"
        )
    values, axes = np.linalg.eigh(s)
    if not values[0] > 0.0:
        raise ValueError(
            f"linear_field: the covariance has the eigenvalue {values[0]:.3g}, but all must be "
            "above 0"
        )
    # In the axes of S the equation is one division an entry.
    pushed = axes.T @ (a @ s + s @ a.T) @ axes
    g = axes @ (pushed / (values[:, None] + values)) @ axes.T
    rest = a - g
    total, excess, housekeeping = (float(np.trace(m @ s @ m.T)) for m in (a, g, rest))
    return LinearField(total, excess, housekeeping, g)
