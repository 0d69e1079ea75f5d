"""Guidance terms of a measurement by its distance to the x0 estimate: DPS, MCG, MPGD, DiffPIR."""

from __future__ import annotations

import torch

from diffast.guidance.gradients import Scale, slope
from diffast.guidance.guide import Guide, Point
from diffast.guidance.measurement import Measurement, Operator


def dps(operator: Operator, y: torch.Tensor, scale: Scale = 1.0) -> Guide:
    """Returns the term of diffusion posterior sampling: -grad_x |y - A(x0(x))|.

    Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems"
    (arXiv:2209.14687), algorithm 1, where the state of the next step has zeta_i
    grad |y - A(x0)|^2 taken off, zeta_i = zeta / |y - A(x0)|. That is 2 zeta grad |y - A(x0)|, and
    `scale` is 2 zeta.

    The published step is on the state: `df.solvers.on_state(plan)` is a plan that takes it so. With
    any other plan the term is a score, and its weight in the x0 estimate is scale sigma^2 / alpha.

    Args:
        operator: x0 [B, ...] -> what is measured [B, ...]: a function, linear or not, or an
            operator of `df.tasks`.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        scale: a number, or a function of the model time.

    Raises:
        ValueError: an operator that cannot be called, or y that is not finite; at the first call,
            y that is not shaped as what the operator returns; what `Guide` raises.
    """
    whole = Measurement("guidance.dps", operator, y)

    def descent(at: Point) -> torch.Tensor:
        here = whole.at(at)
        axes = tuple(range(1, here.residual.dim()))
        size = here.residual.square().sum(dim=axes, keepdim=True).sqrt()
        # at a distance of 0 there is no direction, and nothing left to gain
        unit = torch.where(size == 0, 0.0, here.residual / size)
        return at.pulled(here.transpose(unit))

    return Guide(descent, scale, "network", whole.who)


def mcg(operator: Operator, y: torch.Tensor, scale: Scale = 1.0) -> Guide:
    """Returns the term of the manifold constrained gradient: -grad_x |W (y - A(x0(x)))|^2.

    Chung et al. 2022, "Improving diffusion models for inverse problems using manifold constraints"
    (arXiv:2206.00941), eq. 14: W is the operator's pseudo-inverse, 1 for inpainting. The method
    also replaces what the measurement sees of the state after every step: a projection.

    The published step is on the state: `df.solvers.on_state(plan)`.

    Args:
        operator: see `dps`. W is 1 where it has no `pseudo_inverse`.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        scale: the paper's alpha: a number, or a function of the model time.

    Raises:
        ValueError: what `dps` raises.
    """
    whole = Measurement("guidance.mcg", operator, y)
    weigh = getattr(operator, "pseudo_inverse", lambda residual: residual)

    def descent(at: Point) -> torch.Tensor:
        here = whole.at(at)

        def log_density(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return -weigh(here.y - whole.forward(x0)).square().flatten(1).sum(1)

        return at.pulled(slope(whole.who, log_density, here.x0, at.time))

    return Guide(descent, scale, "network", whole.who)


def mpgd(operator: Operator, y: torch.Tensor, scale: Scale = 1.0) -> Guide:
    """Returns the term of manifold preserving guidance: x0 + scale A^T (y - A(x0)).

    He et al. 2024, "Manifold preserving guided diffusion" (arXiv:2311.16424), algorithm 1 without
    autoencoder, with the loss |y - A(x0)|^2 / 2. The network is not differentiated. For another
    loss: `loss(function, through="x0")`.

    Args:
        operator: see `dps`.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        scale: the paper's c_t: a number, or a function of the model time. Up to 1 / |A|^2 the
            distance falls.

    Raises:
        ValueError: what `dps` raises.
    """
    whole = Measurement("guidance.mpgd", operator, y)

    def descent(at: Point) -> torch.Tensor:
        here = whole.at(at)
        return here.transpose(here.residual)

    return Guide(descent, scale, "x0", whole.who)


def diffpir(
    operator: Operator, y: torch.Tensor, noise: float = 0.0, *, strength: float = 7.0
) -> Guide:
    """Returns the proximal step of DiffPIR: x0 <- argmin_z |y - A z|^2 + rho |z - x0|^2.

    Zhu et al. 2023, "Denoising diffusion models for plug-and-play image restoration"
    (arXiv:2305.08995), eq. 13: rho = strength noise^2 / (sigma/alpha)^2. Without noise x0 becomes
    the nearest data that agree with y. The published step then puts the share zeta of fresh noise
    into the state: `df.solvers.renoised(schedule, grid, zeta)`.

    Args:
        operator: a linear operator; `prox` is used where it has one, else conjugate gradients.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        noise: standard deviation of the noise in y.
        strength: the paper's lambda, of the order of 1 to 25.

    Raises:
        ValueError: a strength that is not positive; what `dps` raises.
    """
    whole = Measurement("guidance.diffpir", operator, y, noise)
    if not 0.0 < strength < float("inf"):
        raise ValueError(f"{whole.who}: strength is {strength}, but it must be finite and above 0")

    def move(at: Point) -> torch.Tensor:
        here = whole.at(at)
        # 1 / rho, at alpha = 0 infinite
        weight = (at.sigma / at.alpha).square().reshape(-1) / (strength * whole.noise**2)
        return here.shift(torch.where(weight.isnan(), 0.0, weight).to(here.x0.dtype))

    return Guide(move, 1.0, "x0", whole.who)
