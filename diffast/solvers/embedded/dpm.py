"""DPM-Solver-12 and -23: embedded exponential methods for the probability-flow ODE in log-SNR."""

from __future__ import annotations

from typing import Any

from diffast.solvers.core.phi import h_phi_2
from diffast.solvers.embedded.controllers import proportional_integral
from diffast.solvers.embedded.solver import EmbeddedSolver, Node, Row, Step
from diffast.solvers.ode.singlestep import PLACES


class DPM(EmbeddedSolver):
    """DPM-Solver of order 2 or 3 with the next lower order as its error (Lu et al. 2022).

    With e(x, lam) = (x - alpha d) / sigma, h = lam' - lam and u(r) the state predicted at lam + r h
    by

        u(r) = (alpha_r / alpha) x - sigma_r (e^rh - 1) e_0

    order 1 is u(1). Order 2 with the node r adds -sigma' (e^h - 1) / (2 r) (e_r - e_0) to it
    (algorithm 1, r = 1/2; as the lower order of DPM-Solver-23, r = 1/3). Order 3 (algorithm 2,
    nodes r1 = 1/3 and r2 = 2/3) has

        u_2 = u(r2) - (r2 / r1) sigma_2 ((e^rh - 1) / (rh) - 1) (e_1 - e_0)    at r = r2

    and adds -sigma' / r2 ((e^h - 1) / h - 1) (e_2 - e_0) to u(1). Algorithm "DPM-Solver adaptive"
    of the paper (appendix C) compares the two against max(atol, rtol max(|low|, |low before|)).

    Args:
        order: 2 or 3.
        rtol: relative tolerance.
        atol: absolute tolerance.
        step: first step in lam.
        norm: "l2" or "linf".
        eta: 0: the ODE. Above 0 a step leads to less noise, sigma_down, and ancestral noise is
            added after the decision, which it does not influence.
        lam_end: log-SNR that sigma_down may not pass; None: no bound.
        s_noise: factor on that noise.

    Raises:
        ValueError: another order, or a number out of its range.
    """

    time_variable, error_form, carried = "lam", "max", ("prev",)

    def __init__(
        self,
        order: int = 3,
        rtol: float = 0.05,
        atol: float = 0.0078,
        step: float = 0.05,
        norm: str = "l2",
        eta: float = 0.0,
        lam_end: float | None = None,
        s_noise: float = 1.0,
    ):
        """Checks the options and settles the step-size rule."""
        if order not in (2, 3):
            raise ValueError(f"dpm: order = {order}, but it must be 2 or 3")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"dpm: eta = {eta}, but it must lie in [0, 1]")
        self._keep("dpm", rtol, atol, step, norm)
        self.order, self.eta, self.lam_end, self.s_noise = order, eta, lam_end, s_noise
        self.noise = "state" if eta else "none"
        self.name = f"dpm_{order - 1}{order}"
        self.fractions = PLACES[order]
        self.controller = proportional_integral(order)

    def entry(self, node: Node) -> Row:
        """Returns the row of the noise estimate (x - alpha d) / sigma."""
        return {"x": 1.0 / node.sigma, "d": -node.alpha / node.sigma}

    def input_row(self, step: Step, call: int) -> Row:
        """Returns the row of u(r), or of u_2."""
        row = _first(step.xp, step.start, step.call)
        if call == 2:
            r1, r2 = self.fractions
            rh = step.call.lam - step.start.lam
            row = _add(row, -(r2 / r1) * step.call.sigma * h_phi_2(step.xp, rh), "h1", "h0")
        return row

    def new_rows(self, step: Step) -> dict[str, Row]:
        """Returns the rows of the higher order's state, of the lower order's, and low - high."""
        end, noise = self._end(step)
        low, error = self._orders(step, end)
        high = {name: low.get(name, 0.0) - error.get(name, 0.0) for name in {**low, **error}}
        if self.eta:
            high["z1"] = noise
        rows = {"y": high, "prev": low, "error": error}
        return rows | {"size": {"prev": 1.0}, "new_size": low}

    def estimate(self, node: Node) -> Row:
        """Returns (x - sigma e) / alpha."""
        return {"y": 1.0 / node.alpha, "h0": -node.sigma / node.alpha}

    def _orders(self, step: Step, end: Node) -> tuple[Row, Row]:
        """Returns the rows of the lower order's state, and of lower minus higher."""
        xp, last = step.xp, self.entry(step.call)
        low = _first(xp, step.start, end)
        h = end.lam - step.start.lam
        gain = end.sigma * xp.expm1(h)
        if self.order == 2:
            return low, _onto(0.5 / self.fractions[0] * gain, last, "h0")
        r1, r2 = self.fractions
        low = _add(low, -(0.5 / r1) * gain, "h1", "h0")
        # The higher order is u(1) - sigma' / r2 h phi_2(h) (e_2 - e_0).
        error = _onto(1.0 / r2 * end.sigma * h_phi_2(xp, h), last, "h0")
        return low, _add(error, -(0.5 / r1) * gain, "h1", "h0")

    def reach(self, xp: Any, start: Any, end: Any) -> Any:
        """Returns the log-SNR that the step's calls lead to: that of sigma_down."""
        if not self.eta:
            return end
        # With rho = exp(-lam): up = eta rho' sqrt(1 - (rho'/rho)^2), down^2 = rho'^2 - up^2.
        down = end - 0.5 * xp.log1p(self.eta**2 * xp.expm1(-2.0 * (end - start)))
        if self.lam_end is None:
            return down
        return xp.where(self.lam_end < down, self.lam_end, down)

    def _end(self, step: Step) -> tuple[Node, Any]:
        """Returns the step's end at sigma_down, and the weight of new noise."""
        xp, end = step.xp, step.end
        if not self.eta:
            return end, None
        lam = self.reach(xp, step.start.lam, end.lam)
        sigma = end.sigma * xp.exp(end.lam - lam)
        up = end.sigma * xp.sqrt(-xp.expm1(2.0 * (end.lam - lam)))
        return end._replace(lam=lam, sigma=sigma), self.s_noise * up


def _first(xp: Any, start: Node, end: Node) -> Row:
    h = end.lam - start.lam
    return {"y": end.alpha / start.alpha, "h0": -end.sigma * xp.expm1(h)}


def _onto(gain: Any, row: Row, other: str) -> Row:
    """Returns gain (row - other)."""
    return {name: gain * weight for name, weight in row.items()} | {other: -gain}


def _add(row: Row, gain: Any, one: str, other: str) -> Row:
    """Returns row + gain (one - other)."""
    row = dict(row)
    row[one] = row.get(one, 0.0) + gain
    row[other] = row.get(other, 0.0) - gain
    return row
