"""Methods that make a run agree with a measurement y = A x0 by projections, without gradients.

With P = A^+ A, the part of an image that the measurement sees,

    range_null     x0 <- x0 + A^+ (y - A x0)                             DDNM, on the estimate
    replacement    x  <- x + A^+ (alpha y - A x) + sigma P z             RePaint, ILVR, on the state

"Replacement" puts the measurement at the state's noise level in place of the state's own range
part, with fresh noise z at every network call.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffast.executors.results import Info
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import Z1, D, X, Y
from diffast.tasks.operator import Operator, check_same
from diffast.tasks.setup import Setup


def range_null(setup: Setup, operator: Operator, y: Tensor, noise: float = 0.0) -> Setup:
    """Returns a setup whose x0 estimates agree with the measurement; the null part is theirs.

    Wang et al. 2022 (DDNM, arXiv:2212.00490). With noise in y the correction is scaled by l, and
    the fresh noise of the plan reduced, so that the state's noise keeps its level. A stage is x' =
    k x + a x0 + s z. Where the estimate is right, the range part of the state's error is c e + w z,
    e the noise of A^+ y, of deviation r, and z white:

        c' = k c + a l,    w'^2 = k^2 w^2 + s^2,    (c' r)^2 + w'^2 = sigma'^2

    l is the largest number up to 1 that some s fulfils this with. (The paper, section 3.3, takes
    the state's error for independent of e, c = 0. The state's noise then exceeds its level: by 73 %
    in a run of 12 steps with noise 0.3.) r is one number for operators with A A^T = c I.

    Args:
        setup: what to change.
        operator: the measurement.
        y: what was measured, for each sample [B, ...] or for all [1, ...].
        noise: standard deviation of the noise in y.

    Raises:
        ValueError: noise that is negative; noise with a plan other than one call and one normal a
            step, or with an operator that amplifies noise unevenly.
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"range_null: noise is {noise}, but it must be 0 or more, and finite")
    if noise:
        return _noisy_range_null(setup, operator, y, noise)
    return setup.estimating(lambda x0, info: x0 + _correction(operator, x0, y))


def _correction(operator: Operator, x: Tensor, y: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Returns A^+ (alpha y - A x), after a check that y is a measurement of such images."""
    seen = operator(x)
    y = y.to(seen.dtype)
    if y.shape[0] not in (1, seen.shape[0]) and seen.shape[0] % y.shape[0] == 0:
        y = y.repeat(seen.shape[0] // y.shape[0], 1, 1, 1)  # the branches of guidance
    check_same(operator.name, x, y, seen.shape)
    return operator.pseudo_inverse(alpha * y - seen)


def _noisy_range_null(setup: Setup, operator: Operator, y: Tensor, noise: float) -> Setup:
    plan, gain = setup.plan, operator.inverse_gain
    if gain is None:
        raise ValueError(
            f"range_null: noise is {noise:g}, but {operator.name} amplifies it unevenly: take a "
            "method with a proximal step"
        )
    check_plain_start("range_null", plan, "take a plan that starts from noise")
    fresh, a = plan.weights(X, Z1), plan.weights(X, D)
    keep = plan.weights(X, X) + plan.weights(X, Y)
    others = [c for c in plan.columns if c not in (X, Y, D, Z1) and plan.weights(X, c).any()]
    if not fresh.any() or others or len(plan.calls) != plan.stages:
        raise ValueError(
            f"range_null: noise is {noise:g}, but plan {plan.name} is not one call and one normal "
            "a step, which the noise of the measurement could take the place of: take "
            "df.solvers.ddim(schedule, grid, eta=1)"
        )
    share, less = _shares(keep, a, fresh, plan.initial_scale, noise * gain)
    weights = {(row, Z1): less for row in plan.rows if row in (X, Y)}
    changed = plan.with_weights(weights, check="x0", name=f"{plan.name}, noise {noise:g}")

    def project(x0: Tensor, info: Info) -> Tensor:
        return x0 + float(share[int(info.stage)]) * _correction(operator, x0, y)

    return setup.estimating(project, plan=changed)


def _shares(keep, a, fresh, white, noise) -> tuple[np.ndarray, np.ndarray]:
    """Returns l and s of each stage, see `range_null`; `white` is the initial state's w."""
    share, less = np.zeros(len(keep)), np.zeros(len(keep))
    coupled = 0.0
    for i, (k, weight, s) in enumerate(zip(keep, a, fresh, strict=True)):
        level = k**2 * ((coupled * noise) ** 2 + white**2) + s**2
        white = k * white
        most = np.sqrt(max(level - white**2, 0.0)) / noise
        share[i] = min(1.0, (most - k * coupled) / weight) if weight > 0 else 0.0
        coupled = k * coupled + weight * share[i]
        less[i] = np.sqrt(max(level - white**2 - (coupled * noise) ** 2, 0.0))
        white = np.hypot(white, less[i])
    return share, less


def replacement(setup: Setup, operator: Operator, y: Tensor, until: float = 0.0) -> Setup:
    """Returns a setup whose network sees the measurement in place of the state's range part.

    At every network call the part P x is drawn anew, given y, at the call's noise level. The last
    estimate is projected, so that the sample agrees with y where a plan ends with it, as solvers do
    that end at sigma = 0. Learned plans may end with a mixture of estimates.

        inpainting(mask)             Song et al. 2021 (arXiv:2011.13456, appendix I.2); RePaint
                                     (Lugmayr et al. 2022, arXiv:2201.09865) on a plan of
                                     `resampled`
        super_resolution(factor)     ILVR (Choi et al. 2021, arXiv:2108.02938), with block means

    It replaces what the network is called on, not the state itself. For solvers with one network
    call a step this is the same method: the state's own range part is read by nothing else. For
    solvers with several calls a step every call sees a replaced state.

    Args:
        setup: what to change.
        operator: the measurement; without noise.
        y: what was measured, for each sample [B, ...] or for all [1, ...].
        until: sigma/alpha below which nothing is replaced any more, and the sample is not
            projected; 0: up to the end. ILVR calls it the range of conditioning.

    Raises:
        ValueError: a bound that is negative or infinite.
    """
    if not 0 <= until < math.inf:
        raise ValueError(f"replacement: until is {until}, but it must be 0 or more, and finite")

    def replace(x: Tensor, alpha: Tensor, sigma: Tensor, normals: Tensor) -> Tensor:
        made = x + _correction(operator, x, y, alpha) + sigma * operator.project(normals)
        return torch.where(sigma >= until * alpha, made, x) if until else made

    last = len(setup.plan.calls) - 1

    def project(x0: Tensor, info: Info) -> Tensor:
        at_end = bool((torch.as_tensor(info.stage) == last).all())
        return x0 + _correction(operator, x0, y) if at_end else x0

    changed = setup if until else setup.estimating(project)
    return type(setup)(
        changed.denoiser,
        changed.plan,
        changed.on_estimate,
        (*changed.on_input, replace),
        changed.clamp,
    )
