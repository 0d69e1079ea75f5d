"""PNDM: even-step Adams-Bashforth coefficients, after first steps with more calls."""

from __future__ import annotations

from typing import Literal

from numpy.typing import ArrayLike

from diffast.plan import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Orders, builder
from diffast.solvers.core.integrals import keep, levels_at, moments
from diffast.solvers.core.multistep import X, add_to, build, check_choice, check_order
from diffast.solvers.ode.adams import mean_of_slopes


@builder
def plms(
    schedule: Schedule,
    grid: ArrayLike,
    order: int = 4,
    start: Literal["euler", "repeat", "prk"] = "euler",
    orders: Orders = None,
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
    name = f"plms(order={order}, start={start})"
    return build(
        schedule,
        grid,
        name,
        order,
        "noise",
        "rho",
        predict=mean_of_slopes(),
        orders=orders,
        opening=opening,
    )


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
