"""Stochastic Improved Euler pairs in the SDE's own time: "Gotta Go Fast", and Lamba's variant."""

from __future__ import annotations

import math

from diffast.solvers.embedded.controllers import PLAIN, plain
from diffast.solvers.embedded.solver import Judgement, Pair, check_positive, check_tolerances


class GGF(Pair):
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
        extrapolate: whether an accepted attempt keeps x'' (else x').
        norm: "l2" or "linf".
        previous: whether the tolerance looks at x'_prev, the last accepted x' (True), or at the
            state x (False, which is what the published JAX code does).
        lamba: Lamba's error, of the drift alone: (h/2)(b(x - h b, t - h) - b(x, t)). The second
            call then sees no noise, and the noise sqrt(h) g(t) z is added after the decision.
        step: first step, in the unit of the whole range.

    Raises:
        ValueError: a number out of its range.
    """

    name, clock, fractions = "ggf", "time", (1.0,)
    form, slopes = "max", True
    slots = 8  # the step may grow without bound, and many points far ahead be rejected

    def __init__(
        self,
        rtol=0.05,
        atol=0.0078,
        r=0.9,
        theta=0.9,
        extrapolate=True,
        norm="l2",
        previous=True,
        lamba=False,
        step=0.01,
    ):
        """Checks the options and settles the step-size rule."""
        check_tolerances(self.name, rtol, atol)
        check_positive(self.name, r=r, theta=theta, step=step)
        self.rtol, self.atol, self.norm, self.step = rtol, atol, norm, step
        self.extrapolate, self.previous, self.lamba = extrapolate, previous, lamba
        self.noise = "state" if lamba else "point"
        self.keeps = ("prev",) if previous else ()
        free = {"least": 0.0, "most": math.inf, "reject_least": 0.0, "reject_most": math.inf}
        self.controller = plain(r, theta, **free)

    def point(self, xp, call, nodes):
        """Returns the row of x', without its noise for Lamba's error."""
        h = nodes.to.position - nodes.at.position
        row = _euler({}, 1.0, h, nodes.at, "x", "e0")
        row["x"] = row["x"] + 1.0
        if not self.lamba:
            row["z"] = _fresh(xp, nodes)
        return row

    def states(self, xp, nodes):
        """Returns the rows of the new state, and of x' if it is held."""
        row = self._correction(xp, nodes) if self.extrapolate else {}
        row["point"] = row.get("point", 0.0) + 1.0
        if self.lamba:
            row["z"] = _fresh(xp, nodes)
        return {"x": row} | ({"prev": {"point": 1.0}} if self.previous else {})

    def judge(self, xp, nodes):
        """Returns x'' - x' as the error, and the mixed tolerance."""
        return Judgement(
            error=self._correction(xp, nodes),
            before={"prev" if self.previous else "x": 1.0},
            after={"point": 1.0},
            noise=None,
            atol=self.atol,
            rtol=self.rtol,
        )

    def _correction(self, xp, nodes):
        """Returns the row of x'' - x' = (x~ - x') / 2."""
        h = nodes.to.position - nodes.at.position
        row = _euler({}, 0.5, h, nodes.to, "point", "d")
        row = _euler(row, -0.5, h, nodes.at, "x", "e0")
        if self.lamba:
            return row
        # z = (x' - x + h b) / (sqrt(h) g), so that no noise has to be held or drawn again.
        turn = 0.5 * (xp.sqrt(_diffusion(nodes.to) / _diffusion(nodes.at)) - 1.0)
        row["point"] = row["point"] + turn
        row["x"] = row["x"] - turn
        return _euler(row, -turn, h, nodes.at, "x", "e0")


class EulerHeun(GGF):
    """Heun's method on the drift with Euler's error, noise added after the decision.

    x'' = x - (h/2)(b(x, t) + b(x - h b, t - h)) + sqrt(h) g(t) z with Lamba's error (Lamba 2003),
    of the drift alone: what is accepted does not depend on z, so no draw is ever thrown away. A PI
    controller for an error of order 2.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        step: first step, in the unit of the whole range.
        norm: "l2" or "linf".
    """

    name = "euler_heun"

    def __init__(self, rtol=0.05, atol=0.0078, step=0.01, norm="l2"):
        """Checks the options and settles the step-size rule."""
        super().__init__(rtol, atol, norm=norm, previous=False, lamba=True, step=step)
        power = {"error_power": 0.35, "before_power": 0.2, "reject_power": 0.5}
        self.controller = PLAIN | power | {"error_floor": 1e-4, "calm": 1}


def _diffusion(node):
    """Returns g^2 = 2 sigma^2 (log(sigma)' - log(alpha)') of the clock's time."""
    slope = node.dsigma / node.sigma - node.dalpha / node.alpha
    return 2.0 * node.sigma**2 * slope * node.rate


def _fresh(xp, nodes):
    return xp.sqrt((nodes.to.position - nodes.at.position) * _diffusion(nodes.at))


def _euler(row, factor, h, node, x, d):
    """Returns the row plus factor times -h b(x) = -h (f x - g^2 (alpha d - x) / sigma^2)."""
    f = node.dalpha / node.alpha * node.rate
    pull = _diffusion(node) / node.sigma**2
    row = dict(row)
    row[x] = row.get(x, 0.0) - factor * h * (f + pull)
    row[d] = row.get(d, 0.0) + factor * h * pull * node.alpha
    return row
