"""`fluctuation_test`: whether stored trajectories are those of the SDE that their author means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffast.thermo.estimate import Estimate, mean_of
from diffast.thermo.fluctuation.densities import of_ends
from diffast.thermo.fluctuation.slips import (
    SURE,
    drift_slips,
    noise_slip,
    turned_slip,
    work_slip,
)
from diffast.thermo.fluctuation.sums import FORMS, fitted_factors, noise_beside, sums_of
from diffast.thermo.fluctuation.tail import HEAVY, tail_shape
from diffast.thermo.fluctuation.trajectories import Drift, Trajectories

# Below this effective number of paths the mean of exp(-dS) says nothing.
FEW = 30.0

# A mean below 1 may lack paths that are too rare to be among them, and its standard error with it.
# Over 360 runs of sound samplers with 600 and 2,000 paths, means that were 5 errors below 1 had
# tails of shape 0.33 and more; below this shape there was none.
SHORT = 0.3

CONSISTENT, NOT, UNCLEAR = "consistent", "not consistent", "cannot tell"


@dataclass(frozen=True, eq=False)
class FluctuationTest:
    """What a fluctuation test found.

    Attributes:
        verdict: "consistent", "not consistent" or "cannot tell".
        why: the verdict's reason in a sentence.
        slips: what is wrong, in words; empty where nothing is found.
        identity: <exp(-dS)>, which is 1 for the dynamics that were given.
        entropy: <dS>, the total entropy production in nats; it cannot be negative.
        ess: effective number of paths behind `identity`, (sum w)^2 / sum w^2 with w = exp(-dS).
        tail: shape k of the tail of the weights exp(-dS), see `tail_shape`: above 0.7 the mean is
            not to be trusted, nor its standard error.
        noise: variance of the fresh noise over the believed one, 1 if it is right.
        factors: fitted factor of each part of the drift, 1 if it is right; `count` is that of the
            paths. Of a plan "mean", of Gaussian steps "step".
        form: which entropy was summed: "euler", "stratonovich", "work", "steps" or "plan".
        exact: whether <exp(-dS)> = 1 holds exactly for steps of any size.
        values: [B] float64, dS of each path, for histograms.
    """

    verdict: str
    why: str
    slips: tuple[str, ...]
    identity: Estimate
    entropy: Estimate
    ess: float
    tail: float
    noise: Estimate
    factors: Mapping[str, Estimate]
    form: str
    exact: bool
    values: torch.Tensor

    def __str__(self) -> str:
        """Returns the verdict, the numbers and the slips."""
        form = f"{self.form}, {'exact at any step size' if self.exact else 'up to step errors'}"
        lines = [
            f"{self.verdict}: {self.why}",
            f"<exp(-dS)> {self.identity}, <dS> {self.entropy} nats, {self.identity.count} paths of "
            f"which {self.ess:.3g} count ({form})",
            *(f"- {slip}" for slip in self.slips),
        ]
        return "\n".join(lines)


def fluctuation_test(
    x: Any,
    times: Any,
    drift: Drift | Mapping[str, Drift],
    temperature: float | Callable[[float], float],
    log_start: Any,
    log_end: Any,
    *,
    form: str = "euler",
    work: Any = None,
) -> FluctuationTest:
    """Returns whether trajectories are those of the SDE dx = f ds + sqrt(2 T) dB.

    The total entropy production of a path, dS = int f o dx / T + log p_first(x_first) -
    log p_last(x_last), obeys <exp(-dS)> = 1 over paths (Seifert 2005; Yu and Huang 2025 for
    diffusion models). The mean is another number where the code draws other noise, takes another
    drift, runs in the other direction, or starts at another law than p_first. p_last may be any
    normalised density: the theorem holds for all of them, so the test does not say that the paths
    end there; <dS> grows by their distance from it. The variance explodes for <dS> well above 1,
    and the verdict is then left to what the steps say by themselves.

    Args:
        x: states [K+1, B, ...] of B paths, or a list of K+1 tensors [B, ...], as they were run.
        times: [K+1] model times in the order of the run, rising or falling.
        drift: f(x, t) [B, ...], the drift for the time that has passed, |dt|, in the direction of
            the run; or a mapping of names to parts of it, each of which is then fitted. See
            `noising_dynamics` and `sampling_dynamics`.
        temperature: T(t) > 0, a number for each time; the fresh noise of a step is sqrt(2 T |dt|).
        log_start: log-density of the first states: numbers [B], a function of x, or a
            `GaussianMixture` at the level (1, 0).
        log_end: likewise of the last states.
        form: "euler" for Euler-Maruyama steps, x + f |dt| + sqrt(2 T |dt|) z with f and T at the
            step's start: the sum is the log-ratio of the steps' own densities, and the identity is
            exact for steps of any size. "stratonovich" for steps of any other method: the midpoint
            sum of f o dx / T, right up to the steps' own error.
        work: [B], the author's own sums of f o dx / T, which then take the place of ours: to test
            code that computes entropy or likelihood weights.

    Raises:
        ValueError: shapes that disagree; states, drifts or densities that are not finite; times out
            of order; a temperature that is not one positive number for each time; ends without a
            density; fewer than 2 paths.
    """
    who = "fluctuation_test"
    if form not in FORMS:
        raise ValueError(f"{who}: form = {form!r}, but it must be one of {', '.join(FORMS)}")
    paths = Trajectories(who, x, times, drift, temperature)
    first = of_ends(who, log_start, paths.x[0], "start").cpu()
    last = of_ends(who, log_end, paths.x[-1], "end").cpu()
    sums = sums_of(paths, form)
    exact = form == "euler" and work is None
    flow, slips = sums.flow, []
    if work is not None:
        flow = torch.as_tensor(work).detach().double().cpu()
        if flow.shape != first.shape or not bool(flow.isfinite().all()):
            raise ValueError(
                f"{who}: work is {list(flow.shape)} with {int((~flow.isfinite()).sum())} values "
                f"that are not finite, but one finite number for each of {paths.count} paths is "
                "needed"
            )
        slips.append(work_slip(flow, sums))
    fitted, errors = fitted_factors(sums)
    own, turned = form == "euler", turned_slip(sums)
    wrong = [] if turned else drift_slips(list(paths.parts), fitted, errors, own)
    # What a wrong drift leaves in the increments is not noise.
    used = fitted if wrong else np.ones_like(fitted)
    noise = mean_of(noise_beside(sums, used, paths.steps * paths.d))
    slips += [turned, *wrong, noise_slip(noise, own and not turned)]
    found = zip(paths.parts, fitted.tolist(), errors.tolist(), strict=True)
    factors = {name: Estimate(factor, error, paths.count) for name, factor, error in found}
    said = [slip for slip in slips if slip]
    form = form if work is None else "work"
    return judged(flow + first - last, said, noise, factors, form, exact)


def judged(
    values: torch.Tensor,
    slips: list[str],
    noise: Estimate,
    factors: Mapping[str, Estimate],
    form: str,
    exact: bool,
) -> FluctuationTest:
    """Returns the verdict on entropies [B] and what the steps say."""
    count = len(values)
    shift = float((-values).max())
    weights = (-values - shift).exp()
    ess = float(weights.sum().square() / weights.square().sum())
    scaled = mean_of(weights)
    size = math.exp(min(shift, 700.0))
    identity = Estimate(scaled.value * size, scaled.error * size, count)
    entropy = mean_of(values)
    tail = tail_shape(-values)
    verdict, why = _verdict(identity, entropy, ess, tail, slips, form)
    return FluctuationTest(
        *(verdict, why, tuple(slips), identity, entropy, ess, tail),
        *(noise, factors, form, exact, values),
    )


def _verdict(identity: Estimate, entropy: Estimate, ess: float, tail: float, slips, form):
    if slips:
        return NOT, "the steps are not those of the given dynamics"
    if entropy.value < -SURE * entropy.error:
        return NOT, f"<dS> = {entropy} is negative, which no dynamics with these densities has"
    few = None
    if ess < FEW:
        few = f"{ess:.3g} of {entropy.count} paths count"
    elif entropy.value > math.log(entropy.count) - 1.0:
        few = f"<dS> = {entropy.value:.3g} nats, and {entropy.count} paths are fewer than its exp"
    elif tail > HEAVY:
        few = f"the largest weights have a Pareto tail of shape {tail:.2g}, above {HEAVY:g}"
    if few:
        return UNCLEAR, (
            f"<exp(-dS)> is the mean of rare paths ({few}): take more paths, fewer dimensions, a "
            "shorter run or the other direction; the steps show nothing wrong"
        )
    apart = abs(identity.value - 1.0)
    if apart > SURE * identity.error and identity.value < 1.0 and tail > SHORT:
        return UNCLEAR, (
            f"<exp(-dS)> = {identity} is below 1, but the largest weights have a Pareto tail of "
            f"shape {tail:.2g}, above {SHORT:g}: paths that are too rare to be among "
            f"{identity.count} may hold the rest; take more paths; the steps show nothing wrong"
        )
    if apart > SURE * identity.error:
        other = "the given work is not int f o dx / T, " if form == "work" else ""
        return NOT, (
            f"<exp(-dS)> = {identity} is not 1, though the steps' noise and drift are as given: "
            f"{other}the first states are not of the given density, or the drift differs where few "
            "paths go"
        )
    return CONSISTENT, (
        f"<exp(-dS)> is 1 within its error, and the steps have the given drift and noise "
        f"({identity.count} paths)"
    )
