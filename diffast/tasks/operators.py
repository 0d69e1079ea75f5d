"""Measurements of images whose pseudo-inverse and proximal step have a closed form.

For each of them A A^T is diagonal, in the pixels, in the channels or in the Fourier domain. Then

    A^+ = A^T (A A^T)^-1        prox(x, y, w) = x + A^T (A A^T + 1/w)^-1 (y - A x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffast.tasks.operator import Operator, check_image, check_same, inverse_weight


class Inpainting(Operator):
    """See `inpainting`; the measurement is shaped as the image, 0 where nothing is known."""

    name = "inpainting"
    inverse_gain = 1.0

    def __init__(self, mask: Tensor) -> None:
        """Takes a mask that was checked: bool [B, C, H, W]; B and C may be 1."""
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Returns the known pixels, and 0 elsewhere, shaped as x.

        Raises:
            ValueError: images of another size than the mask, or on another device.
        """
        check_image(self.name, x)
        if any(m not in (1, n) for m, n in zip(self.mask.shape[:2], x.shape[:2], strict=True)) or (
            self.mask.shape[2:] != x.shape[2:]
        ):
            raise ValueError(
                f"{self.name}: the mask is {list(self.mask.shape)}, but the images are "
                f"{list(x.shape)}"
            )
        if self.mask.device != x.device:
            raise ValueError(
                f"{self.name}: the mask is on {self.mask.device}, but the images are on {x.device}"
            )
        # not a product, which would make NaN of what is infinite and unknown
        return torch.where(self.mask, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def transpose(self, y: Tensor) -> Tensor:
        """Returns y where pixels are known, and 0 elsewhere."""
        return self.forward(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns y where pixels are known, and 0 elsewhere."""
        return self.forward(y)

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns x, with (x + weight y) / (1 + weight) where pixels are known."""
        check_same(self.name, x, y, x.shape)
        inverse = inverse_weight(self.name, weight, x)
        return x + self.forward(y - x) / (1 + inverse)


class SuperResolution(Operator):
    """See `super_resolution`; the measurement is [B, C, H/factor, W/factor]."""

    name = "super_resolution"

    def __init__(self, factor: int) -> None:
        """Takes a factor that was checked."""
        self.factor = factor
        self.inverse_gain = float(factor)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean of each block of factor x factor pixels, [B, C, H/factor, W/factor].

        Raises:
            ValueError: a height or width that the factor does not divide.
        """
        check_image(self.name, x)
        if any(size % self.factor for size in x.shape[2:]):
            raise ValueError(
                f"{self.name}: the images are {list(x.shape)}, but a factor of {self.factor} "
                f"divides not both {x.shape[2]} and {x.shape[3]}"
            )
        return F.avg_pool2d(x, self.factor)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns each pixel of y repeated over its block, [B, C, H, W]."""
        check_image(self.name, y, "y")
        rows = y.repeat_interleave(self.factor, dim=2)
        return rows.repeat_interleave(self.factor, dim=3)

    def transpose(self, y: Tensor) -> Tensor:
        """Returns each pixel of y / factor^2 repeated over its block, [B, C, H, W]."""
        return self.pseudo_inverse(y) / self.factor**2

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns x plus a share 1 / (1 + factor^2 / weight) of A^+ (y - A x)."""
        seen = self.forward(x)
        check_same(self.name, x, y, seen.shape)
        inverse = inverse_weight(self.name, weight, x)
        return x + self.pseudo_inverse(y - seen) / (1 + self.factor**2 * inverse)


class Blur(Operator):
    """See `blur`; the measurement is shaped as the image."""

    name = "blur"

    def __init__(self, kernel: Tensor, cutoff: float) -> None:
        """Takes a kernel [h, w] and a cutoff that were checked."""
        self.kernel, self.cutoff = kernel, cutoff

    def _response(self, x: Tensor) -> Tensor:
        """The kernel's Fourier coefficients for images of x's size, [H, W/2 + 1] complex."""
        check_image(self.name, x)
        height, width = self.kernel.shape
        if height > x.shape[2] or width > x.shape[3]:
            raise ValueError(
                f"{self.name}: the kernel is {[height, width]}, but the images are {list(x.shape)}"
            )
        if self.kernel.device != x.device:
            raise ValueError(
                f"{self.name}: the kernel is on {self.kernel.device}, but the images are on "
                f"{x.device}"
            )
        whole = self.kernel.new_zeros(x.shape[2:])
        whole[:height, :width] = self.kernel
        whole = whole.roll((-(height // 2), -(width // 2)), dims=(0, 1))
        response = torch.fft.rfft2(whole.double())
        size = response.abs()
        response = torch.where(size > self.cutoff * size.max(), response, 0)
        return response.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)

    @staticmethod
    def _filtered(x: Tensor, factor: Tensor) -> Tensor:
        """Returns the images filtered; half precision is computed in float32."""
        wide = x if x.dtype == torch.float64 else x.float()
        size = (x.shape[2], x.shape[3])
        return torch.fft.irfft2(torch.fft.rfft2(wide) * factor, s=size).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the blurred images, shaped as x.

        Raises:
            ValueError: images smaller than the kernel, or on another device.
        """
        return self._filtered(x, self._response(x))

    def transpose(self, y: Tensor) -> Tensor:
        """Returns the images correlated with the kernel, shaped as y."""
        return self._filtered(y, self._response(y).conj())

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns y divided by the kernel's coefficients, 0 at those below the cutoff."""
        response = self._response(y)
        return self._filtered(y, torch.where(response == 0, 0, 1 / response))

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns a Wiener filter of y about x, shaped as x."""
        response = self._response(x)
        check_same(self.name, x, y, x.shape)
        wide = x if x.dtype == torch.float64 else x.float()
        inverse = inverse_weight(self.name, weight, wide)
        power = response.abs().square()
        total = power + inverse
        gain = torch.where(power == 0, 0, response.conj() / torch.where(total == 0, 1, total))
        return x + self._filtered(y - self._filtered(x, response), gain)


class Colour(Operator):
    """See `colour`; the measurement is [B, K, H, W] for K rows of the basis."""

    name = "colour"
    inverse_gain = 1.0

    def __init__(self, basis: Tensor) -> None:
        """Takes a basis that was checked: [K, C] float64, rows orthonormal."""
        self.basis = basis

    def _mix(self, x: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", matrix.to(x), x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the coordinates of each pixel's colour in the basis, [B, K, H, W].

        Raises:
            ValueError: images of another number of channels.
        """
        check_image(self.name, x)
        if x.shape[1] != self.basis.shape[1]:
            raise ValueError(
                f"{self.name}: the basis is of {self.basis.shape[1]} channels, but the images "
                f"are {list(x.shape)}"
            )
        return self._mix(x, self.basis)

    def transpose(self, y: Tensor) -> Tensor:
        """Returns the colours of coordinates [B, K, H, W], [B, C, H, W].

        Raises:
            ValueError: another number of coordinates than the basis has rows.
        """
        check_image(self.name, y, "y")
        if y.shape[1] != self.basis.shape[0]:
            raise ValueError(
                f"{self.name}: the basis has {self.basis.shape[0]} rows, but y is {list(y.shape)}"
            )
        return self._mix(y, self.basis.T)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns the same as `transpose`: the rows are orthonormal."""
        return self.transpose(y)

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns x plus a share weight / (1 + weight) of A^T (y - A x)."""
        seen = self.forward(x)
        check_same(self.name, x, y, seen.shape)
        return x + self.transpose(y - seen) / (1 + inverse_weight(self.name, weight, x))


def inpainting(mask: Any) -> Inpainting:
    """Returns the measurement that knows some pixels: y = mask * x, shaped as x.

    Args:
        mask: True where a pixel is known: bool, or numbers that are all 0 or 1. [H, W], [C, H, W]
            or [B, C, H, W]; C and B may be 1.

    Raises:
        ValueError: another shape or other values; a mask that knows nothing.
    """
    given = torch.as_tensor(mask)
    if given.dim() not in (2, 3, 4) or not given.numel():
        raise ValueError(
            f"inpainting: the mask is {list(given.shape)}, but it must be [H, W], [C, H, W] or "
            "[B, C, H, W]"
        )
    known = given != 0
    if given.dtype != torch.bool and not bool(((given == 0) | (given == 1)).all()):
        other = given[(given != 0) & (given != 1)].flatten()[0]
        raise ValueError(f"inpainting: the mask holds {other:g}, but it is 1 or 0 (known or not)")
    if not bool(known.any()):
        raise ValueError("inpainting: the mask is 0 everywhere, but at least one pixel is known")
    return Inpainting(known[(None,) * (4 - known.dim())])


def super_resolution(factor: int) -> SuperResolution:
    """Returns the measurement of block means: y [B, C, H/factor, W/factor].

    Args:
        factor: side of a block in pixels, 2 or more. It has to divide height and width.

    Raises:
        ValueError: a factor that is no whole number above 1.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise ValueError(
            f"super_resolution: factor is {factor!r}, but it must be a whole number from 2"
        )
    return SuperResolution(factor)


def blur(kernel: Any, cutoff: float = 1e-3) -> Blur:
    """Returns the convolution of every channel with a kernel; edges wrap around.

    Args:
        kernel: [h, w], an odd number of pixels in each direction; usually of sum 1.
        cutoff: Fourier coefficients of the kernel below this share of the largest one are taken for
            0, so that A^+ is bounded by 1 / cutoff. The blur itself changes by no more than that.

    Raises:
        ValueError: a kernel of another shape, that is not finite, or 0 throughout; a cutoff outside
            [0, 1).
    """
    given = torch.as_tensor(kernel)
    given = given if given.dtype.is_floating_point else given.float()
    if given.dim() != 2 or any(size % 2 == 0 for size in given.shape):
        raise ValueError(
            f"blur: the kernel is {list(given.shape)}, but it must be [h, w] with odd h and w"
        )
    if not bool(given.isfinite().all()) or not bool(given.any()):
        raise ValueError("blur: the kernel must be finite, and not 0 throughout")
    if not 0 <= cutoff < 1:
        raise ValueError(f"blur: cutoff is {cutoff}, but it must lie in [0, 1)")
    return Blur(given, float(cutoff))


def gaussian_kernel(deviation: float, size: int | None = None) -> Tensor:
    """Returns a Gaussian kernel of sum 1, [size, size] float64.

    Args:
        deviation: standard deviation in pixels, above 0.
        size: pixels in each direction, odd; default: three deviations to each side.

    Raises:
        ValueError: a deviation that is not positive, or a size that is not odd and positive.
    """
    if not 0 < deviation < float("inf"):
        raise ValueError(f"gaussian_kernel: deviation is {deviation}, but it must be positive")
    size = 2 * int(3 * deviation + 0.5) + 1 if size is None else size
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gaussian_kernel: size is {size}, but it must be odd and positive")
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = (-0.5 * (at / deviation).square()).exp()
    return torch.outer(line, line) / line.sum().square()


def colour(basis: Any) -> Colour:
    """Returns the coordinates of each pixel's colour in an orthogonal basis: y [B, K, H, W].

    Args:
        basis: K rows of C numbers, [K, C] with K <= C, or a single row [C]. Rows are orthonormal.
            `opponent_basis()` is one of three rows; its first row alone is the grey value.

    Raises:
        ValueError: another shape, or rows that are not orthonormal.
    """
    rows = torch.as_tensor(basis, dtype=torch.float64)
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or not 0 < rows.shape[0] <= rows.shape[1]:
        raise ValueError(
            f"colour: the basis is {list(rows.shape)}, but it must be [K, C] with K <= C"
        )
    gram = rows @ rows.T
    off = (gram - torch.eye(len(rows), dtype=gram.dtype, device=gram.device)).abs()
    if not float(off.max()) < 1e-5:
        i, j = divmod(int(off.argmax()), len(rows))
        raise ValueError(
            f"colour: the basis is not orthonormal: rows {i} and {j} have the product "
            f"{float(gram[i, j]):.6g}, but it must be {int(i == j)}"
        )
    return Colour(rows)


def opponent_basis() -> Tensor:
    """Returns an orthonormal basis of RGB colours, [3, 3] float64.

    Its rows are grey (1, 1, 1), red-green (1, -1, 0) and yellow-blue (1, 1, -2), each of length 1.
    """
    rows: Sequence[Sequence[float]] = ((1, 1, 1), (1, -1, 0), (1, 1, -2))
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)
