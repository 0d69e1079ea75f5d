"""Stochastic Improved Euler methods in the SDE's own time: "Gotta Go Fast", and Lamba's variant."""

from __future__ import annotations

from typing import Any

from diffast.solvers.embedded.controllers import PLAIN, gotta_go_fast
from diffast.solvers.embedded.solver import EmbeddedSolver, Node, Row, Step


class GGF(EmbeddedSolver):
    """The adaptive solver of Jolicoeur-Martineau et al. 2021, "Gotta Go Fast", algorithm 1.

    With the reverse drift b(x, t) = f(t) x - g(t)^2 score(x, t), one z for both stages and h > 0,

        x'  = x - h b(x, t) + sqrt(h) g(t) z
        x~  = x - h b(x', t - h) + sqrt(h) g(t - h) z
        x'' = (x' + x~) / 2
        E   = rms((x' - x'') / max(atol, rtol max(|x'|, |x'_prev|)))

    accepted if E <= 1, and h <- 0.9 h E^-r either way. The time is that of the paper: the model
    time as a share of the schedule's range, for variance-exploding schedules log(sigma) as a share.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance: 0.0078 for data in [-1, 1], 0.0039 for data in [0, 1].
        r: exponent of the error in the next step.
        theta: factor on the next step.
        extrapolate: whether an accepted step keeps x'' (else x').
        norm: "l2" or "linf".
        previous: whether the tolerance looks at x'_prev, the last accepted x' (True), or at the
            state x (False, which is what the published JAX code does).
        lamba: Lamba's error, of the drift alone: (h/2)(b(x - h b, t - h) - b(x, t)). The second
            call then sees no noise, and the noise sqrt(h) g(t) z is added after the decision.
        step: first step, in the unit of the whole range.

    Raises:
        ValueError: a number out of its range.
    """

    name, time_variable, fractions = "ggf", "time", (1.0,)
    error_form, needs_slopes, allows_redraw = "max", True, True
    # The step may grow without bound, so many points far ahead may be rejected.
    rejected_points = 8
    consistent = False  # Euler's steps in the SDE's time

    def __init__(
        self,
        rtol: float = 0.05,
        atol: float = 0.0078,
        r: float = 0.9,
        theta: float = 0.9,
        extrapolate: bool = True,
        norm: str = "l2",
        previous: bool = True,
        lamba: bool = False,
        step: float = 0.01,
    ):
        """Checks the options and settles the step-size rule."""
        self._keep(self.name, rtol, atol, step, norm, r=r, theta=theta)
        self.extrapolate, self.previous, self.lamba = extrapolate, previous, lamba
        self.noise = "state" if lamba else "input"
        self.carried = ("prev",) if previous else ()
        self.controller = gotta_go_fast(r, theta)

    def input_row(self, step: Step, call: int) -> Row:
        """Returns the row of x', without its noise for Lamba's error."""
        row = _euler({}, 1.0, _length(step), step.start, "y", "h0")
        row["y"] = row["y"] + 1.0
        if not self.lamba:
            row["z1"] = _fresh(step)
        return row

    def new_rows(self, step: Step) -> dict[str, Row]:
        """Returns the rows of the new state, of x' if it is carried, and of x'' - x'."""
        error = self._correction(step)
        state = dict(error) if self.extrapolate else {}
        state["x"] = state.get("x", 0.0) + 1.0
        if self.lamba:
            state["z1"] = _fresh(step)
        rows = {"y": state}
        if self.previous:
            rows["prev"] = {"x": 1.0}
        size = {"prev" if self.previous else "y": 1.0}
        return rows | {"error": error, "size": size, "new_size": {"x": 1.0}}

    def _correction(self, step: Step) -> Row:
        """Returns the row of x'' - x' = (x~ - x') / 2."""
        h = _length(step)
        row = _euler({}, 0.5, h, step.end, "x", "d")
        row = _euler(row, -0.5, h, step.start, "y", "h0")
        if self.lamba:
            return row
        # z = (x' - x + h b) / (sqrt(h) g), so the noise is neither held nor drawn again.
        turn = 0.5 * (step.xp.sqrt(_diffusion(step.end) / _diffusion(step.start)) - 1.0)
        row["x"] = row["x"] + turn
        row["y"] = row["y"] - turn
        return _euler(row, -turn, h, step.start, "y", "h0")


class EulerHeun(GGF):
    """Heun's method on the drift with Euler's error, noise added after the decision.

    x'' = x - (h/2)(b(x, t) + b(x - h b, t - h)) + sqrt(h) g(t) z with Lamba's error (Lamba 2003),
    of the drift alone. What is accepted does not depend on z, so no draw is ever thrown away. The
    controller is a PI rule for an error of order 2.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        step: first step, in the unit of the whole range.
        norm: "l2" or "linf".
    """

    name, allows_redraw = "euler_heun", False

    def __init__(
        self, rtol: float = 0.05, atol: float = 0.0078, step: float = 0.01, norm: str = "l2"
    ):
        """Checks the options and settles the step-size rule."""
        super().__init__(rtol, atol, norm=norm, previous=False, lamba=True, step=step)
        power = {"error_power": 0.35, "before_power": 0.2, "reject_power": 0.5}
        self.controller = PLAIN | power | {"error_floor": 1e-4, "calm": 1}


def _length(step: Step) -> Any:
    return step.end.position - step.start.position


def _diffusion(node: Node) -> Any:
    """Returns g^2 = 2 sigma^2 (log(sigma)' - log(alpha)') of the time variable."""
    slope = node.dsigma / node.sigma - node.dalpha / node.alpha
    return 2.0 * node.sigma**2 * slope * node.rate


def _fresh(step: Step) -> Any:
    return step.xp.sqrt(_length(step) * _diffusion(step.start))


def _euler(row: Row, factor: Any, h: Any, node: Node, x: str, d: str) -> Row:
    """Returns the row plus factor times -h b(x) = -h (f x - g^2 (alpha d - x) / sigma^2)."""
    f = node.dalpha / node.alpha * node.rate
    pull = _diffusion(node) / node.sigma**2
    row = dict(row)
    row[x] = row.get(x, 0.0) - factor * h * (f + pull)
    row[d] = row.get(d, 0.0) + factor * h * pull * node.alpha
    return row
