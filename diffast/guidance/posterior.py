"""Guidance terms that take the spread of x0 given x into account: PiGDM, TMPD, MMPS.

With y = A x0 + noise and x0 given x about N(d, C), d the x0 estimate, the measurement's score is

    grad_x log p(y | x) = J^T A^T (A C A^T + noise^2)^-1 (y - A d),         J = dd/dx

The rules differ in what stands for C, whose exact value is (sigma^2 / alpha) J.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffast.guidance.gradients import Scale
from diffast.guidance.guide import Guide, Point
from diffast.guidance.measurement import Measurement, Operator, solve
from diffast.guidance.spread import Spread, check_spread, spread_at


def pigdm(
    operator: Operator,
    y: torch.Tensor,
    noise: float = 0.0,
    scale: Scale = 1.0,
    *,
    spread: Spread = 1.0,
) -> Guide:
    """Returns the term of pseudo-inverse guidance: C = r^2 in the measurement's score.

    Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems" (ICLR), eq. 7 and
    8. r^2 is that of data which are normal with deviation `spread`, in one sample as in all:

        r^2 = spread^2 sigma^2 / (spread^2 alpha^2 + sigma^2)

    With 1 it is the paper's choice, sigma^2 / (sigma^2 + 1) for x = x0 + sigma eps. The term is
    exact where the data are so. Their adaptive weight r_t^2 is a matter of `scale`.

    Args:
        operator: a linear operator; `prox` is used where it has one, else conjugate gradients.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        noise: standard deviation of the noise in y.
        scale: s, or a function of the model time.
        spread: deviation of the data; or a function (alpha, sigma) -> r^2, tensors [B, 1, ...].

    Raises:
        ValueError: an operator that cannot be called, y that is not finite, a noise that is
            negative, a spread that is not positive; at the first call, y that is not shaped as what
            the operator returns; what `Guide` raises.
    """
    whole = Measurement("guidance.pigdm", operator, y, noise)
    check_spread(whole.who, spread)

    def ascent(at: Point) -> torch.Tensor:
        here = whole.at(at)
        variance = spread_at(spread, at).to(here.x0.dtype)
        tiny = torch.finfo(variance.dtype).tiny  # at sigma = 0 nothing is left to be said
        weight = (
            variance.reshape(-1) / whole.noise**2
            if whole.noise
            else variance.new_full((len(variance),), torch.inf)
        )
        return at.pulled(here.shift(weight) / variance.clamp(min=tiny))

    return Guide(ascent, scale, "network", whole.who)


def tmpd(operator: Operator, y: torch.Tensor, noise: float = 0.0, scale: Scale = 1.0) -> Guide:
    """Returns the term of Tweedie moment projected diffusion: a diagonal in place of A C A^T.

    Boys et al. 2023, "Tweedie moment projected diffusions for inverse problems"
    (arXiv:2310.06721), eq. 14 and the row sums of section 4: the diagonal is A C A^T 1 with
    C = (sigma^2 / alpha) J, which costs one more backward pass. Exact where A C A^T is diagonal.

    Args:
        operator: see `pigdm`.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        noise: standard deviation of the noise in y. The sum of the noise and of the diagonal is
            divided by: without noise the row sums must be positive.
        scale: s, or a function of the model time.

    Raises:
        ValueError: what `pigdm` raises.
    """
    whole = Measurement("guidance.tmpd", operator, y, noise)

    def ascent(at: Point) -> torch.Tensor:
        here = whole.at(at)
        rows = here.forward(_covariance(at)(here.transpose(torch.ones_like(here.y))))
        total = rows + whole.noise**2
        # 0 where nothing is measured, as beside an inpainting mask, or where x says nothing of x0
        return at.pulled(here.transpose(torch.where(total == 0, 0.0, here.residual / total)))

    return Guide(ascent, scale, "network", whole.who)


def mmps(
    operator: Operator,
    y: torch.Tensor,
    noise: float = 0.0,
    scale: Scale = 1.0,
    *,
    iterations: int = 3,
) -> Guide:
    """Returns the term of moment matching posterior sampling: the exact C, by iterations.

    Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization"
    (arXiv:2405.13712), eq. 16 and algorithm 3: (A C A^T + noise^2) v = y - A d with
    C = (sigma^2 / alpha) J is solved by conjugate gradients, a backward pass of the network each.
    Exact for normal data, when there are enough iterations.

    Args:
        operator: see `pigdm`.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        noise: standard deviation of the noise in y.
        scale: s, or a function of the model time.
        iterations: of conjugate gradients, at most.

    Raises:
        ValueError: iterations below 1; what `pigdm` raises.
    """
    whole = Measurement("guidance.mmps", operator, y, noise)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"{whole.who}: iterations is {iterations!r}, but it must be 1 or more")

    def ascent(at: Point) -> torch.Tensor:
        here, covariance = whole.at(at), _covariance(at)

        def spread_and_noise(v: torch.Tensor) -> torch.Tensor:
            return here.forward(covariance(here.transpose(v))) + whole.noise**2 * v

        solved = solve(spread_and_noise, here.residual, iterations)
        return at.pulled(here.transpose(solved))

    return Guide(ascent, scale, "network", whole.who)


def _covariance(at: Point) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns u -> C u, C = (sigma^2 / alpha) J^T: J is symmetric where the network is exact."""
    # at alpha = 0 the state says nothing of x0, and J is 0
    factor = torch.where(at.alpha > 0, at.sigma.square() / at.alpha, 0.0)
    return lambda u: factor.to(u.dtype) * at.pulled(u)
