"""PEC: predict, evaluate, correct in the SNR clock, one network call an attempt."""

from __future__ import annotations

from diffast.solvers.embedded.controllers import PLAIN
from diffast.solvers.embedded.solver import Judgement, Pair, check_positive


class PEC(Pair):
    """The reverse SDE by one call a step that also yields its error.

    With tau = exp(2 lam), Y = x alpha / sigma^2 and m = E[x0 | x] the reverse SDE of any Gaussian
    path is dY = m dtau + dW, W a Brownian motion in tau, and m is a martingale. From (x, m) at lam,
    with h = lam' - lam,

        xp = (sigma'/sigma) e^-h x + alpha' (1 - e^-2h) m + sigma' sqrt(1 - e^-2h) z
        mp = E[x0 | xp],    kappa = 1 - 2h / (e^2h - 1)
        x' = xp + alpha' kappa (mp - m),    m' = mp + kappa (mp - m)

    The predictor is SDE-DPM-Solver++ of order 1 (Lu et al. 2022, eq. 18). kappa is the integral of
    m over the step where m is interpolated as a Gaussian martingale with Cov[x0|x] = 1/tau,
    relative to mp - m; m' keeps the noise that mp predicts for xp and needs no call at x'. The
    error x' - xp, relative to rtol sqrt(sigma'^2 + (detail alpha')^2), is divided by the size of z,
    most of its dependence on the draw.

    Args:
        rtol: tolerance relative to noise and detail.
        detail: smallest standard deviation of the data that matters, in the data's units.
        step_max: largest step in lam; what an average over all elements cannot see (which of a few
            modes a sample falls into) needs one.
        step: first step in lam.
        norm: "l2" or "linf".

    Raises:
        ValueError: a number that is not positive.
    """

    name, clock, fractions, reuses = "pec", "lam", (1.0,), True
    form, noise = "scalar", "point"

    def __init__(self, rtol=0.1, detail=0.05, step_max=0.35, step=0.5, norm="l2"):
        """Checks the options and settles the step-size rule."""
        check_positive("pec", rtol=rtol, detail=detail, step_max=step_max, step=step)
        self.rtol, self.detail, self.step, self.norm = rtol, detail, step, norm
        self.controller = PLAIN | {
            "threshold": 2.0,
            "error_power": 0.7 / 1.5,
            "before_power": 0.4 / 1.5,
            "most": 2.0,
            "reject_power": 1.0 / 1.5,
            "error_floor": 0.01,
            "noise_floor": 0.5,
            "step_max": step_max,
            "balance": 1,
            "calm": 1,
        }

    def point(self, xp, call, nodes):
        """Returns the row of xp."""
        keep, pull, fresh = _predictor(xp, nodes)
        return {"x": keep, "e0": pull, "z": fresh}

    def states(self, xp, nodes):
        """Returns the rows of x' and m'."""
        h = nodes.to.lam - nodes.at.lam
        kappa = share(xp, h)
        size = nodes.to.alpha * kappa
        return {
            "x": {"point": 1.0, "d": size, "e0": -size},
            "e0": {"d": 1.0 + kappa, "e0": -kappa},
        }

    def judge(self, xp, nodes):
        """Returns the correction as the error, relative to the new noise and the least detail."""
        size = nodes.to.alpha * share(xp, nodes.to.lam - nodes.at.lam)
        keep, pull, fresh = _predictor(xp, nodes)
        delta = xp.sqrt(nodes.to.sigma**2 + (self.detail * nodes.to.alpha) ** 2)
        return Judgement(
            error={"d": size, "e0": -size},
            before=None,
            after=None,
            noise={"point": 1.0 / fresh, "x": -keep / fresh, "e0": -pull / fresh},
            atol=self.rtol * delta,
            rtol=0.0,
        )


def share(xp, h):
    """Returns kappa = 1 - 2h / (e^2h - 1), to about 1e-16 / h."""
    return 1.0 - 2.0 * h / xp.expm1(2.0 * h)


def _predictor(xp, nodes):
    h = nodes.to.lam - nodes.at.lam
    lost = -xp.expm1(-2.0 * h)
    keep = nodes.to.sigma / nodes.at.sigma * xp.exp(-h)
    return keep, nodes.to.alpha * lost, nodes.to.sigma * xp.sqrt(lost)
