"""Digits in coloured ink: the denoiser of grey digits, used on each colour channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffast.digits.classifier import NoisyDigitClassifier
from diffast.digits.unet import DigitUNet


class TintedDigits(nn.Module):
    """Denoises RGB images of a digit in one of three inks: ``network(x, t, labels) -> x0``.

    An image holds a grey digit in one channel, red, green or blue with equal chance, and -1 in the
    other two. Its posterior mean needs two things of the grey digits alone, for each channel k:

        x0_k = -1 + p_k (D(x_k) + 1),        p = softmax of l(x_1), l(x_2), l(x_3)

    D is the grey denoiser, l the log-odds that a noisy channel holds a digit and not -1. The
    schedule is that of ``DigitUNet``: alpha = 1, sigma = t. A call costs three of the grey network.
    """

    def __init__(self, unet: DigitUNet, ink: NoisyDigitClassifier) -> None:
        """Takes the grey denoiser and the log-odds, a classifier of one output.

        Raises:
            ValueError: a classifier of more outputs.
        """
        super().__init__()
        if ink.config.outputs != 1:
            raise ValueError(
                f"TintedDigits: ink has {ink.config.outputs} outputs, but log-odds are one"
            )
        self.unet, self.ink = unet, ink

    def inks(self, x: Tensor, t: Tensor) -> Tensor:
        """The probability of each ink, [B, 3]; arguments and errors as of ``forward``."""
        return self.ink(*self._channels(x, t)).view(-1, 3).softmax(dim=1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The denoised images x0, [B, 3, 28, 28], dtype of ``x``.

        Args:
            x: noisy images in data units, [B, 3, 28, 28].
            t: noise level sigma of each image, same unit as ``x``, [B]; 0 is allowed.
            labels: digit of each image, [B] int64 in 0..9, or ``NULL_LABEL`` for any.

        Raises:
            ValueError: the shapes do not fit.
        """
        channels, times = self._channels(x, t)
        x0 = self.unet(channels, times, labels.repeat_interleave(3)).view_as(x)
        return self.inks(x, t)[:, :, None, None] * (x0 + 1) - 1

    @staticmethod
    def _channels(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() != 4 or x.shape[1:] != (3, 28, 28) or t.shape != x.shape[:1]:
            raise ValueError(
                f"TintedDigits: x is {list(x.shape)} and t is {list(t.shape)}, but [B, 3, 28, 28] "
                "and [B] are needed"
            )
        return x.reshape(-1, 1, 28, 28), t.repeat_interleave(3)


def tint(images: Tensor, ink: Tensor) -> Tensor:
    """The grey digits in coloured ink, [B, 3, 28, 28].

    Args:
        images: grey digits in data units, [B, 1, 28, 28].
        ink: 0, 1 or 2 for each image (red, green, blue), [B] int64.
    """
    tinted = torch.full_like(images, -1).repeat(1, 3, 1, 1)
    tinted[torch.arange(len(images)), ink] = images[:, 0]
    return tinted
