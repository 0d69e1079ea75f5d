"""Adams-Bashforth methods, PNDM among them: by slopes in rho or log(rho), by x0 in lam.

On the slope eps of x/alpha in rho = sigma/alpha,

    x_t = (alpha_t / alpha_s) x_s + alpha_t (rho_t - rho_s) sum_j b_j eps_j

is Euler's step (DDIM) with a mean of slopes, newest first, in place of the newest one. The methods
on slopes differ in b. The step into sigma_t = 0 is the last x0 estimate, unless `orders` is higher
there. The step out of alpha_s = 0, where rho is infinite, is Euler's step of x0 and is not
remembered. The error then falls as N^-2 log N at best (on `flow` in even times), unless
start="single".
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Final, Form, Orders, Start, builder
from diffast.solvers.core.integrals import adams, keep, levels_at, moments
from diffast.solvers.core.multistep import X, add_to, build, check_choice, check_order

# Adams-Bashforth for even steps; a row an order.
EVEN = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@builder
def lms(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 4,
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns Adams-Bashforth with variable steps in rho. Orders 1 to 4, 1 call a step.

    alpha_t (rho_t - rho_s) b_j is alpha_t times the integral over the step of Lagrange's polynomial
    L_j in rho (Hairer, Norsett & Wanner I, section III.5), in closed form. With alpha = 1 "LMS" of
    k-diffusion, which integrates the same by quadrature; `deis` with clock="sigma" is the same map.

    start: "rise" takes orders 1, 2, 3 ... in the first steps, so that the error falls as N^-2 in
    the limit whatever the order. "single" has the full order with 1 more call (order 3) or 4
    (order 4).
    """
    order = check_order("lms", order, 4)
    name = f"lms(order={order})"
    own = {"orders": orders, "start": start, "final": final}
    return build(schedule, grid, name, order, "noise", "rho", **own)


