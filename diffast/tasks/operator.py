"""What a linear measurement of an image offers, and the checks that all of them share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What images may be made of.
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Operator:
    """A linear measurement y = A x of images x [B, C, H, W].

    Everything is differentiable by torch, keeps dtype and device, and treats the samples of a batch
    one by one. What y is shaped like is said by each operator.
    """

    name = "operator"

    inverse_gain: float | None = None
    """Deviation of A^+ e in the range of A^T, for unit noise e; None where it is not one number."""

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the measurement of images, as `forward`."""
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the measurement A x of images [B, C, H, W]."""
        raise NotImplementedError

    def transpose(self, y: Tensor) -> Tensor:
        """Returns A^T y, [B, C, H, W]: <A x, y> = <x, A^T y>."""
        raise NotImplementedError

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns A^+ y, [B, C, H, W]: of the images that fit y best, the one of least norm."""
        raise NotImplementedError

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns argmin_z weight/2 |A z - y|^2 + 1/2 |z - x|^2, [B, C, H, W].

        It is the mean of z given y where z ~ N(x, r^2 I), y ~ N(A z, s^2 I), weight = r^2 / s^2.

        Args:
            x: where the image would lie without a measurement, [B, C, H, W].
            y: the measurement.
            weight: what the measurement counts for, 0 or more: a number, or one for each sample
                [B]. Infinity: x + A^+ (y - A x).

        Raises:
            ValueError: a weight that is negative or NaN; what `forward` raises.
        """
        raise NotImplementedError

    def project(self, x: Tensor) -> Tensor:
        """Returns A^+ A x: the part of images that the measurement sees, [B, C, H, W]."""
        return self.pseudo_inverse(self.forward(x))


def check_image(who: str, x: Any, name: str = "x") -> Tensor:
    """Returns x, or raises ValueError unless it is a batch of images of floating point."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{who}: {name} is a {type(x).__name__}, but a tensor is needed")
    if x.dim() != 4:
        raise ValueError(f"{who}: {name} is {list(x.shape)}, but images are [B, C, H, W]")
    if x.dtype not in _FLOATS:
        raise ValueError(f"{who}: {name} is {x.dtype}, but a floating-point type is needed")
    return x


def check_same(who: str, x: Tensor, y: Any, shape: torch.Size) -> None:
    """Raises ValueError unless y is a measurement that goes with x: shape, device and dtype."""
    check_image(who, y, "y")
    if y.shape[1:] != shape[1:] or y.shape[0] not in (1, shape[0]):
        raise ValueError(
            f"{who}: y is {list(y.shape)}, but the measurement of x {list(x.shape)} is "
            f"{list(shape)}"
        )
    for fact in ("device", "dtype"):
        of_x, of_y = getattr(x, fact), getattr(y, fact)
        if of_x != of_y:
            raise ValueError(f"{who}: x is {_said(fact, of_x)}, but y is {_said(fact, of_y)}")


def _said(fact: str, value: Any) -> str:
    return f"on {value}" if fact == "device" else str(value)


def inverse_weight(who: str, weight: float | Tensor, x: Tensor) -> Tensor:
    """Returns 1 / weight as a tensor that multiplies images: [] or [B, 1, 1, 1]; 0 for infinity.

    Raises:
        ValueError: a weight that is negative, NaN or not one number for each sample.
    """
    given = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
    if given.dim() and given.shape != x.shape[:1]:
        raise ValueError(
            f"{who}: weight is {list(given.shape)}, but it must be a number or one for each of "
            f"the {x.shape[0]} samples"
        )
    if not isinstance(weight, Tensor) and not weight >= 0:
        raise ValueError(f"{who}: weight is {weight}, but it must be 0 or more")
    inverse = 1 / given
    return inverse.view(-1, 1, 1, 1) if given.dim() else inverse
