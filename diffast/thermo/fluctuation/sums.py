"""What one pass over stored trajectories adds up: entropy, and what steps say of drift and noise.

With increments dx_k = x_{k+1} - x_k, f_k = f(x_k, t_k) and T_k = T(t_k), the entropy of a path is

    "euler"         sum_k (f_k + f_{k+1}) . dx_k / (2 T_k) + h_k (|f_{k+1}|^2 - |f_k|^2) / (4 T_k)
    "stratonovich"  sum_k f(x_mid, t_mid) . dx_k / T(t_mid)

plus log p(first) - log p(last). "euler" is the logarithm of the ratio of two products of Gaussian
steps: x_k -> x_{k+1} by x + h f with variance 2 T h, as Euler and Maruyama step, over x_{k+1} ->
x_k by the same rule with f_{k+1}. Both products are normalised, so <exp(-dS)> = 1 holds at any step
size (Crooks 1999, for the chain). "stratonovich" is the integral of f o dx / T by the midpoint
rule, for steps of any method; the theorem then holds up to the steps' error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from diffast.thermo.fluctuation.trajectories import Trajectories

FORMS = ("euler", "stratonovich")


class Sums(NamedTuple):
    """Sums over the steps of each path, float64.

    Attributes:
        flow: [B] the sum of f o dx / T, in the form that was asked for.
        ito: [B] the same integral with f at the start of each step.
        late: [B] with f at the end of each step.
        along: [B, P] of part . dx / (2 T), for the fit of the parts' factors.
        square: [B, P, P] of part . part h / (2 T).
        noise: [B] of |dx - f h|^2 / (2 T h) over all steps and elements: 1 on average.
        turned: [B] of the log-density of the steps with the drift at times counted from the other
            end, less that with the drift as given.
    """

    flow: torch.Tensor
    ito: torch.Tensor
    late: torch.Tensor
    along: torch.Tensor
    square: torch.Tensor
    noise: torch.Tensor
    turned: torch.Tensor


def sums_of(paths: Trajectories, form: str) -> Sums:
    """Returns the sums; the drift is called at every state, twice where times are turned."""
    count, names = paths.count, list(paths.parts)
    zero = torch.zeros(count, dtype=torch.float64)
    flow, ito, late, noise, turned = (zero.clone() for _ in range(5))
    along = torch.zeros((count, len(names)), dtype=torch.float64)
    square = torch.zeros((count, len(names), len(names)), dtype=torch.float64)
    state = paths.x[0]
    parts = paths.forces(state, paths.times[0])
    for k, h in enumerate(paths.h.tolist()):
        following = paths.x[k + 1]
        t, t_next = paths.times[k], paths.times[k + 1]
        temperature = paths.temperature(t)
        dx = (following - state).double()
        force = _total(parts)
        parts_next = paths.forces(following, t_next)
        force_next = _total(parts_next)
        early, end = _dot(force, dx) / temperature, _dot(force_next, dx) / temperature
        ito, late = ito + early, late + end
        if form == "euler":
            energy = _dot(force_next, force_next) - _dot(force, force)
            flow = flow + 0.5 * (early + end) + h * energy / (4.0 * temperature)
        else:
            middle, t_mid = 0.5 * (state.double() + following.double()), 0.5 * (t + t_next)
            at = paths.forces(middle.to(state.dtype), t_mid)
            flow = flow + _dot(_total(at), dx) / paths.temperature(t_mid)
        for i, one in enumerate(parts):
            along[:, i] += _dot(one, dx) / (2.0 * temperature)
            for j, other in enumerate(parts):
                square[:, i, j] += _dot(one, other) * h / (2.0 * temperature)
        left = dx - h * force
        noise = noise + _dot(left, left) / (2.0 * temperature * h)
        other_time = paths.times[0] + paths.times[-1] - t
        try:
            apart = dx - h * _total(paths.forces(state, other_time))
            turned = turned + (_dot(left, left) - _dot(apart, apart)) / (4.0 * temperature * h)
        except ValueError:  # a drift that has no value there
            turned = turned + torch.nan
        state, parts = following, parts_next
    scale = paths.steps * paths.d
    return Sums(flow, ito, late, along, square, noise / scale, turned)


def _total(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() * b.double()).flatten(1).sum(1).cpu()


def noise_beside(sums: Sums, factors: np.ndarray, terms: int) -> torch.Tensor:
    """Returns `noise` [B] with the parts of the drift times other factors [P], NaN for none.

    Args:
        sums: of the drift as given.
        factors: of its parts.
        terms: steps times elements.
    """
    parts = torch.as_tensor(np.where(np.isfinite(factors), factors, 1.0))
    ones = torch.ones_like(parts)
    own = torch.einsum("bij,i,j->b", sums.square, parts, parts)
    own = own - torch.einsum("bij,i,j->b", sums.square, ones, ones)
    return sums.noise + (own - 2.0 * sums.along @ (parts - ones)) / terms


def fitted_factors(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors [P], standard errors [P]) of the drift's parts that fit the steps best.

    Weighted least squares of dx on h times the parts, that is the maximum of the likelihood of
    Euler steps; errors from the spread over paths. NaN for parts that vanish.
    """
    gram, pull = sums.square.mean(0).numpy(), sums.along.mean(0).numpy()
    live = np.diag(gram) > 0.0
    factors, errors = np.full(len(pull), np.nan), np.full(len(pull), np.nan)
    if live.any():
        inverse = np.linalg.pinv(gram[np.ix_(live, live)])
        factors[live] = inverse @ pull[live]
        fit = torch.as_tensor(factors[live])
        own = torch.as_tensor(live)
        left = sums.along[:, own] - sums.square[:, own][:, :, own] @ fit
        spread = np.cov(left.numpy().T, ddof=1).reshape(len(fit), len(fit)) / len(left)
        errors[live] = np.sqrt(np.diag(inverse @ spread @ inverse))
    return factors, errors
