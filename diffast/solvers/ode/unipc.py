"""UniPC: an exponential multistep predictor, and a corrector that costs no further call."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Final, Orders, Start, builder
from diffast.solvers.core.integrals import adams, moments
from diffast.solvers.core.multistep import WIDEST, build, check_choice, check_order


@builder
def unipc(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 2,
    variant: Literal["bh1", "bh2"] = "bh2",
    form: Literal["data", "noise"] = "data",
    corrector: bool | ArrayLike = True,
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns UniPC-p. Order p, with the corrector p + 1 (see start); 1 call a step.

    UniP-p steps from s with the p newest estimates; once the network has been called at t, UniC-p
    takes the same step again with the estimate at t among them, and the next step starts from there
    (Zhao et al. 2023, "UniPC", algorithms 1 and 2; the estimate is not renewed). With data (x0),
    h = lam_t - lam_s, r_j h = lam_j - lam_s, D_j = d_j - d_s,

        x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) d_s + alpha_t B sum_j a_j D_j / r_j
        sum_j a_j r_j^(k-1) = k! h phi_(k+1)(-h) / B,      k = 1 ... number of D_j

    so B cancels, and both are Lagrange interpolation integrated exactly. But where one D_j is left,
    in UniP-2 and UniC-1, a = 1/2 stands by convention, and B makes a difference: B = 1 - exp(-h)
    ("bh2") or h ("bh1"). UniP-2 bh2 is `dpmpp_2m`. Noise form: the same for slopes, at +h, with
    B = exp(h) - 1 or h (section 3.4).

    Where B is infinite or eps has no meaning the step is lowered: Euler's into sigma_t = 0, for
    every variant and form; out of alpha_s = 0 Euler's predictor, corrected for data and "bh2" only.

    start: "rise" takes p = 1, 2, 3 ... in the first steps. With the corrector the first step has
    order 2, so p = 2 has order 3 and p = 3 tends to 3; without it both tend to 2. "single": the
    first steps of p = 3 have 2 more calls (1 without corrector), from pure noise too, where it
    also keeps to alpha/sigma instead of lam (see `multistep.build`): the full order.

    Args:
        order: p, 1 to 3.
        variant: "bh2" or "bh1".
        form: "data" or "noise".
        corrector: True, False, or [N] bools: whether the point after each step is corrected (never
            the last one: nobody calls the network there).
        orders: [N] p of the steps, each at most `order` and what is remembered.
    """
    steps = {"orders": orders, "start": start, "final": final}
    return build_unipc(schedule, grid, order, variant, form, corrector, **steps)


def build_unipc(
    schedule, grid, order, variant, form, corrector, *, widest=WIDEST, **options
) -> Plan:
    """Returns the plan of `unipc`.

    Args:
        widest: see `multistep.build`; infinite: noise form is corrected after every step.
        options: orders, start and final.
    """
    order = check_order("unipc", order, 3)
    check_choice("unipc", "variant", variant, ("bh2", "bh1"))
    check_choice("unipc", "form", form, ("data", "noise"))
    steps = len(check_grid(schedule, grid)) - 1
    corrected = _check_corrector(corrector, steps)

    def half(which, clock, s, t):
        """Returns the weight of D / r where one D is left."""
        whole = moments(which, clock, s, t, 0)[0]
        if variant == "bh2":
            return whole, 0.5 * whole
        h = t.lam - s.lam
        scale = 0.5 * (t.alpha if which == "data" else -t.sigma)
        return whole, scale * h if np.isfinite(h) else 0.0

    def predict(which, clock, s, others, t):
        if len(others) != 1:
            return adams(which, clock, s, others, t)
        whole, gain = half(which, clock, s, t)
        h = t.lam - s.lam
        w = gain * h / (others[0].lam - s.lam) if np.isfinite(h) else 0.0
        return [whole - w, w]

    def correct(which, clock, s, others, t):
        if len(others) != 1:
            return adams(which, clock, s, others, t)
        whole, gain = half(which, clock, s, t)
        return [whole - gain, gain]

    name = f"unipc(order={order}, {variant}, {form})"
    rules = {"predict": predict, "correct": correct if any(corrected) else None}
    options |= {"corrected": corrected, "widest": widest}
    return build(schedule, grid, name, order, form, "lam", **rules, **options)


def _check_corrector(corrector, steps):
    if isinstance(corrector, bool | np.bool_):
        return [bool(corrector)] * steps
    found = np.asarray(corrector)
    if found.dtype != bool or found.shape != (steps,):
        raise ValueError(
            f"unipc: corrector = {corrector!r}, but it must be True, False or [{steps}] bools, "
            "one a step"
        )
    return found.tolist()
