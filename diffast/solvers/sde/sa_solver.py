"""SA-Solver: stochastic Adams predictor and corrector, one call a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import factorial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.multistep import check_choice
from diffast.solvers.core.noise_split import diffusive
from diffast.solvers.core.phi import phi

# Adams weights alternate in sign and grow with the order; diffusers and the paper stop at 3 and 4.
MOST = 4


@builder
def sa_solver(
    schedule: Schedule,
    grid: ArrayLike,
    predictor_order: ArrayLike = 2,
    corrector_order: ArrayLike = 2,
    tau: float | Callable[[float], float] = 1.0,
    form: Literal["data", "noise"] = "data",
    kind: Literal["few_steps", "more_steps"] = "more_steps",
) -> Plan:
    """Returns SA-Solver, Xue et al. 2023 ("SA-Solver: Stochastic Adams Solver"). 1 call a step.

    Between s and t, h = lam_t - lam_s, T = 1 + tau^2, the SDE has the solution (eq. 5 and 7)

        data:   x_t = (sigma_t / sigma_s) exp(-tau^2 h) x_s + sigma_t sqrt(1 - exp(-2 tau^2 h)) z
                      + alpha_t integral of T exp(-T (lam_t - lam)) d(lam) dlam
        noise:  x_t = (alpha_t / alpha_s) x_s + tau sigma_t sqrt(exp(2h) - 1) z
                      - sigma_t integral of T exp(lam_t - lam) e(lam) dlam

    with e = (x - alpha d) / sigma. The predictor puts the polynomial through the last estimates in
    place of d or e; the corrector of the same step, once the network was called at t, that through
    the estimate at t too, with the same noise z (algorithm 1). It therefore only adds differences
    of weights of estimates to the predicted state, so here x is that state, and the next
    predictor's row holds the correction. Weak order 2, or 1 with predictor order 1 and corrector
    order 0 or 1; at tau = 0 strong order of the predictor or corrector, whichever is higher, the
    corrector up to one above the predictor (beside what the first steps leave: one estimate, h^2).

    With form="data", order-2 weights of kind "few_steps" have T h / 2 in place of the integral's
    weight of the second difference, (T h - 1 + exp(-T h)) / (T h): equal up to O(h^2), as the
    published code has them for few steps; "more_steps" are the integrals. The former grow without
    bound with T h, and saturate pictures from about T h = 2 on.

    First order are the steps into sigma_t = 0 and out of alpha = 0 (not corrected either), whatever
    the form; lower orders where a node lies at alpha = 0. The plan of form="noise" is checked for
    x0 alone: at tau > 0 a point holds noise of level sigma_t only up to O(h^2) even for a true e,
    and at every tau weights of alpha_t / alpha_s, 1e4 and more at the noisy end, cancel.

    Args:
        predictor_order: 1 to 4; step n has min(order, n + 1). Or [N] numbers, one a step.
        corrector_order: 1 to 4, estimate at t included; step n has min(order, n + 2). 0: none. Or
            [N] numbers; the last step has nothing to correct it.
        tau: strength of the noise, 0 for the ODE, 1 for the reverse SDE; a number, or a function of
            model time, called for the start of each step.
        form: "data" or "noise": which prediction is interpolated.
        kind: "few_steps" or "more_steps".
    """
    check_choice("sa_solver", "form", form, ("data", "noise"))
    check_choice("sa_solver", "kind", kind, ("few_steps", "more_steps"))
    grid = check_grid(schedule, grid)
    count = np.arange(1, len(grid))
    predictor = _orders("predictor_order", predictor_order, 1, count)
    corrector = _orders("corrector_order", corrector_order, 0, count + 1)
    levels = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    stages, correction = Stages(schedule, grid[0]), np.zeros(1)
    for n, (tau_n, (s, t)) in enumerate(zip(_taus(tau, grid), pairwise(grid), strict=True)):
        step = _Step(form, kind, tau_n, *(level[n : n + 2] for level in levels))
        keep, up, entry = step.of_state()
        weights = step.explicit(levels[2][n::-1][: predictor[n]])
        row = _sum(keep * correction, weights)
        stages.add(s, t, {"x": keep, "z1": up, **entries(row)}, h=entry)
        # of the state at t, once its own estimate is there
        correction = np.zeros(1)
        if corrector[n] and step.linear:
            implicit = step.integral(levels[2][n + 1 :: -1][: corrector[n]])
            correction = _sum(implicit, -np.append(0.0, weights))
    name = f"sa_solver({form}, {predictor.max()}, {corrector.max()})"
    return stages.plan(name, len(grid) - 1, check="full" if form == "data" else "x0")


class _Step:
    """One step from s to t: alpha, sigma and lam are pairs."""

    def __init__(self, form, kind, tau, alpha, sigma, lam):
        self.form, self.short, self.tau = form, kind == "few_steps", tau
        self.alpha, self.sigma, self.lam = alpha, sigma, lam
        self.h = lam[1] - lam[0]
        # Steps into sigma_t = 0 and out of alpha = 0 are of first order, in x0.
        self.linear = bool(np.isfinite(self.h))

    def of_state(self):
        """Returns the weights of the state and of the noise, and the row of the entry."""
        (alpha_s, alpha_t), (sigma_s, sigma_t) = self.alpha, self.sigma
        if self.form == "noise" and self.linear:
            up = self.tau * sigma_t * np.sqrt(np.expm1(2.0 * self.h))
            return alpha_t / alpha_s, up, {"x": 1.0 / sigma_s, "d": -alpha_s / sigma_s}
        down, up = diffusive(alpha_s, alpha_t, sigma_s, sigma_t, self.tau**2)
        return down / sigma_s, up, {"d": 1.0}

    def explicit(self, nodes):
        """Returns the predictor's weights of the entries, newest first; nodes are their lam."""
        if self.linear:
            return self.integral(nodes)
        keep = self.of_state()[0]
        return np.array([self.alpha[1] - self.alpha[0] * keep])

    def integral(self, nodes):
        """Returns the weights of the entries at nodes in the integral of their polynomial."""
        nodes = (nodes[np.isfinite(nodes)] - self.lam[0]) / self.h
        rule = _data_weights if self.form == "data" else _noise_weights
        return rule(self.h, nodes, self.tau, *self.alpha, *self.sigma, self.short)


