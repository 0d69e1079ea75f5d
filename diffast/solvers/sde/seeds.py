"""SEEDS: stochastic exponential solvers of several stages, whose stages share one noise path."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.plans.registers import entries
from diffast.schedules import Schedule
from diffast.solvers.core.docs import builder
from diffast.solvers.core.multistep import check_choice
from diffast.solvers.core.noise_split import check_eta, check_s_noise, diffusive
from diffast.solvers.core.phi import phi


@builder
def seeds_1(schedule: Schedule, grid: ArrayLike, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """Returns SEEDS-1: the exact step for a constant x0. Weak order 1, 1 call a step.

    x_t = (sigma_t / sigma_s) exp(-eta h) x_s + alpha_t (1 - exp(-(1 + eta) h)) d_s
    + sigma_t sqrt(1 - exp(-2 eta h)) z, h = lam_t - lam_s (Gonzalez et al. 2023, "SEEDS", in its
    data form). At eta = 1 the map of `ddim` with eta = 1.
    """
    return _seeds("seeds_1", schedule, grid, eta, s_noise, (), lambda total: ())


@builder
def seeds_2(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
    kind: Literal["phi_1", "phi_2"] = "phi_1",
) -> Plan:
    """Returns SEEDS-2. Weak order 2 (strong order 2 at eta = 0), 2 calls a step.

    With P(d, c) = the step of `seeds_1` over c h and H = (1 + eta) h, a first stage to lam_s + r h
    by d_s, then from s to t with, in place of d_s,

        phi_1:  (1 - 1/(2r)) d_s + d_m / (2r)
        phi_2:  weights alpha_t H (phi_1 - phi_2 / r) of d_s and alpha_t H phi_2 / r of d_m, at -H

    (Gonzalez et al. 2023, algorithm 2, in the data form ComfyUI's seeds_2 has). The second stage
    keeps the noise of the first, faded by exp(-eta (1 - r) h), and adds fresh noise for the rest:
    both stages lie on one path. That noise is inside the state of the first stage, so y is always
    the newest state. First order, one call: into sigma_t = 0 and out of alpha_s = 0.

    Args:
        r: where the inner stage stands, as a share of the step in lam.
        kind: "phi_1" or "phi_2".
    """
    _check_inner("seeds_2", r=r)
    check_choice("seeds_2", "kind", kind, ("phi_1", "phi_2"))

    def weights(total):
        late = total * (phi(1, total) / 2.0 if kind == "phi_1" else phi(2, total)) / r
        return ((total * phi(1, total) - late, late),)

    return _seeds("seeds_2", schedule, grid, eta, s_noise, (r,), weights)


@builder
def seeds_3(
    schedule: Schedule,
    grid: ArrayLike,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r_1: float = 1.0 / 3.0,
    r_2: float = 2.0 / 3.0,
) -> Plan:
    """Returns SEEDS-3. Weak order 2, strong order 3 at eta = 0; 3 calls a step.

    Gonzalez et al. 2023, algorithm 3, in the data form ComfyUI's seeds_3 has; Hochbruck and
    Ostermann 2010, eq. 5.8, for the weights. H = (1 + eta) h, phi_k at -H r_2 or -H:

        to lam_s + r_2 h:  r_2 H (phi_1 - (r_2/r_1) phi_2), r_2 H (r_2/r_1) phi_2   of d_s, d_1
        to lam_t:          H (phi_1 - phi_2 / r_2), H phi_2 / r_2                   of d_s, d_2

    times alpha there. Each stage keeps the noise of the one before (see `seeds_2`). First order,
    one call: into sigma_t = 0 and out of alpha_s = 0.

    Args:
        r_1: where the first inner stage stands, as a share of the step in lam.
        r_2: where the second one does.
    """
    _check_inner("seeds_3", r_1=r_1, r_2=r_2)

    def weights(total):
        inner, ratio = r_2 * total, r_2 / r_1
        second = inner * ratio * phi(2, inner)
        last = total * phi(2, total) / r_2
        return (
            (inner * phi(1, inner) - second, second),
            (total * phi(1, total) - last, 0.0, last),
        )

    return _seeds("seeds_3", schedule, grid, eta, s_noise, (r_1, r_2), weights)


def _check_inner(name, **shares):
    before = 0.0
    for option, share in shares.items():
        if not before < share < 1.0:
            raise ValueError(
                f"{name}: {option} = {share}, but it must lie between {before:g} and 1"
            )
        before = share


def _seeds(name, schedule, grid, eta, s_noise, shares, weights):
    """Returns the plan with inner stages at `shares` of a step.

    Args:
        shares: where the inner stages stand in the step, in lam.
        weights: H -> for each stage but the first, weights of the estimates so far, oldest first.
    """
    eta = check_eta(name, eta)
    s_noise, check = check_s_noise(name, s_noise)
    grid = check_grid(schedule, grid)
    lam = schedule.lam(grid)
    width = 1 + len(shares)
    stages = Stages(schedule, grid[0])
    for n in range(len(grid) - 1):
        s, t, h = grid[n], grid[n + 1], lam[n + 1] - lam[n]
        whole = np.isfinite(h)
        inner = [schedule.time(lam[n] + r * h) for r in shares] if whole else []
        stops = np.array([s, *inner, t])
        alpha, sigma = schedule.alpha(stops), schedule.sigma(stops)
        down, up = diffusive(alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], eta)
        keep = down / sigma[:-1]
        later = weights((1.0 + eta) * h) if inner else ()
        before = np.zeros(width)  # what the newest state holds of the step's estimates
        for m in range(len(stops) - 1):
            goal = np.zeros(width)
            if m:
                goal[: m + 1] = alpha[m + 1] * np.array(later[m - 1])
            change = (goal - keep[m] * before)[:m]
            # the newest estimate takes what x0 is short of
            newest = alpha[m + 1] - (alpha[m] * keep[m] + change.sum())
            goal[m] = newest
            before = goal
            row = {"x": keep[m], "d": newest, "z1": s_noise * up[m], **entries(change[::-1], 1)}
            stages.add(stops[m], stops[m + 1], row)
    return stages.plan(f"{name}(eta={eta:g})", len(grid) - 1, check=check)
