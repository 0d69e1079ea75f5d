"""A small class-conditional U-Net that denoises 28x28 grey digits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NULL_LABEL = 10
"""The label that means "any digit"; what classifier-free guidance asks for."""

# The range of noise levels in training. Outside, the embedding is that of the range's end, which
# also keeps sigma = 0 out of the logarithm. c_skip and c_out are exact everywhere.
_SIGMA_SEEN = (0.002, 80.0)


@dataclass(frozen=True)
class UNetConfig:
    """The numbers that fix the architecture and the preconditioning.

    Attributes:
        widths: channels at 28x28, 14x14 and 7x7, multiples of 8.
        blocks: residual blocks at each of these sizes (the decoder has as many as the encoder).
        embed: width of the embedding of noise level and class.
        heads: attention heads at 7x7.
        dropout: inside the 7x7 blocks, while training.
        sigma_data: standard deviation of the training pixels, in data units.
        data_mean: their mean, removed before the preconditioning.
    """

    widths: tuple[int, int, int] = (32, 64, 128)
    blocks: tuple[int, int, int] = (1, 2, 3)
    embed: int = 128
    heads: int = 4
    dropout: float = 0.1
    sigma_data: float = 0.62
    data_mean: float = -0.735


def scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of each noise level, shaped as ``sigma``, in the unit of the data.

    Karras et al. 2022 (arXiv:2206.00364), table 1, column "Ours". Finite for sigma = 0.
    """
    total = sigma * sigma + sigma_data**2
    root = total.rsqrt()
    return sigma_data**2 / total, sigma * sigma_data * root, root


def noise_features(sigma: Tensor, width: int) -> Tensor:
    """Cosines and sines of c_noise = ln(sigma)/4, [B, width], of [B] noise levels; 0 is allowed."""
    c_noise = sigma.clamp(*_SIGMA_SEEN).log() / 4
    # c_noise lies in about [-1.6, 1.1]. The waves have half a period to 13 periods over that range;
    # with more, near noise levels would get unlike embeddings.
    steps = torch.linspace(0.0, 1.0, width // 2, device=sigma.device, dtype=sigma.dtype)
    angles = c_noise[:, None] * 30.0**steps  # [B, width/2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def check_images(who: str, x: Tensor) -> None:
    """Raises ValueError unless ``x`` is a batch of digits."""
    if x.dim() != 4 or x.shape[1:] != (1, 28, 28):
        raise ValueError(f"{who}: x is {list(x.shape)}, not [B, 1, 28, 28]")


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, the second norm scaled and shifted by the embedding."""

    def __init__(self, inputs: int, outputs: int, embed: int, dropout: float) -> None:
        """A block from ``inputs`` to ``outputs`` channels that starts as the identity."""
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embed, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        for zero in self.conv2.parameters():
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The block's output, [B, outputs, H, W], from x [B, inputs, H, W], embedding [B, E]."""
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1]
        y = self.conv1(F.silu(self.norm1(x)))
        y = F.silu(torch.addcmul(shift, self.norm2(y), scale + 1))
        y = F.dropout(y, self.dropout, self.training) if self.dropout else y
        return self.skip(x) + self.conv2(y)


