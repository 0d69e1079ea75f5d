"""Guidance by any loss of the x0 estimate, in the ways of LGD-MC, FreeDoM, UGD and TFG."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffast.guidance.gradients import Scale, loss, slope, value_and_slope
from diffast.guidance.guide import Guide, Point
from diffast.guidance.spread import Spread, check_spread, spread_at

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def lgd_mc(function: Loss, scale: Scale = 1.0, *, draws: int = 4, spread: Spread = 1.0) -> Guide:
    """Returns the term of a loss averaged over x0 given x: grad_x log mean_k exp(-loss(x0_k)).

    Song et al. 2023, "Loss-guided diffusion models for plug-and-play controllable generation"
    (ICML), eq. 8: x0_k = d + r z_k, d the x0 estimate, r as for `pigdm`. The gradient goes through
    the network. The normals z_k depend on seed, id and stage alone.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0; called once a draw.
        scale: s, or a function of the model time.
        draws: number of x0_k, 1 to 255.
        spread: see `pigdm`.

    Raises:
        ValueError: draws out of range, a spread that is not positive; at the first call, a loss of
            another shape than [B]; what `Guide` raises.
    """
    who = "guidance.lgd_mc"
    _check_count(who, "draws", draws, 255)
    check_spread(who, spread)

    def ascent(at: Point) -> torch.Tensor:
        deviation = spread_at(spread, at).sqrt()
        return at.pulled(_smoothed(who, function, at, _estimate(who, at), deviation, draws))

    return Guide(ascent, scale, "network", who)


def freedom(function: Loss, scale: Scale = 1.0) -> Guide:
    """Returns the term of FreeDoM: minus the gradient of a loss of the x0 estimate in x.

    Yu et al. 2023, "FreeDoM: training-free energy-guided conditional diffusion model"
    (arXiv:2303.09833), algorithm 1, where the next state has rho_t grad_x loss taken off. So the
    plan is `df.solvers.on_state(plan)`. Their time travel (algorithm 2) is a plan whose parts are
    run several times, with noise put back in between.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0.
        scale: the paper's rho_t: a number, or a function of the model time.

    Raises:
        ValueError: what `loss` raises.
    """
    made = loss(function, scale)
    return Guide(made.function, scale, "network", "guidance.freedom")


def descent(function: Loss, rate: Scale = 0.1, *, steps: int = 5) -> Guide:
    """Returns the term of several gradient steps on the x0 estimate: x0 <- x0 - rate grad loss.

    The backward guidance of Bansal et al. 2023, "Universal guidance for diffusion models"
    (arXiv:2302.07121), algorithm 1. The network is not differentiated.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0; called once a step.
        rate: of a gradient step: a number, or a function of the model time that returns it.
        steps: number of gradient steps.

    Raises:
        ValueError: steps below 1; at the first call, a loss of another shape than [B]; what `Guide`
            raises.
    """
    who = "guidance.descent"
    _check_count(who, "steps", steps)
    _check_finite(who, "rate", rate)

    def move(at: Point) -> torch.Tensor:
        start = _estimate(who, at)
        x0, size = start, _level(rate, at)
        for _ in range(steps):
            x0 = x0 + size * slope(who, lambda x0, t: -function(x0, t), x0, at.time)
        return x0 - start

    return Guide(move, 1.0, "x0", who)


def ugd(
    function: Loss, scale: Scale = 1.0, *, rate: Scale = 0.1, steps: int = 5
) -> tuple[Guide, Guide]:
    """Returns the two terms of universal guidance: guides=[*df.guidance.ugd(loss)].

    Bansal et al. 2023, "Universal guidance for diffusion models" (arXiv:2302.07121), algorithm 1:
    the gradient of the loss through the network ("forward"), and gradient steps on the x0 estimate
    ("backward"), both at the unguided estimate. Their recurrence is a plan whose steps are run
    several times, with noise put back in between.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0.
        scale: of the gradient through the network, as a score: a number, or a function of the
            model time. Their s(t) is scale sigma.
        rate: see `descent`.
        steps: see `descent`.

    Raises:
        ValueError: what `loss` and `descent` raise.
    """
    return loss(function, scale), descent(function, rate, steps=steps)


def tfg(
    function: Loss,
    rho: Scale = 1.0,
    mu: Scale = 1.0,
    *,
    iterations: int = 4,
    draws: int = 4,
    smoothing: float = 0.01,
) -> tuple[Guide, Guide]:
    """Returns the two terms of training-free guidance: guides=[*df.guidance.tfg(loss)].

    Ye et al. 2024, "TFG: unified training-free guidance for diffusion models" (arXiv:2409.15761),
    algorithm 1, with log f = -loss, smoothed by normals of deviation smoothing sigma:

        dx  = rho grad_x log mean_k f(x0(x) + smoothing sigma z_k)              "variance guidance"
        d0 <- d0 + mu grad_x0 log mean_k f(x0 + d0 + smoothing sigma z_k)       "mean guidance"

    with `iterations` of the second. The next state has dx / sqrt(a) + alpha' d0 added, where
    a = (alpha / alpha')^2 and alpha' is that of the next state: the plan is
    `df.solvers.on_state(plan, ["variance", "mean"])`. The recurrence is a plan whose steps are run
    several times. DPS, LGD-MC and FreeDoM are mu = 0, MPGD is rho = 0; a term of 0 is not computed.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0.
        rho: a number, or a function of the model time. The paper's best one grows with
            a = (alpha / alpha')^2.
        mu: likewise; the scale of every iteration.
        iterations: of mean guidance.
        draws: number of z_k, 1 to 255.
        smoothing: the paper's gamma; 0: no smoothing, one draw.

    Raises:
        ValueError: numbers out of range; at the first call, a loss of another shape than [B]; what
            `Guide` raises.
    """
    who = "guidance.tfg"
    _check_count(who, "iterations", iterations)
    _check_count(who, "draws", draws, 255)
    if not 0.0 <= smoothing < float("inf"):
        raise ValueError(f"{who}: smoothing is {smoothing}, but it must be 0 or more, and finite")
    _check_finite(who, "mu", mu)

    def smoothed(at: Point, x0: torch.Tensor) -> torch.Tensor:
        wide = smoothing * at.sigma if smoothing else None
        return _smoothed(who, function, at, x0, wide, draws)

    def variance(at: Point) -> torch.Tensor:
        return at.pulled(smoothed(at, _estimate(who, at)))

    def mean(at: Point) -> torch.Tensor:
        start = _estimate(who, at)
        x0, size = start, _level(mu, at)
        for _ in range(iterations):
            x0 = x0 + size * smoothed(at, x0)
        return x0 - start

    # a scale of 0 tells the run that nothing has to be computed
    switch = (lambda t: float(mu(t) != 0.0)) if callable(mu) else float(mu != 0.0)
    return Guide(variance, rho, "network", who), Guide(mean, switch, "x0", who)


def _smoothed(
    who: str,
    function: Loss,
    at: Point,
    x0: torch.Tensor,
    deviation: torch.Tensor | None,
    draws: int,
) -> torch.Tensor:
    """Returns grad log mean_k exp(-loss(x0 + deviation z_k)) in x0, [B, ...]; None: no z_k."""
    if deviation is None:
        return slope(who, lambda x0, t: -function(x0, t), x0, at.time)
    if at.normals is None:
        raise ValueError(
            f"{who}: the term draws noise, but this executor gives none to terms (a CUDA graph "
            "would repeat that of one seed): use df.sample without executor='graph', or a Stepper"
        )
    values, slopes = [], []
    for k in range(draws):
        place = x0 + deviation.to(x0.dtype) * at.normals(k).to(x0.dtype)
        value, made = value_and_slope(who, lambda x0, t: -function(x0, t), place, at.time)
        values.append(value)
        slopes.append(made)
    weights = torch.softmax(torch.stack(values), dim=0)  # [draws, B]
    shape = (draws, -1, *[1] * (x0.dim() - 1))
    return (weights.view(shape) * torch.stack(slopes)).sum(dim=0)


def _estimate(who: str, at: Point) -> torch.Tensor:
    if at.x0 is None:
        raise ValueError(f"{who}: the point has no x0 estimate")
    return at.x0


def _level(value: Scale, at: Point) -> float | torch.Tensor:
    """Returns a number, or a function's values at the times of a point, [B, 1, ...]."""
    if not callable(value):
        return float(value)
    found = [float(value(t)) for t in at.time.tolist()]
    return torch.tensor(found, dtype=at.x.dtype, device=at.x.device).view_as(at.alpha)


def _check_count(who: str, name: str, value: int, most: int | None = None) -> None:
    """Raises ValueError unless the value is a whole number from 1, up to `most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        upto = "" if most is None else f" to {most}"
        raise ValueError(f"{who}: {name} is {value!r}, but it must be a whole number from 1{upto}")


def _check_finite(who: str, name: str, value: Scale) -> None:
    if not callable(value) and not -float("inf") < value < float("inf"):
        raise ValueError(f"{who}: {name} is {value}, but it must be finite")
