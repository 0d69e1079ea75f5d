"""Adams-Bashforth in any form and any clock, the family that the named Adams methods belong to."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.schedules.clocks import time_on
from diffast.solvers.core.docs import Final, Orders, Start, builder
from diffast.solvers.core.integrals import CLOCKS, FORMS, keep, levels_at, moments
from diffast.solvers.core.multistep import X, add_to, build, check_choice, check_order
from diffast.solvers.ode.runge_kutta import DOPRI5

HIGHEST, HIGHEST_SINGLE = 6, 4

# Steps that grow fast extrapolate slopes far. For even steps the weights of order 3 add up to 3.7
# times their sum, those of order 6 to 23 times. With a few steps, up to a few hundred times still
# serves; from 1000 on the errors of a network in float32 show.
FARTHEST = 1e3

# Over a step that divides tau by more than this, `dopri5` multiplies rounding, and is not taken.
WIDEST = 4.0


@builder
def adams(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    clock: Literal["flow", "lam", "rho", "arctan", "snr"] = "flow",
    form: Literal["velocity", "data", "noise"] = "velocity",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "full",
) -> Plan:
    """Returns Adams-Bashforth with variable steps, in any form and clock. 1 call a step.

    On any schedule the probability-flow ODE has three forms whose slope is constant along straight
    paths from noise to data, where x0 and eps do not change:

        velocity:  d(x / (alpha + sigma)) = (eps - x0) dtau,    tau = sigma / (alpha + sigma)
        noise:     d(x / alpha)           = eps drho,           rho = sigma / alpha
        data:      d(x / sigma)           = x0 ds,              s = alpha / sigma

    The slopes remembered are joined by Lagrange's polynomial in the clock u, and a step integrates
    it exactly (Hairer, Norsett & Wanner I, section III.5): with c the scale under x, q = tau, rho
    or s, and f_j the slopes,

        x_t = (c_t / c_s) x_s + c_t sum_j f_j integral L_j(u) dq

    tau is the time of conditional optimal transport (Lipman et al. 2023): "velocity" in "flow" is
    Adams-Bashforth on the flow model that any diffusion model is after a change of variables. It
    has a slope at alpha = 0 and a value at sigma = 0, so no step needs a method of its own. With
    clock "rho" and form "noise" it is `lms`, with "lam" and "noise" `deis`, with "lam" and "data"
    `exponential_adams`.

    A slope whose clock is infinite (lam and "rho" at alpha = 0; noise form there has no slope) is
    not used. Where the weights of a step add up to more than 1000 times their sum, as they do where
    steps suddenly grow, its order is lowered, unless `orders` are given. The higher the order, the
    smaller the steps at which Adams-Bashforth is stable: on narrow clusters, in even steps on
    `flow`, order 2 is best with 10 calls, order 3 with 15 to 50, and orders 4 to 6 gain from 60 on.

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order; "single" has the full order, for order 3 with 1 more call, for
    order 4 with 4 more. Orders 5 and 6 begin with 3 and 4 steps of `dopri5` in "flow", of 6 calls
    each.

    final: "full" keeps the order into sigma = 0, where the form has a value there: all but data in
    lam, and "snr". "clean" takes the last x0 estimate there, "falling" has orders 3, 2, 1 in the
    last steps.

    Args:
        order: 1 to 6.
        clock: u, "flow", "lam", "rho", "arctan" (arctan(sigma/alpha)) or "snr" (alpha/sigma).
        form: "velocity", "data" or "noise".
    """
    order = check_order("adams", order, HIGHEST)
    check_choice("adams", "clock", clock, CLOCKS)
    check_choice("adams", "form", form, FORMS)
    if orders is not None and final == "full":
        final = "clean"
    name = f"adams(order={order}, clock={clock}, form={form})"
    own = {"orders": orders, "start": start, "final": final}
    if orders is None:
        own["farthest"] = FARTHEST
    if start == "single" and orders is None and order > HIGHEST_SINGLE:
        own |= {"start": "rise", "opening": _dormand_prince(order, form)}
    return build(schedule, grid, name, order, form, clock, **own)


def _dormand_prince(order, form):
    """Returns what adds the rows of the first steps, as `build` calls it: `dopri5` in "flow"."""

    def opening(rows, schedule, n, grid, s, t):
        if n >= order - 2 or s.on("flow") > WIDEST * t.on("flow"):
            return False
        stage, gap = len(rows.calls) - 1, t.on("flow") - s.on("flow")
        nodes = [s.on("flow") + c * gap for c in DOPRI5.nodes]
        times = [float(time_on(schedule, "flow", tau)) for tau in nodes]
        times = [grid[n + 1] if c == 1.0 else at for c, at in zip(DOPRI5.nodes, times, strict=True)]
        ends = [*levels_at(schedule, times), t]
        for k, (weights, end) in enumerate(zip(DOPRI5.rows + (DOPRI5.weights,), ends, strict=True)):
            row = {X: keep("velocity", s, end)}
            later = [end.scale("velocity") * gap * weight for weight in weights[1:]]
            add_to(row, [stage + 1 + j for j in range(len(later))], later)
            # what is left of the whole step: the sum is then exact
            first = moments("velocity", "flow", s, end, 0)[0] - sum(later)
            slope = _velocity(form, s, stage)
            add_to(row, slope, [first * part for part in slope.values()])
            if k == len(times):
                rows.add(row, row, stage + k + 1)
            else:
                rows.add(row, {X: 1.0}, stage)
                rows.call(times[k], end, "velocity")
        return True

    return opening


def _velocity(form, at, stage):
    """Returns eps - x0 at a step's start as weights of its state and of what is remembered."""
    if form == "velocity":
        return {stage: 1.0}
    if form == "data":
        return {X: 1.0 / at.sigma, stage: -(at.alpha + at.sigma) / at.sigma}
    return {X: -1.0 / at.alpha, stage: (at.alpha + at.sigma) / at.alpha}
