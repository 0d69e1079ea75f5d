"""`nonconservativity`: how far a network's x0 estimate is from a gradient field."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffast import ops
from diffast.model.denoiser import Denoiser
from diffast.thermo.estimate import Estimate
from diffast.thermo.products import Products


class Nonconservativity(Estimate):
    """An `Estimate` of the share, and how it was measured.

    Attributes:
        method: how products with the Jacobian were made: "jvp", "double backward" or "difference";
            "pairs of differences" where the network has no gradient either.
        rows: rows of network calls, a derivative counted as three (see `df.thermo.Products`).
    """

    method: str
    rows: int


def nonconservativity(
    denoiser: Denoiser,
    x: torch.Tensor,
    t: float,
    probes: int = 1,
    seed: int = 0,
    method: str = "auto",
) -> Nonconservativity:
    """Returns |antisymmetric part of J|^2 / |J|^2 (Frobenius), J = dD/dx, as an estimate in [0, 1].

    The exact x0 estimate D(x) = E[y | x] has J = alpha Cov[y | x] / sigma^2, which is symmetric:
    D is then x plus a gradient, and the sampler's velocity has no rotating part that moves nothing.
    0 is a gradient field, 1/2 a Jacobian without structure, 1 a pure rotation. It is a diagnosis of
    the network: the entropy that the rotation produces is not it (`df.thermo.linear_field`).

    With signs z, E|J z|^2 = E|J^T z|^2 = |J|^2 (Hutchinson), so that the share is the ratio of the
    sums of |J z - J^T z|^2 and of 2 (|J z|^2 + |J^T z|^2) over rows and probes. For a network
    without a gradient J z is a central difference, and the share is the ratio of means of
    (z'.J z - z.J z')^2 over pairs of probes and 4 |J z|^2: that needs two probes, and many for a
    small error. Then the value is not bound to [0, 1] by itself, and is cut to it.

    Network calls: 6 a row and probe, 2 more for the check of the derivative; 2 a row and probe
    without a gradient.

    Args:
        denoiser: the network; any schedule, prediction and guidance, conditions by rows.
        x: states [B, ...] at the time t, as a sampler meets them: alpha y + sigma eps.
        t: model time.
        probes: vectors of random signs for each row.
        seed: of the probes.
        method: "auto", "jvp" or "difference": see `df.thermo.Products`. "difference" asks for
            nothing but network calls.

    Returns:
        The share, its standard error over rows (over probes for one row; NaN from one number), and
        the count of these.

    Raises:
        ValueError: fewer probes than needed, an unknown method, a product that is not finite, a
            Jacobian that is 0, a time without noise; "jvp" for a network without derivatives.
    """
    who = "nonconservativity"
    if x.dim() < 1 or not len(x):
        raise ValueError(f"{who}: x is {list(x.shape)}, but it must be [B, ...] with B >= 1")
    if probes < 1:
        raise ValueError(f"{who}: probes is {probes}, but at least 1 is needed")
    products = Products(who, denoiser, method)
    vectors = [signs(x, seed, k) for k in range(probes)]
    ahead = products.forward(x, vectors[0], t)  # settles how products are made
    back = products.reverse(x, vectors[0], t)
    if back is None:
        over, under = _from_pairs(products, x, vectors, ahead, t, who)
        return _share(over, under, who, "pairs of differences", products.rows)
    over, under = [], []
    for k, z in enumerate(vectors):
        if k:
            ahead, back = products.forward(x, z, t), products.reverse(x, z, t)
        assert back is not None
        a, b = ahead.double().flatten(1), back.double().flatten(1)
        over.append((a - b).square().sum(1))
        under.append(2.0 * (a.square().sum(1) + b.square().sum(1)))
    return _share(torch.stack(over), torch.stack(under), who, products.method, products.rows)


def signs(x: torch.Tensor, seed: int, which: int) -> torch.Tensor:
    """Returns random signs shaped as x, a number of (seed, row, which) alone."""
    ids = torch.arange(len(x), device=x.device)
    made = ops.normal(x.shape, seed=seed, stage=which, ids=ids, dtype=torch.float32)
    return torch.where(made < 0, -1.0, 1.0).to(x.dtype)


def _from_pairs(
    products: Products,
    x: torch.Tensor,
    vectors: list[torch.Tensor],
    first: torch.Tensor,
    t: float,
    who: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (squares [pairs, B], 4 |J z|^2 [probes, B]) from products J z alone."""
    if len(vectors) < 2:
        why = products.why or "method is 'difference'"
        raise ValueError(
            f"{who}: probes is 1, but without a gradient of the network ({why}) pairs of probes "
            "are compared: give at least 2, better 16"
        )
    flat = [z.double().flatten(1) for z in vectors]
    moved = [first, *(products.forward(x, z, t) for z in vectors[1:])]
    moved = [m.double().flatten(1) for m in moved]
    over = [
        ((flat[i] * moved[j]).sum(1) - (flat[j] * moved[i]).sum(1)).square()
        for i in range(len(flat))
        for j in range(i)
    ]
    return torch.stack(over), torch.stack([4.0 * m.square().sum(1) for m in moved])


def _share(
    over: torch.Tensor, under: torch.Tensor, who: str, method: str, rows: int
) -> Nonconservativity:
    """Returns the ratio of means with its error: over rows, or over probes for one row."""
    if over.shape[1] > 1:
        a, b = over.mean(0).cpu().numpy(), under.mean(0).cpu().numpy()
    elif len(over) == len(under):
        a, b = over[:, 0].cpu().numpy(), under[:, 0].cpu().numpy()
    else:  # pairs share their probes: taken as independent, which few of them are nearly
        a, b = over[:, 0].cpu().numpy(), np.full(len(over), float(under.mean()))
    whole = float(b.mean())
    if not whole > 0.0:
        raise ValueError(f"{who}: the Jacobian is 0: the x0 estimate does not depend on the state")
    value, count = float(a.mean()) / whole, len(a)
    error = math.nan
    if count > 1:  # of a ratio of means, to first order
        error = float(np.std(a - value * b, ddof=1)) / math.sqrt(count) / whole
    made = Nonconservativity(min(max(value, 0.0), 1.0), error, count)
    made.method, made.rows = method, rows
    return made
