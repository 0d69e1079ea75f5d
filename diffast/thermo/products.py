"""Products with the Jacobian of a network's x0 estimate: forward, reverse, or by differences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffast.model import network_errors
from diffast.model.denoiser import Denoiser

FORWARD, TWICE, DIFFERENCE = "jvp", "double backward", "difference"
METHODS = ("auto", "jvp", "difference")

# The share by which a derivative may differ from a central difference before it is distrusted: a
# network that detaches its input gives a derivative in silence, and a wrong one.
_DISTRUST = 0.1

# What a product costs, in network calls: about what was measured on a U-Net on a CPU.
_COSTS = {FORWARD: 3, TWICE: 6, DIFFERENCE: 2}
_REVERSE_COST = 3


class Products:
    """J z and J^T z of one denoiser, J = dD/dx, D the guided x0 estimate at one model time.

    J z is made by forward-mode differentiation where the network's operations have it, else by
    differentiating the reverse mode once more, else by central differences. The first product
    is made in two ways: a derivative that is more than a tenth away from the difference is not
    used, as from a network that detaches its input. Guidance terms, and rules that reduce their
    outputs, hold no derivative: they are differenced.

    Args:
        who: the public function, which messages begin with.
        denoiser: the network, with its conditions and its guidance.
        method: "auto"; "jvp": a derivative, or an error; "difference".

    Attributes:
        asked: the method that was asked for.
        method: how J z is made: "jvp", "double backward" or "difference"; "auto" before the first.
        why: why "auto" did not take a derivative; empty where it did.
        rows: rows of network calls so far. A product counts as the calls that it costs: 3 a row
            for "jvp" and for J^T z, 6 for "double backward", 2 for "difference".

    Raises:
        ValueError: an unknown method; "jvp" for a denoiser whose estimate holds no derivative.
    """

    def __init__(self, who: str, denoiser: Denoiser, method: str = "auto"):
        """Calls nothing."""
        if method not in METHODS:
            raise ValueError(f"{who}: method is {method!r}, but it must be one of {METHODS}")
        self.who, self.denoiser, self.method, self.why, self.rows = who, denoiser, method, "", 0
        self.asked = method
        opaque = _opaque(denoiser)
        if opaque and method == "jvp":
            raise ValueError(f"{who}: method is 'jvp', but {opaque}: take 'difference'")
        if opaque:
            self.method, self.why = DIFFERENCE, opaque
        self._reverse: bool | None = False if opaque or method == "difference" else None

    def estimate(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns D(x) [B, ...] without a graph.

        Raises:
            ValueError: an estimate that is not finite.
        """
        with torch.no_grad():
            made = self.denoiser.x0(x, t)
        self.rows += len(x)
        return self._finite(made, "the x0 estimate", t)

    def forward(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        """Returns J z [B, ...] for states x [B, ...] and vectors z of the same shape.

        Raises:
            ValueError: a product that is not finite; with "jvp", a network without a derivative.
        """
        if self.method in ("auto", "jvp"):
            return self._first(x, z, t)
        return self._made(self.method, x, z, t)

    def reverse(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor | None:
        """Returns J^T z [B, ...]; None where the network has no gradient.

        Raises:
            ValueError: a product that is not finite; with "jvp", a network without a gradient.
        """
        if self._reverse is False:
            return None
        try:
            with torch.enable_grad(), _plain_attention():
                leaf = x.detach().clone().requires_grad_()
                made = self.denoiser.x0(leaf, t)
                (found,) = torch.autograd.grad(made, leaf, z.to(made.dtype))
        except Exception as error:
            if self.asked == "jvp":
                raise ValueError(
                    f"{self.who}: the network has no gradient: {_said(error)}"
                ) from error
            self._reverse, self.why = False, _said(error)
            return None
        self._reverse = True
        self.rows += _REVERSE_COST * len(x)
        return self._finite(found.detach(), "a product with the Jacobian", t)

    def _first(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        """Makes the first product, in two ways, and settles the method."""
        reasons, by_difference = [], self._made(DIFFERENCE, x, z, t)
        for way in (FORWARD, TWICE):
            try:
                found = self._made(way, x, z, t)
            except Exception as error:
                reasons.append(f"{way}: {_said(error)}")
                continue
            gap = float((found - by_difference).double().norm())
            size = max(float(by_difference.double().norm()), float(found.double().norm()))
            if gap <= max(_DISTRUST, 4.0 * _step(x, self._level(t), self.rounding(x))) * size:
                self.method = way
                return found
            reasons.append(f"{way}: it is {gap / size:.0%} away from a central difference")
            self._reverse = False  # the reverse mode goes through the same operations
        if self.asked == "jvp":
            raise ValueError(
                f"{self.who}: method is 'jvp', but the network has no such derivative: "
                f"{'; '.join(reasons)}"
            )
        self.method, self.why = DIFFERENCE, "; ".join(reasons)
        return by_difference

    def _made(self, way: str, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        made = {FORWARD: self._tangent, TWICE: self._twice, DIFFERENCE: self._difference}
        found = made[way](x.detach(), z, t).detach()
        self.rows += _COSTS[way] * len(x)
        return self._finite(found, "a product with the Jacobian", t)

    def _tangent(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        with torch.no_grad(), _plain_attention(), forward_ad.dual_level(), _quiet_torch():
            made = self.denoiser.x0(forward_ad.make_dual(x.clone(), z.to(x.dtype)), t)
            tangent = forward_ad.unpack_dual(made).tangent
            if tangent is None:
                raise RuntimeError("the output does not depend on the input")
            return tangent.clone()

    def _twice(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        with torch.enable_grad(), _plain_attention():
            leaf = x.clone().requires_grad_()
            made = self.denoiser.x0(leaf, t)
            weights = torch.zeros_like(made, requires_grad=True)
            (pulled,) = torch.autograd.grad(made, leaf, weights, create_graph=True)
            (found,) = torch.autograd.grad(pulled, weights, z.to(pulled.dtype))
            return found

    def _difference(self, x: torch.Tensor, z: torch.Tensor, t: float) -> torch.Tensor:
        sizes = z.double().square().flatten(1).mean(1).sqrt()
        sizes = torch.where(sizes > 0.0, sizes, 1.0)  # J 0 is 0 by any step
        step = self._level(t) * _step(x, self._level(t), self.rounding(x)) / sizes
        step = step.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        with torch.no_grad():
            above, below = (self.denoiser.x0(x + s * step * z, t) for s in (1.0, -1.0))
        return (above - below) / (2.0 * step)

    def _level(self, t: float) -> float:
        sigma = float(self.denoiser.schedule.sigma(t))
        if not sigma > 0.0:
            raise ValueError(
                f"{self.who}: sigma = {sigma:g} at t = {t:g}, where the x0 estimate is x / alpha "
                "itself: take a time with noise"
            )
        return sigma

    def rounding(self, x: torch.Tensor) -> float:
        """Returns the rounding unit of the coarsest dtype between x and the estimate."""
        first = network_errors.first_parameter(self.denoiser.network)
        dtypes = [x.dtype, self.denoiser.dtype or x.dtype]
        if first is not None and first.dtype.is_floating_point:
            dtypes.append(first.dtype)
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    def _finite(self, made: torch.Tensor, what: str, t: float) -> torch.Tensor:
        good = torch.isfinite(made).flatten(1).all(1)
        if not bool(good.all()):
            rows = (~good).nonzero().flatten().tolist()
            raise ValueError(
                f"{self.who}: {what} at t = {t:g} is not finite in rows {rows[:8]} of {len(made)}"
            )
        return made


def _step(x: torch.Tensor, sigma: float, eps: float) -> float:
    """Returns the step of a central difference over sigma.

    The rounding error eps |x| / (step sigma) and the error of the difference, about step^2, are
    then alike: the estimate changes over lengths of about sigma.
    """
    size = float(x.detach().double().square().mean().sqrt())
    return (eps * max(1.0, size / sigma)) ** (1.0 / 3.0)


def _opaque(denoiser: Denoiser) -> str:
    """Returns why a denoiser's estimate holds no derivative; an empty text where it may."""
    if denoiser.guides:
        return "the denoiser has guidance terms, whose gradients are taken without a graph"
    rule = denoiser.rule
    if rule is not None:
        return f"the guidance rule {rule.name} weighs the outputs without a graph"
    return ""


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention from single operations: the fused kernels have no forward or second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Leaves out what torch says of its own when it loads the rules of forward derivatives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
        yield


def _said(error: Any) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 120 else f"{text[:117]}..."
