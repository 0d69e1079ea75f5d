"""The free energy of noisy states: -sigma^2 log p up to a constant, and its order parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.thermo.mixture import GaussianMixture


def free_energy(
    mixture: GaussianMixture, x: Any, alpha: float = 1.0, sigma: float = 1.0
) -> torch.Tensor:
    """Returns the free energy F(x) of states at a noise level, [B] float64.

    F = -sigma^2 log Z,  Z(x) = int exp(-H) dy,  H = |x - alpha y|^2 / (2 sigma^2) - log q(y)

    (Ambrogioni 2023, "The statistical thermodynamics of generative diffusion models"). Its gradient
    is -sigma^2 score = x - alpha E[y|x]. For a temperature of sigma^2 it is the energy in whose
    valleys noisy states lie: one valley at high noise, one a mode below a critical level.

    Args:
        mixture: the data.
        x: [B, d].
        alpha: signal level of the states.
        sigma: noise level, above 0.

    Raises:
        ValueError: a noise level that is not above 0; x of another d.
    """
    _check_level("free_energy", alpha, sigma)
    logs = mixture.log_density(x, alpha, sigma)
    return -(sigma**2) * (logs + 0.5 * mixture.d * math.log(2.0 * math.pi * sigma**2))


class OrderParameters(NamedTuple):
    """Fixed points of the posterior mean, y = E[y | x = alpha y].

    Attributes:
        y: [n, d] the fixed points, in the unit of the data.
        free_energy: [n] F at x = alpha y.
        stability: [n] the least eigenvalue of the Hessian of F there, 1 - alpha^2 / sigma^2 times
            the largest one of Cov[y|x]: above 0 in a valley, 0 at a transition.
    """

    y: torch.Tensor
    free_energy: torch.Tensor
    stability: torch.Tensor


def order_parameters(
    mixture: GaussianMixture,
    alpha: float = 1.0,
    sigma: float = 1.0,
    starts: Any = None,
    *,
    steps: int = 10_000,
    tolerance: float = 1e-10,
) -> OrderParameters:
    """Returns the self-consistent posterior means of a noise level: stationary points of F.

    With d = 1 and no starts all of them are found, as the sign changes of x - alpha E[y|x]; with
    starts, or d > 1, those that the iteration y <- E[y | alpha y] reaches, which are valleys.

    Args:
        mixture: the data.
        alpha: signal level, above 0.
        sigma: noise level, above 0.
        starts: [n, d] points y of the iteration; None: the means of the components.
        steps: of the iteration, at most.
        tolerance: two points nearer than its square root are one; the iteration ends where it moves
            by less.

    Raises:
        ValueError: levels that are not above 0; an iteration that does not end.
    """
    who = "order_parameters"
    _check_level(who, alpha, sigma)
    if not alpha > 0.0:
        raise ValueError(f"{who}: alpha = {alpha:g}, but it must be above 0")
    if starts is None and mixture.d == 1:
        found = _sign_changes(mixture, alpha, sigma)
    else:
        y = torch.as_tensor(mixture.means if starts is None else starts, dtype=torch.float64)
        found = _iterated(who, mixture, alpha, sigma, y.reshape(-1, mixture.d), steps, tolerance)
    found = _distinct(found, math.sqrt(tolerance))
    x = alpha * found
    spread = mixture.posterior_covariance(x, alpha, sigma)
    largest = torch.linalg.eigvalsh(spread)[:, -1]
    energy = free_energy(mixture, x, alpha, sigma)
    return OrderParameters(found, energy, 1.0 - (alpha / sigma) ** 2 * largest)


def free_energy_along(denoiser: Denoiser, line: torch.Tensor, t: float) -> np.ndarray:
    """Returns F along a line of states, less that of its first one, [n] float64; for any network.

    The integral of grad F = x - alpha D(x), D the network's x0 estimate, by the trapezoidal rule
    over the n states. A network's estimate need be no gradient, so other lines between the same
    ends may give another difference.

    Args:
        denoiser: the network; conditions have one row each state, or one for all.
        line: [n, ...] states along a line or curve, n >= 2, as close as the integral needs.
        t: model time, with sigma above 0.

    Raises:
        ValueError: fewer than 2 states; estimates that are not finite; a time without noise.
    """
    who = "free_energy_along"
    if not isinstance(line, torch.Tensor) or line.dim() < 2 or len(line) < 2:
        raise ValueError(f"{who}: line is no tensor [n, ...] of 2 or more states")
    alpha, sigma = float(denoiser.schedule.alpha(t)), float(denoiser.schedule.sigma(t))
    _check_level(who, alpha, sigma)
    with torch.no_grad():
        slope = (line - alpha * denoiser.x0(line, t)).double().flatten(1)
    if not bool(slope.isfinite().all()):
        raise ValueError(f"{who}: an x0 estimate at t = {t:g} is not finite")
    moved = line.double().flatten(1).diff(dim=0)
    rises = (0.5 * (slope[1:] + slope[:-1]) * moved).sum(1)
    return np.concatenate([[0.0], rises.cumsum(0).cpu().numpy()])


def _check_level(who: str, alpha: float, sigma: float) -> None:
    if not (0.0 < sigma < math.inf and math.isfinite(alpha)):
        raise ValueError(
            f"{who}: alpha = {alpha:g} and sigma = {sigma:g}, but sigma must be above 0 and both "
            "finite"
        )


def _sign_changes(mixture, alpha, sigma, points=4001) -> torch.Tensor:
    """Returns all roots of y - E[y | alpha y] in one dimension, [n, 1], by bisection."""
    # Every root is a posterior mean, so it lies between the outer means, widened by components that
    # are not points.
    wide = 9.0 * float(mixture.variances.max().sqrt()) + 1e-3
    low, high = float(mixture.means.min()) - wide, float(mixture.means.max()) + wide
    y = torch.linspace(low, high, points, dtype=torch.float64)[:, None]

    def excess(at: torch.Tensor) -> torch.Tensor:
        return at - mixture.x0(alpha * at, alpha, sigma)

    value = excess(y)[:, 0]
    # a root on a grid point is that of the interval before it
    change = ((value[:-1] <= 0.0) != (value[1:] <= 0.0)).nonzero()[:, 0]
    left, right = y[change], y[change + 1]
    sign = value[change] <= 0.0
    for _ in range(80):
        middle = 0.5 * (left + right)
        same = ((excess(middle)[:, 0] <= 0.0) == sign)[:, None]
        left, right = torch.where(same, middle, left), torch.where(same, right, middle)
    return 0.5 * (left + right)


def _iterated(who, mixture, alpha, sigma, y, steps, tolerance) -> torch.Tensor:
    for _ in range(steps):
        new = mixture.x0(alpha * y, alpha, sigma)
        moved = float((new - y).abs().max())
        y = new
        if moved < tolerance:
            return y
    raise ValueError(
        f"{who}: after {steps} steps the posterior mean still moves by {moved:.2g}: near a "
        "transition it slows down, so give more steps or a larger tolerance"
    )


def _distinct(y: torch.Tensor, apart: float) -> torch.Tensor:
    """Returns the points [n, d] without repetitions, in their order."""
    kept: list[torch.Tensor] = []
    for each in y:
        if not any(float((each - other).abs().max()) < apart for other in kept):
            kept.append(each)
    return torch.stack(kept)