@builder
def ipndm(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 4,
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns improved PNDM: the even-step coefficients on any grid. 1 call a step.

    b = (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24 (Zhang & Chen 2023, "iPNDM" in appendix H;
    Liu et al. 2022, eq. 9 and 12, without their warm-up). On a grid even in rho these are `lms`; on
    any other smooth grid the first term missed is that of the second order, so whatever `order`,
    2 and up, the error falls as N^-2.
    """
    order = check_order("ipndm", order, 4)
    name, own = f"ipndm(order={order})", {"predict": mean_of_slopes(), "final": final}
    return build(schedule, grid, name, order, "noise", "rho", orders=orders, **own)


@builder
def gradient_estimation(
    schedule: Schedule,
    grid: ArrayLike,
    gamma: float = 2.0,
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns gradient estimation: b = (gamma, 1 - gamma). Order 1, at 1.5 order 2; 1 call a step.

    Permenter & Yuan 2023 ("Interpreting and improving diffusion models from an optimization
    perspective", algorithm 2). gamma = 1 is Euler, 1.5 is `ipndm` of order 2; the authors' 2
    overshoots on purpose, and so stays of order 1.

    Args:
        gamma: weight of the newest slope, finite.
        orders: [N] 1 or 2 (the first one 1): 1 is Euler's step.
    """
    if not np.isfinite(gamma):
        raise ValueError(f"gradient_estimation: gamma = {gamma}, but it must be finite")
    name = f"gradient_estimation(gamma={gamma:g})"
    rule = mean_of_slopes(((1.0,), (float(gamma), 1.0 - gamma)))
    own = {"predict": rule, "final": final}
    return build(schedule, grid, name, 2, "noise", "rho", orders=orders, **own)


@builder
def ipndm_v(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 4,
    form: Form = "exact",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns iPNDM with variable steps: equal to `lms`, or as published programs have it.

    With h, h1, h2 ... the newest steps in rho, backward differences with variable steps give

        b = eps_s + h/(2 h1) (eps_s - eps_1) + c2 E2 + c3 E3
        E2 = (eps_s - eps_1) - (h1/h2) (eps_1 - eps_2)
        c2 = h (h + h1) / (h1 (h1 + h2)) (1 - h/(3 (h + h1))) / 2

    and so on (Hairer, Norsett & Wanner I, section III.5). What diff-sampler and ComfyUI compute
    (form="compat") is not this at orders 3 and 4. Their c2 is (1 - h^2 / (3 h1 (h1 + h2))) / 2, off
    by O(h) unless steps are even, which leaves order 3 its order. Their E3 has h1/h2 where h2/h3
    belongs, so that the weights of order 4 do not add up to the step; and c3 is 11/24 for even
    steps, not 3/8. Order 4 then is not even exact where x0 is one point, its plan cannot be checked
    for it (`check` is "finite"), and its error falls as N^-1.4 to N^-3, depending on the grid.
    """
    order = check_order("ipndm_v", order, 4)
    compat = check_choice("ipndm_v", "form", form, ("exact", "compat")) == "compat"
    name, rule = f"ipndm_v(order={order}, {form})", _published if compat else adams
    own: dict[str, Any] = {"start": start, "final": final}
    own |= {"check": "finite" if compat and order == 4 else "full"}
    return build(schedule, grid, name, order, "noise", "rho", predict=rule, orders=orders, **own)


@builder
def deis(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    clock: Literal["logrho", "sigma"] = "logrho",
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns DEIS (tAB-DEIS, rhoAB-DEIS). Orders 1 to 4, 1 call a step, remembers slopes.

    With rho = sigma/alpha and eps_j remembered at s_j (Zhang & Chen 2023, eq. 14, 15, where eps is
    a polynomial in some clock and the integral is taken in rho),

        x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j eps_j integral L_j drho

    where L_j are Lagrange's polynomials in log rho ("logrho") or in rho ("sigma"; rhoAB-DEIS, the
    same map as `lms`). Both integrals are closed forms. Order 2 in log rho is DPM-Solver-2M with
    kind "heun". Into sigma_t = 0 a step is Euler's unless `orders` asks for more.

    start: as for `lms`, "single" from pure noise too. With "rise" order 3 shows slopes of 2.2 to
    2.9 for N = 80 to 640.

    Args:
        clock: "logrho" or "sigma".
    """
    order = check_order("deis", order, 4)
    check_choice("deis", "clock", clock, ("logrho", "sigma"))
    ticks = "lam" if clock == "logrho" else "rho"
    name = f"deis(order={order}, clock={clock})"
    own = {"orders": orders, "start": start, "final": final}
    return build(schedule, grid, name, order, "noise", ticks, **own)


@builder
def exponential_adams(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 3,
    orders: Orders = None,
    start: Start = "rise",
    final: Final = "clean",
) -> Plan:
    """Returns exponential Adams-Bashforth in lam. Orders 1 to 4, 1 call a step.

    With h = lam_t - lam_s, d_j the x0 estimates remembered, and L_j Lagrange's polynomials in
    u = lam - lam_s (Hochbruck & Ostermann 2010, "Exponential integrators", section 2.7),

        x_t = (sigma_t / sigma_s) x_s + alpha_t sum_j d_j integral_0^h exp(-(h - u)) L_j(u) du

    which are combinations of phi_1 ... phi_4 at -h. Order 2 is `dpmpp_2m` of kind "heun", order 3
    `dpmpp_3m` of form "exact".

    start: as for `lms`, "single" from pure noise too.
    """
    order = check_order("exponential_adams", order, 4)
    name = f"exponential_adams(order={order})"
    own = {"orders": orders, "start": start, "final": final}
    return build(schedule, grid, name, order, "data", "lam", **own)


@builder
def plms(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 4,
    start: Literal["euler", "repeat", "prk"] = "euler",
    orders: Orders = None,
    final: Final = "clean",
) -> Plan:
    """Returns PNDM's linear multistep method. Order 2 on any smooth grid (see `ipndm`).

    Liu et al. 2022 ("Pseudo numerical methods for diffusion models on manifolds"): every step is
    Euler's transfer (their eq. 9 and 11) with a mean of slopes eps in place of one,

        phi(x_s, e, s, t) = (alpha_t / alpha_s) x_s + (sigma_t - alpha_t sigma_s / alpha_s) e

    with the means of `ipndm` (eq. 12) once enough slopes are remembered. Before that,

        euler:   the orders rise 1, 2, 3 ...: `ipndm`. 1 call a step.
        repeat:  x' = phi(x_0, e_0), then x_1 = phi(x_0, (e_0 + e(x', t_1)) / 2), and t_1 is called
                 once more, for x_1: the slope at x' is not remembered. 1 call more in all. (Latent
                 diffusion's PLMS; diffusers' PNDMScheduler with skip_prk_steps=True.)
        prk:     three steps of the pseudo Runge-Kutta method (eq. 13): with the middle m in model
                 time, a = phi(x_s, e_1, s, m), b = phi(x_s, e(a, m), s, m), c = phi(x_s, e(b, m),
                 s, t), and then phi(x_s, (e_1 + 2 e(a) + 2 e(b) + e(c)) / 6, s, t); e_1 is
                 remembered. 9 calls more in all. (skip_prk_steps=False.)

    A step into sigma_t = 0 is the last x0 estimate, unless `orders` asks for more; one out of
    alpha_s = 0 is Euler's and not remembered. Neither has a warm-up.

    Args:
        start: "euler", "repeat" or "prk".
        orders: [N] orders of the steps, each at most `order` and what is remembered; a step of the
            warm-up does not ask.
    """
    order = check_order("plms", order, 4)
    check_choice("plms", "start", start, ("euler", "repeat", "prk"))
    opening = {"euler": None, "repeat": _repeat, "prk": _runge_kutta}[start]
    name, own = f"plms(order={order}, start={start})", {"orders": orders, "opening": opening}
    own |= {"predict": mean_of_slopes(), "final": final}
    return build(schedule, grid, name, order, "noise", "rho", **own)


def mean_of_slopes(rows=EVEN):
    """Returns a rule for `build`: b by the number of slopes, whatever the steps."""

    def predict(form, clock, s, others, t):
        whole = moments(form, clock, s, t, 0)[0]
        rest = [whole * b for b in rows[len(others)][1:]]
        return [whole - sum(rest), *rest]

    return predict


def _published(form, clock, s, others, t):
    """Returns the weights of `ipndm_v`, form="compat"."""
    if len(others) < 2:
        return adams(form, clock, s, others, t)
    rho = [node.on(clock) for node in (t, s, *others)]
    h, h1, h2, *more = (a - b for a, b in zip(rho[:-1], rho[1:], strict=True))
    c1 = h / (2 * h1)
    c2 = (1 - h * h / (3 * h1 * (h1 + h2))) / 2
    b = np.zeros(1 + len(others))
    b[:3] = [1 + c1 + c2, -c1 - (1 + h1 / h2) * c2, c2 * h1 / h2]
    if more:
        h3 = more[0]
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        two, three = h + h1, h + h1 + h2
        c3 = (1 - h / (3 * two)) / 2 + (1 - h / (2 * two)) * h / (6 * three)
        c3 *= h * two * three / (h1 * (h1 + h2) * (h1 + h2 + h3))
        b += c3 * np.array([1, -(1 + h1 / h2 + q), h1 / h2 + q * (1 + h2 / h3), -q * h1 / h2])
    return (moments(form, clock, s, t, 0)[0] * b).tolist()


def _transfer(s, t, stages, means):
    """Returns the row phi(y, sum of means * slopes of the stages, s, t)."""
    row = {X: keep("noise", s, t)}
    whole = moments("noise", "rho", s, t, 0)[0]
    add_to(row, stages, [whole * mean for mean in means])
    return row


def _repeat(rows, schedule, n, grid, s, t):
    if n > 0 or t.sigma == 0.0:
        return False
    rows.add(_transfer(s, t, [0], [1.0]), {X: 1.0}, 0)
    rows.call(grid[1], t, "noise")
    last = _transfer(s, t, [0, 1], [0.5, 0.5])
    rows.add(last, last, 2)
    return True


def _runge_kutta(rows, schedule, n, grid, s, t):
    if n > 2 or t.sigma == 0.0:
        return False
    i = len(rows.calls) - 1
    middle = 0.5 * (grid[n] + grid[n + 1])
    m = levels_at(schedule, [middle])[0]
    for stage, time, to in ((i, middle, m), (i + 1, middle, m), (i + 2, grid[n + 1], t)):
        rows.add(_transfer(s, to, [stage], [1.0]), {X: 1.0}, i)
        rows.call(time, to, "noise")
    last = _transfer(s, t, [i, i + 1, i + 2, i + 3], [1 / 6, 1 / 3, 1 / 3, 1 / 6])
    rows.add(last, last, i + 4)
    return True
