"""Two digit classifiers: a noise-aware one that guides, and a clean one that judges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffast.digits.unet import check_images, noise_features, scalings


@dataclass(frozen=True)
class ClassifierConfig:
    """The numbers that fix a ``NoisyDigitClassifier``.

    Attributes:
        widths: channels at 28x28, 14x14 and 7x7, multiples of 8.
        embed: width of the embedding of the noise level.
        sigma_data: standard deviation of the training pixels, in data units.
        data_mean: their mean, removed before the scaling.
        outputs: how many logits: the ten digits, or 1 for a log-odds.
    """

    widths: tuple[int, int, int] = (16, 32, 64)
    embed: int = 64
    sigma_data: float = 0.62
    data_mean: float = -0.735
    outputs: int = 10


@dataclass(frozen=True)
class JudgeConfig:
    """The numbers that fix a ``DigitJudge``.

    Attributes:
        widths: channels of the three convolutions.
        features: width of ``DigitJudge.features``.
        dropout: on the features, while training.
    """

    widths: tuple[int, int, int] = (24, 48, 64)
    features: int = 64
    dropout: float = 0.2


class NoisyDigitClassifier(nn.Module):
    """Classifies noisy digits of any noise level: ``classifier(x, t) -> logits``.

    The schedule is that of ``DigitUNet``: alpha = 1, sigma = t. All its activations are smooth, so
    that the gradient of its log-probability in ``x`` is fit for guidance.
    """

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        """A network with fresh weights; ``load_classifier`` returns the trained one."""
        super().__init__()
        self.config = config = config or ClassifierConfig()
        outer, middle, inner = config.widths
        self.noise = nn.Linear(32, config.embed)
        shapes = ((1, outer, 1), (outer, middle, 2), (middle, middle, 1))
        shapes += ((middle, inner, 2), (inner, inner, 1), (inner, inner, 1))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in shapes)
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for _, b, _ in shapes)
        self.affines = nn.ModuleList(nn.Linear(config.embed, 2 * b) for _, b, _ in shapes)
        self.mix = nn.Linear(inner * 9, inner)
        self.head = nn.Linear(inner, config.outputs)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The logits, [B, 10] or [B, outputs], dtype of ``x``; differentiable in ``x``.

        Args:
            x: noisy images in data units, [B, 1, 28, 28].
            t: noise level sigma of each image, same unit as ``x``, [B]; 0 is allowed.

        Raises:
            ValueError: the shapes do not fit.
        """
        check_images("NoisyDigitClassifier", x)
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"NoisyDigitClassifier: {x.shape[0]} images but t is {list(t.shape)}, not [B]"
            )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        narrow = self.head.weight.dtype
        sigma = t.to(wide)
        c_in = scalings(sigma, self.config.sigma_data)[2][:, None, None, None]
        y = (c_in * (x.to(wide) - self.config.data_mean)).to(narrow)
        e = F.silu(self.noise(noise_features(sigma, 32).to(narrow)))  # [B, E]
        for conv, norm, affine in zip(self.convs, self.norms, self.affines, strict=True):
            scale, shift = affine(e)[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1]
            z = F.silu(torch.addcmul(shift, norm(conv(y)), scale + 1))
            y = y + z if y.shape == z.shape else z
        # Windows of 3 at steps of 2 keep where a stroke is; a mean over 7x7 would lose it.
        y = F.avg_pool2d(y, 3, stride=2).flatten(1)  # [B, 9 inner]
        return self.head(F.silu(self.mix(y))).to(x.dtype)


class DigitJudge(nn.Module):
    """Classifies clean digits: ``judge(x) -> logits``; for measuring quality only.

    Shares neither architecture nor seed with the networks it judges.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        """A network with fresh weights; ``load_judge`` returns the trained one."""
        super().__init__()
        self.config = config = config or JudgeConfig()
        first, second, third = config.widths
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.squeeze = nn.Linear(third * 9, config.features)
        self.head = nn.Linear(config.features, 10)

    def features(self, x: Tensor) -> Tensor:
        """The layer below the logits before its activation, [B, features].

        Args:
            x: clean images in data units, [B, 1, 28, 28].

        Raises:
            ValueError: ``x`` has another shape.
        """
        check_images("DigitJudge", x)
        y = F.max_pool2d(F.relu(self.conv1(x)), 2)  # [B, first, 14, 14]
        y = F.max_pool2d(F.relu(self.conv2(y)), 2)  # [B, second, 7, 7]
        y = F.max_pool2d(F.relu(self.conv3(y)), 2)  # [B, third, 3, 3]
        return self.squeeze(y.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the ten digits, [B, 10]; arguments and errors as of ``features``."""
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """The logits, [B, 10], of what ``features`` returned."""
        return self.head(F.dropout(F.relu(features), self.config.dropout, self.training))