class Attention(nn.Module):
    """Self-attention among the pixels, added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Attention over ``width`` channels that starts as the identity."""
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The attended image, [B, C, H, W]."""
        batch, width, height, length = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, width // self.heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, HW, C/heads]
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, HW, C]
        return x + self.out(y).transpose(1, 2).reshape(batch, width, height, length)


class DigitUNet(nn.Module):
    """Denoises 28x28 digits: ``unet(x, t, labels) -> x0``.

    The schedule is alpha = 1, sigma = t: ``x = x0 + t * noise``, with x0 in [-1, 1].
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        """A network with fresh weights; ``load_unet`` returns the trained one."""
        super().__init__()
        self.config = config = config or UNetConfig()
        embed, (outer, middle, inner) = config.embed, config.widths
        count = config.blocks

        self.noise = nn.Linear(64, embed)
        self.label = nn.Embedding(NULL_LABEL + 1, embed)
        self.mix = nn.Linear(embed, embed)

        def level(n: int, first: int, width: int, dropout: float = 0.0) -> nn.ModuleList:
            widths = [first] + [width] * n
            return nn.ModuleList(
                ResBlock(a, b, embed, dropout) for a, b in zip(widths, widths[1:], strict=False)
            )

        self.stem = nn.Conv2d(1, outer, 3, padding=1)
        self.enc28 = level(count[0], outer, outer)
        self.down14 = nn.Conv2d(outer, middle, 3, stride=2, padding=1)
        self.enc14 = level(count[1], middle, middle)
        self.down7 = nn.Conv2d(middle, inner, 3, stride=2, padding=1)
        self.mid7 = level(count[2], inner, inner, config.dropout)
        self.attention = Attention(inner, config.heads)
        # 1x1 before the nearest-neighbour upsampling: the same map as after it at a quarter of
        # the work.
        self.up14 = nn.Conv2d(inner, middle, 1)
        self.dec14 = level(count[1], 2 * middle, middle)
        self.up28 = nn.Conv2d(middle, outer, 1)
        self.dec28 = level(count[0], 2 * outer, outer)
        self.norm = nn.GroupNorm(8, outer)
        self.head = nn.Conv2d(outer, 1, 3, padding=1)
        for zero in self.head.parameters():
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The denoised images x0, [B, 1, 28, 28], dtype of ``x``.

        ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)``, Karras et al. 2022, eq. 7, about the
        data mean. The scalings are computed in float32 (float64 for float64 ``x``) whatever the
        dtype of the weights.

        Args:
            x: noisy images in data units, [B, 1, 28, 28].
            t: noise level sigma of each image, same unit as ``x``, [B]; 0 is allowed.
            labels: digit of each image, [B] int64 in 0..9, or ``NULL_LABEL`` for any.

        Raises:
            ValueError: the shapes do not fit.
        """
        check_images("DigitUNet", x)
        if t.shape != x.shape[:1] or labels.shape != x.shape[:1]:
            raise ValueError(
                f"DigitUNet: {x.shape[0]} images but t is {list(t.shape)} "
                f"and labels is {list(labels.shape)}, not [B]"
            )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        sigma = t.to(wide)
        centred = x.to(wide) - self.config.data_mean
        c_skip, c_out, c_in = (
            c[:, None, None, None] for c in scalings(sigma, self.config.sigma_data)
        )
        narrow = self.stem.weight.dtype
        y = self._raw((c_in * centred).to(narrow), noise_features(sigma, 64).to(narrow), labels)
        x0 = c_skip * centred + c_out * y.to(wide) + self.config.data_mean
        return x0.to(x.dtype)

    def _raw(self, x: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """The raw network F, [B, 1, 28, 28], about unit variance in and out."""
        e = F.silu(self.noise(noise) + self.label(labels))  # [B, E]
        e = F.silu(self.mix(e))

        def level(blocks: Iterable[nn.Module], y: Tensor) -> Tensor:
            for block in blocks:
                y = block(y, e)
            return y

        skip28 = level(self.enc28, self.stem(x))  # [B, outer, 28, 28]
        skip14 = level(self.enc14, self.down14(skip28))  # [B, middle, 14, 14]
        y = self.down7(skip14)
        for i, block in enumerate(self.mid7):
            y = block(y, e)
            y = y if i else self.attention(y)
        y = level(self.dec14, torch.cat([_double(self.up14(y)), skip14], dim=1))
        y = level(self.dec28, torch.cat([_double(self.up28(y)), skip28], dim=1))
        return self.head(F.silu(self.norm(y)))


def _double(x: Tensor) -> Tensor:
    """Each pixel twice in both directions, [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def parameter_count(module: nn.Module) -> int:
    """How many trained numbers a module holds."""
    return sum(math.prod(p.shape) for p in module.parameters())
