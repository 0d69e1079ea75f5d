"""Trains the networks that ``diffast.tasks.digits`` guides with, on a CPU.

    python examples/train_guides.py words --data mnist-10k.npz --out runs/words --minutes 12
    python examples/train_guides.py ink --data mnist-10k.npz --out runs/ink --minutes 6

``words`` is the embedding of digits and captions. ``ink`` tells a channel that holds a digit from
a blank one. Options and files are those of ``train_mnist.py``.
"""

from __future__ import annotations

import math
import random
import sys
from functools import cache
from typing import NamedTuple

import torch
import train_mnist
from torch import Tensor, nn
from torch.nn import functional as F
from train_mnist import Digits, Recipe, draw_sigma, fixed_sigma, jitter

from diffast.digits import NULL_LABEL, load_unet
from diffast.digits.classifier import ClassifierConfig, NoisyDigitClassifier
from diffast.digits.words import NAMES, DigitWords

# The share of a batch that is seen as a denoiser's estimate.
_ESTIMATED = 0.375


class Caption(NamedTuple):
    """A text and what it says: of which digits, of which weight, of which slant it is true.

    Weight and slant: -1 for the lower third of a digit's images, 1 for the upper, 0 for any.
    """

    text: str
    digits: frozenset[int]
    weight: int = 0
    slant: int = 0


_WEIGHTS = {-1: ("thin", "light", "fine"), 0: ("",), 1: ("bold", "thick", "heavy")}
_SLANTS = {-1: ("leaning left",), 0: ("",), 1: ("leaning right", "slanted")}


def random_caption(digit: int, weight: int, slant: int, dice: random.Random) -> Caption:
    """A caption that is true of an image of that digit; it says more or less of it."""
    weight = weight if dice.random() < 0.5 else 0
    slant = slant if dice.random() < 0.35 else 0
    digits = {digit}
    if dice.random() < 0.2:
        digits.add(dice.randrange(10))
    if dice.random() < 0.1:
        digits, nouns = set(range(10)), [dice.choice(("digit", "number"))]
    else:
        spell = dice.choice((NAMES.__getitem__, NAMES.__getitem__, str))
        nouns = [spell(d) for d in dice.sample(sorted(digits), len(digits))]
    front = dice.choice(("", "", "a", "the", "digit", "the digit", "number"))
    front = "a" if nouns[0] in ("digit", "number") and front else front
    words = [front, dice.choice(_WEIGHTS[weight]), " or ".join(nouns), dice.choice(_SLANTS[slant])]
    return Caption(" ".join(" ".join(words).split()), frozenset(digits), weight, slant)


@torch.no_grad()
def stroke(images: Tensor) -> Tensor:
    """Mean brightness and slant of digits, [B, 2]: slant is how far right a stroke goes upwards."""
    ink = (images[:, 0] + 1) / 2
    mass = ink.sum(dim=(1, 2)).clamp(min=1e-3)
    at = torch.linspace(-1, 1, images.shape[-1])
    x0, y0 = (ink.sum(1) @ at) / mass, (ink.sum(2) @ at) / mass
    dx, dy = at[None] - x0[:, None], at[None] - y0[:, None]  # [B, W], [B, H]
    across = torch.einsum("bhw,bh,bw->b", ink, dy, dx)
    down = torch.einsum("bhw,bh->b", ink, dy * dy).clamp(min=1e-3)
    return torch.stack([mass / images[0].numel(), -across / down], dim=1)


_THIRDS: dict[str, Tensor] = {}


def thirds(images: Tensor, labels: Tensor) -> Tensor:
    """Weight and slant of each image among those of its digit: -1, 0 or 1, [B, 2] int64."""
    value, limits = stroke(images), _THIRDS["limits"][labels]  # [B, 2], [B, 2 limits, 2]
    return (value > limits[:, 1]).long() - (value < limits[:, 0]).long()


def words_build(digits: Digits) -> nn.Module:
    """A fresh embedding; notes the limits of thin, bold and slanted among these digits."""
    value, at = stroke(digits.images), torch.tensor([1 / 3, 2 / 3])
    of_digit = [value[digits.labels == digit].quantile(at, dim=0) for digit in range(10)]
    _THIRDS["limits"] = torch.stack(of_digit)  # [10, 2, 2]
    return DigitWords().to(memory_format=torch.channels_last)


@cache
def _unet() -> nn.Module:
    return load_unet().to(memory_format=torch.channels_last)