def _sum(a, b):
    """Returns the sum of two lists of weights, the shorter one filled up with zeros."""
    total = np.zeros(max(len(a), len(b)))
    total[: len(a)] += a
    total[: len(b)] += b
    return total


def _data_weights(h, nodes, tau, alpha_s, alpha_t, sigma_s, sigma_t, short):
    """Returns the weights of x0 estimates at `nodes`, in steps of lam from s.

    The integral of H exp(-H (1 - u)) u^k over u from 0 to 1, H = T h, is k! H phi_{k+1}(-H).
    """
    total = (1.0 + tau**2) * h
    if short and len(nodes) == 2:
        slope = 0.5 * total / (nodes[0] - nodes[1])
        line = alpha_t * np.array([slope, -slope])
        # the line stands at 1 for u = 0: all on the node at s
        line[0 if nodes[0] == 0.0 else 1] -= alpha_t * np.expm1(-total)
        return line
    moments = [factorial(k) * total * phi(k + 1, total) for k in range(len(nodes))]
    return alpha_t * _lagrange(nodes) @ moments


def _noise_weights(h, nodes, tau, alpha_s, alpha_t, sigma_s, sigma_t, short):
    """Returns the weights of noise estimates at `nodes`: as above with exp(h (1 - u)) instead."""
    moments = [factorial(k) * h * phi(k + 1, -h) for k in range(len(nodes))]
    return -sigma_t * (1.0 + tau**2) * (_lagrange(nodes) @ moments)


def _lagrange(nodes):
    """Returns [n, n]: coefficients (of 1, u, u^2 ...) of the polynomial that is 1 at one node."""
    return np.linalg.inv(np.vander(nodes, increasing=True)).T


def _orders(option, order, least, have):
    steps = len(have)
    order = np.asarray(order)
    whole = order.dtype.kind in "iu" and order.shape in ((), (steps,))
    if not whole or (order < least).any() or (order > MOST).any():
        raise ValueError(
            f"sa_solver: {option} = {order.tolist()}, but it must be a whole number from {least} "
            f"to {MOST}, or one for each of {steps} steps"
        )
    if order.ndim == 0:
        return np.minimum(order, have)
    if (order > have).any():
        n = int(np.argmax(order > have))
        raise ValueError(
            f"sa_solver: {option}[{n}] = {order[n]}, but only {have[n]} estimates are there"
        )
    return order


def _taus(tau, grid):
    values = [tau(t) if callable(tau) else tau for t in grid[:-1].tolist()]
    values = np.array(values, dtype=np.float64)
    wrong = ~((values >= 0.0) & (values < np.inf))
    if wrong.any():
        raise ValueError(
            f"sa_solver: tau = {values[wrong][0]}, but it must be finite and not negative"
        )
    return values
