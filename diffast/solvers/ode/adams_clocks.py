"""Adams-Bashforth in any form and any clock, the family that the named Adams methods belong to."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Final, Orders, Start, builder
from diffast.solvers.core.integrals import CLOCKS, FORMS
from diffast.solvers.core.multistep import build, check_choice, check_order

HIGHEST = 6


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
    not used. Steps of less than 20 or so want order 2 or 3: the stable steps of Adams-Bashforth
    shrink with the order.

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order; "single" has the full order, for order 3 with 1 more call, for
    order 4 with 4 more.

    final: "full" keeps the order into sigma = 0, where the form has a value there: all but data in
    lam, and "snr". "clean" takes the last x0 estimate there, "falling" has orders 3, 2, 1 in the
    last steps.

    Args:
        order: 1 to 6; start = "single" up to 4.
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
    return build(schedule, grid, name, order, form, clock, **own)
