"""What was measured of the data, y = A(x0) + noise, and A at one x0 estimate.

An operator is an object with `forward(x) -> y` and, where there are closed forms,
`transpose(y) -> x`, `pseudo_inverse(y) -> x` and
`prox(x, y, weight) = argmin_z weight/2 |A z - y|^2 + 1/2 |z - x|^2`, as those of `df.tasks` are. Or
it is a function x -> y, linear or not, whose transpose is made by torch's autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from diffast.guidance.guide import Point

Operator = Any  # see above


class Measurement:
    """An operator, what was measured, and the standard deviation of its noise.

    Args:
        who: what messages call the term.
        operator: see the module.
        y: what was measured: [B, ...], or [1, ...] for all samples.
        noise: standard deviation of the noise in y.

    Raises:
        ValueError: an operator that cannot be called; y that is no tensor of finite numbers; a
            noise that is negative or not finite.
    """

    def __init__(self, who: str, operator: Operator, y: torch.Tensor, noise: float = 0.0):
        """Checks what can be checked before the first estimate."""
        forward: Callable[[torch.Tensor], torch.Tensor] = getattr(operator, "forward", operator)
        if not callable(forward):
            raise ValueError(
                f"{who}: operator is a {type(operator).__name__}, but a function x -> y or an "
                "object with forward(x) is needed"
            )
        if not isinstance(y, torch.Tensor) or not y.is_floating_point() or not y.dim():
            got = f"{y.dtype} {list(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(f"{who}: y is {got}, but floating-point numbers [B, ...] are needed")
        if not y.is_meta and not bool(y.isfinite().all()):
            raise ValueError(f"{who}: y must be finite but holds NaN or infinity")
        if not 0.0 <= noise < math.inf:
            raise ValueError(f"{who}: noise is {noise}, but it must be 0 or more, and finite")
        self.who, self.operator, self.y, self.noise = who, operator, y.detach(), float(noise)
        self.forward = forward

    def at(self, point: Point) -> Local:
        """Returns the operator at the x0 estimate of a point."""
        if point.x0 is None:
            raise ValueError(f"{self.who}: the point has no x0 estimate")
        return Local(self, point, point.x0)


class Local:
    """An operator at one x0 estimate: what it says there, and its Jacobian A there.

    Attributes:
        x0: the estimate.
        y: the rows of y for these samples, of the estimate's dtype.
        residual: y - A(x0).
    """

    def __init__(self, whole: Measurement, point: Point, x0: torch.Tensor):
        """Calls the operator.

        Raises:
            ValueError: if y and what the operator returns disagree.
        """
        self.whole, self.who, self.noise = whole, whole.who, whole.noise
        self.operator = whole.operator
        self.by_torch = not hasattr(self.operator, "transpose")
        self.y = point.own(self.who, "rows of y", whole.y).to(x0.dtype)
        with torch.inference_mode(False), torch.set_grad_enabled(self.by_torch):
            self.x0 = x0.detach()
            self._leaf = self.x0.requires_grad_() if self.by_torch else self.x0
            self._seen = whole.forward(self._leaf)
            self._check()
        self.residual = self.y - self._seen.detach()

    def _check(self) -> None:
        seen = self._seen
        if not isinstance(seen, torch.Tensor) or seen.shape != self.y.shape:
            got = list(seen.shape) if isinstance(seen, torch.Tensor) else type(seen).__name__
            raise ValueError(
                f"{self.who}: y is {[len(self.whole.y), *self.y.shape[1:]]}, but the operator "
                f"makes {got} of estimates {list(self.x0.shape)}"
            )
        if self.by_torch and not seen.requires_grad:
            raise ValueError(
                f"{self.who}: what the operator returned does not depend on its input by "
                "operations that torch can differentiate"
            )

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Returns A u, A the Jacobian at the estimate."""
        if not self.by_torch:
            return self.whole.forward(u)
        with torch.inference_mode(False), torch.enable_grad():
            v, pulled = self._dual
            (found,) = torch.autograd.grad(pulled, v, u, retain_graph=True)
        return found

    def transpose(self, v: torch.Tensor) -> torch.Tensor:
        """Returns A^T v, A the Jacobian at the estimate."""
        if not self.by_torch:
            return self.operator.transpose(v)
        with torch.inference_mode(False), torch.enable_grad():
            (found,) = torch.autograd.grad(self._seen, self._leaf, v, retain_graph=True)
        return found

    @cached_property
    def _dual(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (v, A^T v) with its graph: A u is the gradient of <u, A^T v> in v.

        Forward-mode derivatives are not asked for: fewer operations have them.
        """
        v = torch.zeros_like(self.y).requires_grad_()
        (pulled,) = torch.autograd.grad(self._seen, self._leaf, v, create_graph=True)
        return v, pulled

    @cached_property
    def closed(self) -> bool:
        """Returns whether the operator has a proximal step of its own."""
        return hasattr(self.operator, "prox")

    def shift(self, weight: torch.Tensor) -> torch.Tensor:
        """Returns prox(x0, y, weight) - x0 = A^T (A A^T + 1/weight)^-1 (y - A(x0)).

        By the operator's own `prox`, else by conjugate gradients.

        Args:
            weight: [B], infinity where y has no noise.
        """
        if self.closed:
            return self.operator.prox(self.x0.detach(), self.y, weight) - self.x0.detach()
        # a weight of 0 leaves x0 as it is, and its ridge would be infinite
        ridge = torch.where(weight > 0, 1.0 / weight, 1.0)
        ridge = ridge.reshape(-1, *[1] * (self.y.dim() - 1))
        solved = solve(lambda v: self.forward(self.transpose(v)) + ridge * v, self.residual)
        return self.transpose(solved) * (weight > 0).reshape(-1, *[1] * (self.x0.dim() - 1))


def solve(
    apply: Callable[[torch.Tensor], torch.Tensor],
    right: torch.Tensor,
    iterations: int = 50,
) -> torch.Tensor:
    """Returns v with apply(v) = right by conjugate gradients from 0, each sample by itself.

    A sample is done when its residual is some rounding errors of its right-hand side, or where the
    map is not positive along its direction. On the CPU the loop ends when all samples are done; on
    a device nothing is looked at.

    Args:
        apply: a map that is symmetric and positive for every sample, [B, ...] -> [B, ...].
        right: [B, ...].
        iterations: most iterations; each is one call of the map.
    """
    axes = tuple(range(1, right.dim()))

    def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum(dim=axes, keepdim=True) if axes else a * b

    found, residual, direction = torch.zeros_like(right), right, right
    size = dot(right, right)
    goal = size * max(1e-12, 4 * torch.finfo(right.dtype).eps) ** 2
    most = min(iterations, max(right[0].numel(), 1)) if len(right) else 0
    looks = right.device.type == "cpu"  # elsewhere a look would wait for the device
    for _ in range(most):
        if looks and not bool((size > goal).any()):
            break
        applied = apply(direction)
        curve = dot(direction, applied)
        going = (size > goal) & (curve > 0)
        step = torch.where(going, size / torch.where(going, curve, 1.0), 0.0)
        found, residual = found + step * direction, residual - step * applied
        new = dot(residual, residual)
        grown = torch.where(going, new / torch.where(going, size, 1.0), 0.0)
        direction = torch.where(going, residual + grown * direction, 0.0)
        size = torch.where(going, new, 0.0)
    # what is not finite must not pass for a solution
    return torch.where(right.isfinite(), found, right)
