"""Frequency-decoupled guidance: a scale for each level of a Laplacian pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional

from diffast.guidance.rule import COND, LOW, UNCOND, Rule, check_scale

_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Decoupled(Rule):
    """Frequency-decoupled guidance; see `fdg`."""

    name = "guidance.fdg"
    columns = (COND, UNCOND, LOW)

    levels: tuple[float, ...] = (10.0, 5.0)

    def weights(self, xp: Any, numbers: Any, scale: Any, time: float) -> dict[str, Any]:
        """Returns u + w_0 (c - u) and what the coarser levels have beyond that."""
        others = any(step != 0.0 for step in self._steps)
        return {COND: scale, UNCOND: 1.0 - scale} | ({LOW: 1.0} if others else {})

    @property
    def _steps(self) -> list[float]:
        return [after - before for before, after in zip(self.levels, self.levels[1:], strict=False)]

    def low_pass(self, difference: torch.Tensor) -> torch.Tensor:
        """Returns sum_l (w_l - w_(l-1)) of the difference without its l finest bands.

        Raises:
            ValueError: for a tensor that is no image [B, C, H, W], or a small one.
        """
        return pyramid_sum(difference, self._steps)


def fdg(scales: Sequence[float] = (10.0, 5.0)) -> Rule:
    """Returns frequency-decoupled guidance (Sadat et al. 2025, arXiv 2506.19713).

    The difference c - u is taken apart into the bands of a Laplacian pyramid, each of which has a
    scale. The pyramid is linear, so what the coarser bands have beyond the finest one's scale is
    one more tensor in the step's sum. It takes two convolutions a level, made by torch. Images
    whose sides are no multiple of the pyramid's are reflected at the right and lower edge.

    Args:
        scales: of the bands, the finest first; 2 or more.

    Raises:
        ValueError: for fewer scales, or one that is not finite.
    """
    levels = tuple(scales) if isinstance(scales, Sequence) else ()
    if len(levels) < 2:
        raise ValueError(
            f"{Decoupled.name}: scales is {scales!r} but must be 2 numbers or more, the finest "
            "band's first"
        )
    for scale in levels:
        check_scale(Decoupled.name, "a scale", scale)
        if callable(scale):
            raise ValueError(f"{Decoupled.name}: a scale is a function but must be a number")
    levels = tuple(float(scale) for scale in levels)
    return Decoupled(scale=levels[0], levels=levels)


def pyramid_sum(image: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """Returns sum_l factors[l] up^(l+1)(down^(l+1)(image)), in float32 or float64.

    `down` blurs with the binomial 5 x 5 kernel, reflected at the edges, and averages 2 x 2 pixels;
    `up` doubles the sides by linear interpolation and blurs (Burt and Adelson 1983).

    Args:
        image: [B, C, H, W].
        factors: of the levels, the finest first.

    Raises:
        ValueError: for another number of dimensions, or sides too short for the levels.
    """
    who, unit = Decoupled.name, 2 ** len(factors)
    if image.dim() != 4:
        raise ValueError(
            f"{who}: the outputs have shape {list(image.shape)} but images [B, C, H, W] are needed"
        )
    height, width = image.shape[2:]
    if min(height, width) < 3 * unit:
        raise ValueError(
            f"{who}: images of {height} x {width} but {len(factors) + 1} levels need sides of "
            f"{3 * unit} at least"
        )
    wide = image if image.dtype == torch.float64 else image.float()
    padded = functional.pad(wide, (0, -width % unit, 0, -height % unit), mode="reflect")
    coarser = [padded]
    for _ in factors:
        coarser.append(functional.avg_pool2d(_blurred(coarser[-1]), 2))
    total = coarser[-1] * factors[-1]
    for level in range(len(factors) - 1, -1, -1):
        total = _blurred(functional.interpolate(total, scale_factor=2.0, mode="bilinear"))
        if level:
            total = total.add(coarser[level], alpha=factors[level - 1])
    return total[:, :, :height, :width].contiguous()


def _blurred(image: torch.Tensor) -> torch.Tensor:
    """Returns the image convolved with the binomial kernel, reflected at its edges."""
    channels = image.shape[1]
    kernel = _kernel(image.dtype, image.device).expand(channels, 1, 5, 5)
    return functional.conv2d(
        functional.pad(image, (2, 2, 2, 2), "reflect"), kernel, groups=channels
    )


@cache
def _kernel(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        line = torch.tensor(_BINOMIAL, dtype=dtype, device="cpu") / 16.0
        return (line[:, None] * line[None, :])[None, None].to(device)
