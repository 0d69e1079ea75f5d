"""DPM-Solver-12 and -23 as pairs: exponential methods for the probability-flow ODE in log-SNR."""

from __future__ import annotations

from diffast.solvers.embedded.controllers import proportional_integral
from diffast.solvers.embedded.solver import Judgement, Pair, check_positive, check_tolerances


class DPM(Pair):
    """DPM-Solver of order 2 or 3 with the next lower order as its error (Lu et al. 2022).

    With e(x, lam) = (x - alpha d) / sigma, h = lam' - lam and u(r) the state predicted at lam + r h
    by

        u(r) = (alpha_r / alpha) x - sigma_r (e^rh - 1) e_0

    order 1 is u(1); order 2 with the node r adds -sigma' (e^h - 1) / (2 r) (e_r - e_0) to it
    (algorithm 1, r = 1/2; for the pair 2/3 r = 1/3); order 3 (algorithm 2, nodes 1/3 and 2/3) has
    u_2 = u(2/3) - 2 sigma_2 ((e^rh - 1) / (rh) - 1) (e_1 - e_0) at r = 2/3 and adds
    -sigma' / r ((e^h - 1) / h - 1) (e_2 - e_0) to u(1). Algorithm "DPM-Solver adaptive" of the
    paper (appendix C) compares the two against max(atol, rtol max(|low|, |low before|)).

    Args:
        order: 2 or 3.
        rtol: relative tolerance.
        atol: absolute tolerance.
        step: first step in lam.
        norm: "l2" or "linf".
        eta: 0: the ODE. Above 0 an attempt leads to less noise, sigma_down, and ancestral noise is
            added after the decision, which it does not influence.
        lam_end: log-SNR that sigma_down may not pass; None: no bound.
        s_noise: factor on that noise.

    Raises:
        ValueError: another order, or a number out of its range.
    """

    clock, form, keeps = "lam", "max", ("prev",)

    def __init__(
        self,
        order=3,
        rtol=0.05,
        atol=0.0078,
        step=0.05,
        norm="l2",
        eta=0.0,
        lam_end=None,
        s_noise=1.0,
    ):
        """Checks the options and settles the step-size rule."""
        if order not in (2, 3):
            raise ValueError(f"dpm: order = {order}, but it must be 2 or 3")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"dpm: eta = {eta}, but it must lie in [0, 1]")
        check_tolerances("dpm", rtol, atol)
        check_positive("dpm", step=step)
        self.order, self.rtol, self.atol, self.step, self.norm = order, rtol, atol, step, norm
        self.eta, self.lam_end, self.s_noise = eta, lam_end, s_noise
        self.noise = "state" if eta else "none"
        self.name = f"dpm_{order - 1}{order}"
        self.fractions = (0.5,) if order == 2 else (1.0 / 3.0, 2.0 / 3.0)
        self.controller = proportional_integral(order)

    def entry(self, xp, node):
        """Returns the row of the noise estimate (x - alpha d) / sigma."""
        return {"point": 1.0 / node.sigma, "d": -node.alpha / node.sigma}

    def point(self, xp, call, nodes):
        """Returns the row of u(r), or of the second inner state of order 3."""
        row = _first(xp, nodes.at, nodes.call)
        if call == 2:
            rh = nodes.call.lam - nodes.at.lam
            row = _add(row, -2.0 * nodes.call.sigma * _phi(xp, rh), "e1", "e0")
        return row

    def states(self, xp, nodes):
        """Returns the rows of the higher order's state and of the lower order's."""
        nodes, noise = self._split(xp, nodes)
        low, error = self._orders(xp, nodes)
        high = {name: low.get(name, 0.0) - error.get(name, 0.0) for name in {**low, **error}}
        if self.eta:
            high["z"] = noise
        return {"x": high, "prev": low}

    def judge(self, xp, nodes):
        """Returns low - high as the error."""
        nodes, _ = self._split(xp, nodes)
        low, error = self._orders(xp, nodes)
        return Judgement(error, {"prev": 1.0}, low, None, self.atol, self.rtol)

    def estimate(self, xp, node):
        """Returns (x - sigma e) / alpha."""
        return {"x": 1.0 / node.alpha, "e0": -node.sigma / node.alpha}

    def _orders(self, xp, nodes):
        """Returns the rows of the lower order's state, and of lower minus higher."""
        low = _first(xp, nodes.at, nodes.to)
        last = _noise_of(nodes.call)
        h = nodes.to.lam - nodes.at.lam
        gain = nodes.to.sigma * xp.expm1(h)
        if self.order == 2:
            return low, _onto(gain, last, "e0")
        low = _add(low, -1.5 * gain, "e1", "e0")
        # u(1) - 3/2 s' phi_2 (e_2 - e_0) is the higher one
        error = _onto(1.5 * nodes.to.sigma * _phi(xp, h), last, "e0")
        return low, _add(error, -1.5 * gain, "e1", "e0")

    def reach(self, xp, at, to):
        """Returns the log-SNR that the attempt's calls lead to: of sigma_down."""
        if not self.eta:
            return to
        # With rho = exp(-lam): up = eta rho' sqrt(1 - (rho'/rho)^2), down^2 = rho'^2 - up^2.
        down = to - 0.5 * xp.log1p(self.eta**2 * xp.expm1(-2.0 * (to - at)))
        return down if self.lam_end is None else xp.where(down > self.lam_end, self.lam_end, down)

    def _split(self, xp, nodes):
        """Returns the nodes with the attempt's end at sigma_down, and the weight of new noise."""
        if not self.eta:
            return nodes, None
        lam = self.reach(xp, nodes.at.lam, nodes.to.lam)
        left = xp.exp(nodes.to.lam - lam)
        to = nodes.to._replace(lam=lam, sigma=nodes.to.sigma * left)
        up = nodes.to.sigma * xp.sqrt(-xp.expm1(2.0 * (nodes.to.lam - lam)))
        return nodes._replace(to=to), self.s_noise * up


def _first(xp, at, to):
    h = to.lam - at.lam
    return {"x": to.alpha / at.alpha, "e0": -to.sigma * xp.expm1(h)}


def _phi(xp, h):
    """Returns (e^h - 1) / h - 1."""
    small = h * (0.5 + h * (1.0 / 6.0 + h * (1.0 / 24.0 + h * (1.0 / 120.0))))
    safe = xp.where(h < 1e-2, 1.0, h)
    return xp.where(h < 1e-2, small, xp.expm1(safe) / safe - 1.0)


def _noise_of(node):
    return {"point": 1.0 / node.sigma, "d": -node.alpha / node.sigma}


def _onto(gain, row, other):
    """Returns gain (row - other)."""
    return {name: gain * weight for name, weight in row.items()} | {other: -gain}


def _add(row, gain, one, other):
    """Returns row + gain (one - other)."""
    row = dict(row)
    row[one] = row.get(one, 0.0) + gain
    row[other] = row.get(other, 0.0) - gain
    return row
