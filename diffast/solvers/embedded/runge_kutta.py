"""Embedded Runge-Kutta pairs on the probability-flow ODE.

With y = x / s and q the level of the clock ("rho": s = alpha, q = sigma / alpha; "flow":
s = alpha + sigma, q = sigma / s), the ODE is dy/dq = f = (y - x0) / q, and

    y_i = y + (q' - q) sum_j a_ij f_j,    error = (q' - q) sum_j (b_j - b^_j) f_j

The last row of a is b: its call stands at the new state and is the first slope of the next attempt.
"""

from __future__ import annotations

from diffast.solvers.embedded.controllers import proportional_integral
from diffast.solvers.embedded.solver import Judgement, Pair, check_positive, check_tolerances
from diffast.solvers.ode import runge_kutta

# b - b^, the weights of the slopes in the error, the one at the new state last.
ERRORS = {
    # Bogacki & Shampine 1989, the pair 3(2)
    "bosh3": (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    # Dormand & Prince 1980, the pair 5(4)
    "dopri5": (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    # Tsitouras 2011, the pair 5(4), table 1
    "tsit5": (
        0.00178001105222577714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1.0 / 66.0,
    ),
}
ORDERS = {"bosh3": 3, "dopri5": 5, "tsit5": 5}


class RungeKutta(Pair):
    """An explicit embedded pair whose last call is the next attempt's first.

    Args:
        name: "bosh3", "dopri5" or "tsit5".
        rtol: relative tolerance.
        atol: absolute tolerance.
        clock: "rho", or "flow" for schedules that begin with alpha = 0.
        step: first step, in the clock's level.
        norm: "l2" or "linf".

    Raises:
        ValueError: an unknown name or clock.
    """

    form, reuses = "sum", True

    def __init__(self, name, rtol=1e-3, atol=1e-3, clock="flow", step=0.01, norm="l2"):
        """Checks the options and settles the step-size rule."""
        if name not in ERRORS:
            raise ValueError(f"runge_kutta: name = {name!r}, but these are known: {[*ERRORS]}")
        if clock not in ("rho", "flow"):
            raise ValueError(f"{name}: clock = {clock!r}, but it must be 'rho' or 'flow'")
        check_tolerances(name, rtol, atol)
        check_positive(name, step=step)
        tableau = runge_kutta.TABLEAUS[name]
        self.name, self.clock, self.step, self.norm = name, clock, step, norm
        self.rtol, self.atol = rtol, atol
        self.fractions = (*tableau.nodes, 1.0)
        self.rows = (*tableau.rows, tableau.weights)
        self.controller = proportional_integral(ORDERS[name])

    def entry(self, xp, node):
        """Returns the row of the slope (y - d) / q."""
        scale, level = self._level(node)
        return {"point": 1.0 / (scale * level), "d": -1.0 / level}

    def point(self, xp, call, nodes):
        """Returns the row of y_i."""
        at, level = self._level(nodes.at)
        to, last = self._level(nodes.to)
        here, _ = self._level(nodes.call)
        row = {f"e{j}": here * (last - level) * a for j, a in enumerate(self.rows[call - 1]) if a}
        return row | {"x": here / at}

    def states(self, xp, nodes):
        """Returns the rows of the new state, which the last call saw, and of its slope."""
        return {"x": {"point": 1.0}, "e0": self.entry(xp, nodes.to)}

    def judge(self, xp, nodes):
        """Returns the difference of the two orders as the error."""
        level = self._level(nodes.at)[1]
        scale, last = self._level(nodes.to)
        step = scale * (last - level)
        *held, new = ERRORS[self.name]
        row = {f"e{j}": step * b for j, b in enumerate(held) if b}
        row |= {n: step * new * w for n, w in self.entry(xp, nodes.to).items()}
        return Judgement(row, {"x": 1.0}, {"point": 1.0}, None, self.atol, self.rtol)

    def estimate(self, xp, node):
        """Returns x / s - q f."""
        scale, level = self._level(node)
        return {"x": 1.0 / scale, "e0": -level}

    def _level(self, node):
        scale = node.alpha if self.clock == "rho" else node.alpha + node.sigma
        return scale, node.sigma / scale
