"""PEC: predict, evaluate, correct in log-SNR, with one network call a step."""

from __future__ import annotations

import math
from typing import Any

from diffast.solvers.embedded.controllers import PLAIN
from diffast.solvers.embedded.solver import EmbeddedSolver, Row, Step, check_positive


class PEC(EmbeddedSolver):
    """The reverse SDE by one call a step that also yields its error.

    With tau = exp(2 lam), Y = x alpha / sigma^2 and m = E[x0 | x] the reverse SDE of any Gaussian
    path is dY = m dtau + dW, where W is a Brownian motion in tau and m is a martingale. A step goes
    from (x, m) at lam to lam', with h = lam' - lam:

        xp = (sigma'/sigma) e^-h x + alpha' (1 - e^-2h) m + sigma' sqrt(1 - e^-2h) z
        mp = E[x0 | xp],    kappa = 1 - 2h / (e^2h - 1)
        x' = xp + alpha' kappa (mp - m),    m' = mp + kappa (mp - m)

    The predictor is SDE-DPM-Solver++ of order 1 (Lu et al. 2022, eq. 18). kappa is the integral of
    m over the step where m is interpolated as a Gaussian martingale with Cov[x0|x] = 1/tau,
    relative to mp - m. m' keeps the noise that mp predicts for xp and needs no call at x'. The
    error is x' - xp relative to rtol sqrt(sigma'^2 + (detail alpha')^2), divided by the size of z,
    because most of its dependence on the draw is its proportion to z.

    A step out of alpha = 0 is not corrected: the state says nothing of the data there.

    Args:
        rtol: tolerance relative to noise and detail.
        detail: smallest standard deviation of the data that matters, in the data's units.
        step_max: largest step in lam. An average over all elements does not see which of a few
            modes a sample falls into, so the step needs a bound.
        step: first step in lam.
        norm: "l2" or "linf".

    Raises:
        ValueError: a number that is not positive.
    """

    name, time_variable, fractions = "pec", "lam", (1.0,)
    reuses_last_call, starts_at_noise = True, True
    error_form, noise = "scalar", "input"

    def __init__(
        self,
        rtol: float = 0.1,
        detail: float = 0.05,
        step_max: float = 0.35,
        step: float = 0.5,
        norm: str = "l2",
    ):
        """Checks the options and settles the step-size rule."""
        check_positive("pec", rtol=rtol, detail=detail, step_max=step_max, step=step)
        self.rtol, self.detail, self.step, self.error_norm = rtol, detail, step, norm
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

    def input_row(self, step: Step, call: int) -> Row:
        """Returns the row of xp."""
        keep, pull, fresh = step.sde_split
        return {"y": keep, "h0": pull, "z1": fresh}

    def new_rows(self, step: Step) -> dict[str, Row]:
        """Returns the rows of x' and m', of the correction as the error, and of z."""
        xp, h = step.xp, step.h
        kappa = xp.where(h < math.inf, share(xp, h), 0.0)
        size = step.end.alpha * kappa
        keep, pull, fresh = step.sde_split
        return {
            "y": {"x": 1.0, "d": size, "h0": -size},
            "h0": {"d": 1.0 + kappa, "h0": -kappa},
            "error": {"d": size, "h0": -size},
            "drawn": {"x": 1.0 / fresh, "y": -keep / fresh, "h0": -pull / fresh},
        }

    def tolerance(self, step: Step) -> tuple[Any, Any]:
        """Returns rtol times the size of the new noise and the least detail."""
        end = step.end
        delta = step.xp.sqrt(end.sigma**2 + (self.detail * end.alpha) ** 2)
        return self.rtol * delta, 0.0


def share(xp: Any, h: Any) -> Any:
    """Returns kappa = 1 - 2h / (e^2h - 1), to about 1e-16 / h."""
    return 1.0 - 2.0 * h / xp.expm1(2.0 * h)
