"""The quality of sampled digits, measured with ``DigitJudge``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffast.digits.classifier import DigitJudge

_CHUNK = 250  # images a forward pass: some 20 MB of activations


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Frechet (2-Wasserstein) distance of Gaussians fitted to two feature sets.

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` in float64, Dowson and Landau 1982, as
    used by Heusel et al. 2017 (arXiv:1706.08500). It is biased upwards for few rows and its unit
    is that of the features: compare values of one judge at one number of rows only.

    Args:
        a: features, [N, F], N > F for covariances of full rank.
        b: features, [M, F], M > F.

    Raises:
        ValueError: not two matrices of one width, too few rows, or values that are not finite.
    """
    for name, rows in (("a", a), ("b", b)):
        if rows.dim() != 2:
            raise ValueError(f"frechet_distance: {name} is {list(rows.shape)}, not [N, F]")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"frechet_distance: a has {a.shape[1]} features but b has {b.shape[1]}")
    for name, rows in (("a", a), ("b", b)):
        if rows.shape[0] <= rows.shape[1]:
            raise ValueError(
                f"frechet_distance: {name} has {rows.shape[0]} rows of {rows.shape[1]} features, "
                f"not more rows than features"
            )
        if not torch.isfinite(rows).all():
            raise ValueError(f"frechet_distance: {name} holds values that are not finite")
    (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
    # tr (C_a C_b)^(1/2) = tr (R C_b R)^(1/2) with R = C_a^(1/2): symmetric, so eigh will do.
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * product
    # Rounding leaves about -1e-14 for equal sets.
    return max(distance.item(), 0.0)


def judge_features(judge: DigitJudge, images: Tensor) -> Tensor:
    """The judge's features [N, F] of images [N, 1, 28, 28], in chunks and without gradient."""
    return _in_chunks(judge.features, judge, images)


def class_accuracy(judge: DigitJudge, images: Tensor, labels: Tensor) -> float:
    """The share of the images whose label is the judge's answer.

    Args:
        judge: as ``load_judge`` returns it.
        images: clean images in data units, [N, 1, 28, 28], N > 0.
        labels: the digits asked for, [N] int64.

    Raises:
        ValueError: no images, or as many labels as images are not given.
    """
    _check_labels("class_accuracy", images, labels)
    hits = _in_chunks(judge, judge, images).argmax(dim=1) == labels
    return hits.double().mean().item()


def measure(
    judge: DigitJudge, images: Tensor, labels: Tensor, reference_images: Tensor
) -> dict[str, float]:
    """The quality of sampled digits: ``frechet`` distance, ``accuracy`` and ``confidence``.

    ``confidence`` is the mean probability that the judge gives to the digit asked for.

    Args:
        judge: as ``load_judge`` returns it.
        images: sampled images in data units, [N, 1, 28, 28].
        labels: the digits asked for, [N] int64.
        reference_images: real images, [M, 1, 28, 28].

    Raises:
        ValueError: as ``frechet_distance`` and ``class_accuracy``.
    """
    _check_labels("measure", images, labels)
    features = judge_features(judge, images)
    logits = _in_chunks(judge.classify, judge, features)
    chosen = logits.double().softmax(dim=1).gather(1, labels[:, None])
    return {
        "frechet": frechet_distance(features, judge_features(judge, reference_images)),
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
        "confidence": chosen.mean().item(),
    }


@torch.no_grad()
def _in_chunks(function: Callable[[Tensor], Tensor], judge: DigitJudge, rows: Tensor) -> Tensor:
    """``function`` of all rows, in the dtype and on the device of the judge."""
    weight = judge.head.weight
    return torch.cat([function(part.to(weight)) for part in rows.split(_CHUNK)])


def _check_labels(who: str, images: Tensor, labels: Tensor) -> None:
    """Raises ValueError unless there is one label an image, and an image."""
    if images.shape[0] == 0:
        raise ValueError(f"{who}: no images")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{who}: {images.shape[0]} images but labels is {list(labels.shape)}")


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and unbiased covariance [F, F] of the rows, float64."""
    rows = rows.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (rows.shape[0] - 1)