@torch.no_grad()
def estimates(x0: Tensor, labels: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """What the denoiser of the package makes of noisy digits, [B, 1, 28, 28]."""
    noise = torch.randn(x0.shape, generator=generator)
    return _unet()(x0 + sigma[:, None, None, None] * noise, sigma, labels)


def _truth(captions: list[Caption], labels: Tensor, marks: Tensor) -> Tensor:
    """Whether each caption is true of each image, [B, N] float."""
    digits = torch.zeros(len(captions), 10)
    for row, caption in enumerate(captions):
        digits[row, list(caption.digits)] = 1
    true = digits.T[labels]  # [B, N]
    for place in (0, 1):
        said = torch.tensor([caption[2 + place] for caption in captions])[None]
        true = true * ((said == 0) | (said == marks[:, place, None])).float()
    return true


def _sigmoid_loss(model: nn.Module, images: Tensor, captions: list[Caption], true: Tensor):
    logits = model(images, [caption.text for caption in captions])
    return F.binary_cross_entropy_with_logits(logits, true, reduction="sum") / len(images)


def words_loss(model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean over images of the summed error of all captions of the batch."""
    dice = random.Random(int(torch.randint(2**31, (), generator=generator)))
    x0 = torch.cat([jitter(x0[: len(x0) // 2], generator), x0[len(x0) // 2 :]])
    marks = thirds(x0, labels)
    facts = zip(labels.tolist(), marks.tolist(), strict=True)
    captions = [random_caption(digit, *mark, dice) for digit, mark in facts]
    count = int(_ESTIMATED * len(x0))
    first = (len(x0) - count) // 2
    seen = slice(first, first + count)  # some that were moved, some that were not
    sigma = torch.rand(count, generator=generator) * math.log(5 / 0.1) + math.log(0.1)
    told = torch.where(torch.rand(count, generator=generator) < 0.6, NULL_LABEL, labels[seen])
    images = x0.clone()
    images[seen] = estimates(x0[seen], told, sigma.exp(), generator)
    level = 0.15 * torch.rand(len(x0), 1, 1, 1, generator=generator) ** 2
    images = images + level * torch.randn(x0.shape, generator=generator)
    return _sigmoid_loss(model, images, captions, _truth(captions, labels, marks))


@torch.no_grad()
def words_evaluate(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Held-out loss, and how often the right name, weight and slant has the highest score."""
    digits = Digits(digits.images[:500], digits.labels[:500])
    dice, marks = random.Random(0), thirds(digits.images, digits.labels)
    facts = zip(digits.labels.tolist(), marks.tolist(), strict=True)
    captions = [random_caption(digit, *mark, dice) for digit, mark in facts]
    true, loss = _truth(captions, digits.labels, marks), 0.0
    for rows in range(0, 500, 50):
        part = slice(rows, rows + 50)
        loss += _sigmoid_loss(model, digits.images[part], captions[part], true[part, part]).item()
    result = {"loss": loss / 10}
    names = model(digits.images, list(NAMES))
    result["name"] = (names.argmax(1) == digits.labels).double().mean().item()
    for place, texts in enumerate((("thin", "bold"), ("leaning left", "leaning right"))):
        some = marks[:, place] != 0
        texts = [f"a {t} digit" if place == 0 else f"a digit {t}" for t in texts]
        answer = model(digits.images[some], texts).argmax(1) * 2 - 1
        hit = (answer == marks[some, place]).double().mean().item()
        result[("weight", "slant")[place]] = hit
    noise = torch.Generator().manual_seed(0)
    null = torch.full_like(digits.labels, NULL_LABEL)
    for level in (0.5, 1.0, 2.0):
        seen = estimates(digits.images, null, torch.full((500,), level), noise)
        hit = model(seen, list(NAMES)).argmax(1) == digits.labels
        result[f"name@{level:g}"] = hit.double().mean().item()
    return result


def ink_build(digits: Digits) -> nn.Module:
    """A fresh classifier of one output, preconditioned for these digits."""
    config = ClassifierConfig(
        widths=(8, 16, 32),
        sigma_data=round(digits.images.std().item(), 4),
        data_mean=round(digits.images.mean().item(), 4),
        outputs=1,
    )
    return NoisyDigitClassifier(config).to(memory_format=torch.channels_last)


def _of_three(model: nn.Module, x0: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """The logits [B, 3] of three noisy channels, the first of which holds the digit."""
    channels = torch.cat([x0, torch.full_like(x0, -1).expand(-1, 2, -1, -1)], dim=1)
    channels = channels + sigma[:, None, None, None] * torch.randn(
        channels.shape, generator=generator
    )
    return model(channels.flatten(0, 1)[:, None], sigma.repeat_interleave(3)).view(-1, 3)


def ink_loss(model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean cross-entropy of which of three noisy channels holds the digit."""
    # Most channels are told apart up to sigma = 2, so that levels about there are drawn more often.
    sigma = draw_sigma(len(x0), generator)
    sigma = torch.where(torch.rand(len(x0), generator=generator) < 0.6, sigma * 6, sigma)
    logits = _of_three(model, x0, sigma.clamp(max=80.0), generator)
    return F.cross_entropy(logits, torch.zeros(len(x0), dtype=torch.long))


@torch.no_grad()
def ink_evaluate(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Held-out cross-entropy over fixed noise levels, and accuracy at a few of them."""
    noise = torch.Generator().manual_seed(0)
    zeros = torch.zeros(len(digits), dtype=torch.long)
    logits = _of_three(model, digits.images, fixed_sigma(len(digits)) * 6, noise)
    result = {"loss": F.cross_entropy(logits, zeros).item()}
    for level in (1.0, 2.0, 4.0, 8.0, 16.0):
        logits = _of_three(model, digits.images, torch.full((len(digits),), level), noise)
        result[f"accuracy@{level:g}"] = (logits.argmax(1) == 0).double().mean().item()
    return result


train_mnist.RECIPES = {
    "words": Recipe(words_build, words_loss, words_evaluate, 64, 2e-3, 0.05, (9.0, 20.0)),
    "ink": Recipe(ink_build, ink_loss, ink_evaluate, 32, 2e-3, 0.05, (9.0,)),
}

if __name__ == "__main__":
    sys.exit(train_mnist.main())
