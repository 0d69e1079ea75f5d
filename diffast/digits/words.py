"""Scores how well a few words describe a digit: a small embedding of images and of captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffast.digits.unet import check_images

CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789"
"""What a caption may be made of, after it is put in lower case."""

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The names of the digits, in order."""


@dataclass(frozen=True)
class WordsConfig:
    """The numbers that fix a ``DigitWords``.

    Attributes:
        widths: channels of the image encoder at 28x28, 14x14 and 7x7, multiples of 8.
        letters: width of the embedding of a character.
        hidden: channels of the caption encoder.
        embed: width of the common embedding.
    """

    widths: tuple[int, int, int] = (16, 32, 64)
    letters: int = 24
    hidden: int = 96
    embed: int = 64


class DigitWords(nn.Module):
    """Embeds digits and captions in one space: ``words(x, captions) -> logits``.

    The logit of an image and a caption is the log-odds that the caption is true of the image,
    ``scale cos(image, caption) + bias``: a sigmoid instead of a softmax, because many captions are
    true of one image (Zhai et al. 2023, arXiv:2303.15343). The image encoder was trained on clean
    digits and on the estimates that a denoiser makes of noisy ones. All activations are smooth, so
    that the gradient in the image is fit for guidance.
    """

    def __init__(self, config: WordsConfig | None = None) -> None:
        """A network with fresh weights; ``load_words`` returns the trained one."""
        super().__init__()
        self.config = config = config or WordsConfig()
        outer, middle, inner = config.widths
        shapes = ((1, outer, 1), (outer, middle, 2), (middle, middle, 1))
        shapes += ((middle, inner, 2), (inner, inner, 1), (inner, inner, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in shapes)
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for _, b, _ in shapes)
        self.see = nn.Sequential(
            nn.Linear(inner * 9, 2 * inner), nn.SiLU(), nn.Linear(2 * inner, config.embed)
        )
        # Character 0 is what fills a caption up to the longest one of its batch.
        self.letters = nn.Embedding(len(CHARACTERS) + 1, config.letters, padding_idx=0)
        self.reads = nn.ModuleList(
            nn.Conv1d(a, config.hidden, 5, padding=2) for a in (config.letters, config.hidden)
        )
        self.read = nn.Sequential(
            nn.Linear(2 * config.hidden, 2 * inner), nn.SiLU(), nn.Linear(2 * inner, config.embed)
        )
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def embed_images(self, x: Tensor) -> Tensor:
        """The images' embeddings, [B, E], of length 1; differentiable in ``x``.

        Args:
            x: images or estimates of them in data units, [B, 1, 28, 28].

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_images("DigitWords", x)
        y = x.to(self.bias.dtype)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            z = F.silu(norm(conv(y)))
            y = y + z if y.shape == z.shape else z
        y = self.see(F.avg_pool2d(y, 3, stride=2).flatten(1))  # [B, E]
        return F.normalize(y, dim=1).to(x.dtype)

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """The captions' embeddings, [N, E], of length 1.

        Args:
            captions: N texts of letters, digits and spaces.

        Raises:
            ValueError: no caption, an empty one, or a character that the encoder does not know.
        """
        codes = caption_codes(captions).to(self.bias.device)
        filled = (codes > 0)[:, None]  # [N, 1, L]
        y = self.letters(codes).transpose(1, 2)  # [N, letters, L]
        for read in self.reads:
            y = F.silu(read(y)) * filled
        mean = y.sum(dim=2) / filled.sum(dim=2)
        most = y.masked_fill(~filled, -1e4).amax(dim=2)
        return F.normalize(self.read(torch.cat([mean, most], dim=1)), dim=1)

    def forward(self, x: Tensor, captions: Sequence[str]) -> Tensor:
        """The log-odds that each caption is true of each image, [B, N]; as the two embeddings."""
        cosines = self.embed_images(x) @ self.embed_captions(captions).to(x.dtype).T
        return self.log_scale.exp().to(x.dtype) * cosines + self.bias.to(x.dtype)


def caption_codes(captions: Sequence[str]) -> Tensor:
    """The numbers of the captions' characters, [N, L] int64, filled up with 0.

    Raises:
        ValueError: as ``DigitWords.embed_captions``.
    """
    if isinstance(captions, str):
        raise ValueError(f"DigitWords: captions is the text {captions!r}, not a list of texts")
    if not captions:
        raise ValueError("DigitWords: captions is empty, but at least one text is needed")
    rows = []
    for caption in captions:
        text = " ".join(caption.lower().split())
        unknown = sorted(set(text) - set(CHARACTERS))
        if unknown:
            raise ValueError(
                f"DigitWords: the caption {caption!r} holds {unknown[0]!r}, but captions are made "
                "of the letters a to z, digits and spaces"
            )
        if not text:
            raise ValueError(f"DigitWords: the caption {caption!r} has no letters")
        rows.append([CHARACTERS.index(character) + 1 for character in text])
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])
