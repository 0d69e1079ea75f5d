"""`audit_marginals`: a sampler's drift and temperature from snapshots alone.

In w = x / sigma and lam = log(alpha / sigma) the reverse process is

    dw = f dlam + sqrt(2) eta dB,      f = ((1 + eta^2) alpha D - eta^2 x) / sigma

on every schedule: its temperature is eta^2. The equations of `fit_jko` with -f as the one feature
have two unknowns: the drift and the temperature over the designed ones. f need not be a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.thermo.jko.density import Density, matching
from diffast.thermo.jko.equations import Model, equations, solve, summed
from diffast.thermo.jko.fit import jackknife
from diffast.thermo.jko.potentials import Features, divergence_of
from diffast.thermo.jko.report import Audit
from diffast.thermo.jko.snapshots import snapshots_of
from diffast.thermo.jko.states import check_states, is_step, states_of
from diffast.thermo.jko.transitions import Measured

_WHO = "audit_marginals"

# Above this the density estimates of a few thousand samples say nothing.
MOST_ELEMENTS = 4

# Above this the drift and grad log rho of one interval are too alike for the error to be trusted.
MOST_CONDITION = 100.0


def audit_marginals(
    denoiser: Denoiser,
    plan: Plan | None = None,
    shape: Sequence[int] | None = None,
    *,
    x: torch.Tensor | None = None,
    seed: int = 0,
    batches: Sequence[torch.Tensor] | None = None,
    times: Sequence[float] | None = None,
    eta: float = 1.0,
    density: Density = "auto",
    coupling: str = "auto",
    groups: int = 10,
    level: float = 0.01,
) -> Audit:
    """Returns drift and temperature of a sampler from its batches as sets, whoever is who in them.

    `audit` is stronger by far where the same particles were stored. This one needs no pairs: the
    batches may come from different runs and have different counts. It sees the velocity with which
    the density moves, v = f - beta grad log rho, and nothing else. Where the data are one Gaussian
    at some levels, f and grad log rho point the same way, and only their sum is known there: single
    intervals are then refused a number (NaN), and the numbers over all intervals have to be read.

    The allowance of the temperature is the noise that a step of first order leaves out: by that
    much the sets of a sound sampler differ from those of the exact process. It falls with the step.
    The allowance of the drift is what the fit's trapezoid makes of a step at low noise, where x
    stands still and x / sigma grows as sigma falls: 1 - tanh(h / 2) / (h / 2) for a step of h in
    log-SNR, which is 0.04 where sigma is halved.

    Drift is here that of x / sigma, which holds the shrinking of the noise beside the score.

    Args:
        denoiser: as for `audit`.
        plan: as for `audit`.
        shape: as for `audit`.
        x: as for `audit`.
        seed: as for `audit`.
        batches: K+1 states [n, ...] of at most 4 elements; counts may differ.
        times: as for `audit`.
        eta: as for `audit`.
        density: as for `fit_jko`.
        coupling: as for `fit_jko`; "given" for the same particles.
        groups: as for `fit_jko`, 2 or more.
        level: as for `audit`.

    Raises:
        TypeError: as `audit`.
        ValueError: as `audit`; more than 4 elements; what `fit_jko` raises.
        ImportError: more than one element without scipy.
    """
    run = states_of(_WHO, denoiser, plan, shape, x, seed, batches, times, eta)
    check_states(_WHO, run.states, same=False)
    elements = run.states[0][0].numel()
    if elements > MOST_ELEMENTS:
        raise ValueError(
            f"{_WHO}: states of {elements} elements, but a density is estimated in at most "
            f"{MOST_ELEMENTS}: audit takes directions, for the same particles"
        )
    kept = [
        k
        for k, level_k in enumerate(run.levels)
        if level_k[0] > 0 and level_k[1] > 0 and (k == 0 or is_step(run.levels[k - 1], level_k))
    ]
    if len(kept) < 2:
        raise ValueError(f"{_WHO}: no step with noise at both ends, and less of it at the second")
    lam = [float(np.log(run.levels[k][0] / run.levels[k][1])) for k in kept]
    scaled = [run.states[k].detach().double().cpu() / run.levels[k][1] for k in kept]
    drift = _Drift(
        denoiser,
        {t: (run.levels[k], float(run.times[k])) for t, k in zip(lam, kept, strict=True)},
        tuple(run.states[0].shape[1:]),
        eta,
    )

    given = snapshots_of(_WHO, scaled, lam, None)
    if not 2 <= groups <= given.count // 2:
        raise ValueError(
            f"{_WHO}: groups = {groups}, but it must lie between 2 and {given.count // 2}, half of "
            "the samples"
        )
    if isinstance(density, str) and density == "auto":
        density = matching(given.count * (groups - 1) // groups, elements, 4)
    model = Model(drift, None, (lambda t: eta**2,))
    options = coupling, "trapezoid", "weak", density
    found = equations(model, given, *options)
    fewer = [equations(model, given.without(g, groups), *options) for g in range(groups)]
    at = [float(run.times[k]) for k in kept]
    # The variance of x0 given x, in units of the noise: alpha times the divergence of the estimate.
    left = [
        (eta**2 - drift.laplacian(x, t).mean() / elements) / (1.0 + eta**2)
        for x, t in zip(given.samples, lam, strict=True)
    ]
    h = np.diff(lam)
    missing = 2.0 * h * np.abs(0.5 * (np.array(left[:-1]) + left[1:]))
    bent = 1.0 - np.tanh(h / 2.0) / (h / 2.0)
    drifts = np.array([one.gram[0, 0] for one in found])

    def measured(part: slice, times: tuple[float, float]) -> Measured:
        theta, condition = solve(summed(found[part]), model.names(elements), None, 0.0)
        each = [solve(summed(one[part]), model.names(elements), None, 0.0)[0] for one in fewer]
        value, error = np.full(3, np.nan), np.full(3, np.nan)
        if condition <= MOST_CONDITION:
            value[:2], error[:2] = theta, np.sqrt(np.diag(jackknife(each)))
        allowance = np.zeros(3)
        allowance[0] = np.average(bent[part], weights=drifts[part])
        allowance[1] = np.average(missing[part], weights=h[part])
        return Measured(value, error, error, allowance, times)

    steps = [measured(slice(k, k + 1), (at[k], at[k + 1])) for k in range(len(at) - 1)]
    whole = measured(slice(None), (at[0], at[-1]))
    return Audit(tuple(steps), whole, given.count, elements, level, groups - 1)


class _Drift(Features):
    """-f of x / sigma as a feature; what the network said of a point is kept."""

    def __init__(self, denoiser, at, shape, eta):
        self.denoiser, self.at, self.shape, self.eta = denoiser, at, shape, eta
        self.known: dict[tuple[float, bytes], tuple[np.ndarray, np.ndarray]] = {}

    def names(self, d: int) -> tuple[str, ...]:
        """Returns its name."""
        return ("drift",)

    def gradient(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns -f at points of the snapshots."""
        return np.stack([found[0] for found in self._look_up(x, t)])

    def laplacian(self, x: np.ndarray, t: float) -> np.ndarray:
        """Returns the divergence of -f there."""
        return np.stack([found[1] for found in self._look_up(x, t)])

    def _look_up(self, x, t):
        keys = [(t, row.tobytes()) for row in x]
        if not all(key in self.known for key in keys):
            made = self._made(x, t)
            spread = divergence_of(lambda points: self._made(points, t), x)
            self.known |= dict(zip(keys, zip(made, spread, strict=True), strict=True))
        return [self.known[key] for key in keys]

    def _made(self, w, t):
        (alpha, sigma), time = self.at[t]
        state = torch.as_tensor(w * sigma).reshape(-1, *self.shape)
        with torch.no_grad():
            x0 = self.denoiser.x0(state, time).double().reshape(len(w), -1).numpy()
        if not np.isfinite(x0).all():
            raise FloatingPointError(f"{_WHO}: the x0 estimates at t = {time:g} are not finite")
        share = self.eta**2
        return (share * w - (1.0 + share) * alpha / sigma * x0)[:, :, None]
