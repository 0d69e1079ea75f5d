"""Embedded Runge-Kutta methods on the probability-flow ODE.

With y = x / s and q the level of the time variable ("rho": s = alpha, q = sigma / alpha; "flow":
s = alpha + sigma, q = sigma / s), the ODE is dy/dq = f = (y - x0) / q, and

    y_i = y + (q' - q) sum_j a_ij f_j,    error = (q' - q) sum_j (b_j - b^_j) f_j

The last row of a is b: its call stands at the new state and is the first slope of the next step.
"""

from __future__ import annotations

from typing import Any

from diffast.solvers.core.multistep import check_choice
from diffast.solvers.embedded.controllers import proportional_integral
from diffast.solvers.embedded.solver import EmbeddedSolver, Node, Row, Step
from diffast.solvers.ode.runge_kutta import TABLEAUS


class RungeKutta(EmbeddedSolver):
    """An explicit embedded method whose last call is the next step's first.

    Args:
        name: "bosh3", "dopri5" or "tsit5".
        rtol: relative tolerance.
        atol: absolute tolerance.
        clock: the time variable: "rho", or "flow", which also starts at alpha = 0.
        step: first step, in the level of the time variable.
        norm: "l2" or "linf".

    Raises:
        ValueError: an unknown name or clock.
    """

    error_form, reuses_last_call = "sum", True

    def __init__(
        self,
        name: str,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        clock: str = "flow",
        step: float = 0.01,
        norm: str = "l2",
    ):
        """Checks the options and settles the step-size rule."""
        if name not in TABLEAUS:
            raise ValueError(f"runge_kutta: name = {name!r}, but these are known: {[*TABLEAUS]}")
        check_choice(name, "clock", clock, ("rho", "flow"))
        self._keep(name, rtol, atol, step, norm)
        self.tableau = tableau = TABLEAUS[name]
        self.name, self.time_variable, self.starts_at_noise = name, clock, clock == "flow"
        self.fractions = (*tableau.nodes, 1.0)
        self.controller = proportional_integral(tableau.order)

    def entry(self, node: Node) -> Row:
        """Returns the row of the slope (y - d) / q."""
        scale, level = self.level(node)
        return {"x": 1.0 / (scale * level), "d": -1.0 / level}

    def input_row(self, step: Step, call: int) -> Row:
        """Returns the row of y_i."""
        start, level = self.level(step.start)
        last = self.level(step.end)[1]
        scale = self.level(step.call)[0]
        row = (*self.tableau.rows, self.tableau.weights)[call - 1]
        slopes = {f"h{j}": scale * (last - level) * a for j, a in enumerate(row) if a}
        return slopes | {"y": scale / start}

    def new_rows(self, step: Step) -> dict[str, Row]:
        """Returns the rows of the new state, which the last call saw, its slope, and the error."""
        scale, last = self.level(step.end)
        length = scale * (last - self.level(step.start)[1])
        slope = self.entry(step.end)
        *held, new = self.tableau.errors
        error = {f"h{j}": length * b for j, b in enumerate(held) if b}
        error |= {name: length * new * weight for name, weight in slope.items()}
        state = {"x": 1.0}
        return {"y": state, "h0": slope, "error": error, "size": {"y": 1.0}, "new_size": state}

    def estimate(self, node: Node) -> Row:
        """Returns x / s - q f."""
        scale, level = self.level(node)
        return {"y": 1.0 / scale, "h0": -level}

    def level(self, node: Node) -> tuple[Any, Any]:
        """Returns (s, q) at a node."""
        scale = node.alpha if self.time_variable == "rho" else node.alpha + node.sigma
        return scale, node.sigma / scale
