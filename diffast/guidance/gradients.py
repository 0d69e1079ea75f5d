"""Guidance terms from a function: a gradient, a classifier, a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from diffast.guidance.guide import Guide, Point

Scale = float | Callable[[float], float]


def gradient(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], scale: Scale = 1.0
) -> Guide:
    """Returns the term of a gradient that is known: function(x, t) = grad log p(condition | x).

    Args:
        function: (x [B, ...], t [B]) -> [B, ...].
        scale: s, or a function of the model time.

    Raises:
        ValueError: what `Guide` raises.
    """
    if not callable(function):
        raise ValueError(
            f"guidance.gradient: function is a {type(function).__name__} but must be callable"
        )
    return Guide(lambda at: function(at.x, at.time), scale, "x", "guidance.gradient")


def classifier(
    network: Callable[..., torch.Tensor],
    labels: Any,
    scale: Scale = 1.0,
    *,
    temperature: float = 1.0,
) -> Guide:
    """Returns the term of a noise-aware classifier: the gradient of log p(label | x, t) in x.

    Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", section 4.1. Only the
    classifier is differentiated.

    Args:
        network: (x [B, ...], t [B]) -> logits [B, classes].
        labels: class of each sample, [B] or one for all: an int or an int64 tensor.
        scale: s, or a function of the model time.
        temperature: the logits are divided by it.

    Raises:
        ValueError: at the first call, labels of another length than the batch, or logits of another
            shape; what `Guide` raises.
    """
    who = "guidance.classifier"
    try:
        given = isinstance(labels, torch.Tensor)
        wanted = labels if given else torch.as_tensor(labels, device="cpu")
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{who}: labels is {labels!r}, not an int or int64 [B]") from None
    if wanted.is_floating_point() or wanted.dtype == torch.bool or wanted.dim() > 1:
        raise ValueError(f"{who}: labels are {wanted.dtype} {list(wanted.shape)}, not int64 [B]")
    wanted = wanted.long()
    # Looked at once, here: an index out of range ends a CUDA process.
    known = wanted.numel() > 0 and not wanted.is_meta
    low, high = (int(wanted.min()), int(wanted.max())) if known else (0, 0)

    def ascent(at: Point) -> torch.Tensor:
        own = at.own(who, "labels", wanted.reshape(-1).to(at.x.device))

        def log_density(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            logits = network(x, t)
            if logits.dim() != 2 or len(logits) != len(x):
                raise ValueError(
                    f"{who}: {len(x)} samples but the classifier returned {list(logits.shape)}, "
                    "not [B, classes]"
                )
            if low < 0 or high >= logits.shape[1]:
                raise ValueError(
                    f"{who}: the labels hold {low if low < 0 else high} but the classifier has "
                    f"{logits.shape[1]} classes, from 0"
                )
            return functional.log_softmax(logits / temperature, 1).gather(1, own[:, None])[:, 0]

        return slope(who, log_density, at.x, at.time)

    return Guide(ascent, scale, "x", who)


def loss(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scale: Scale = 1.0,
    *,
    through: str = "network",
) -> Guide:
    """Returns the term of a loss of the x0 estimate: minus its gradient.

    Args:
        function: (x0 [B, ...], t [B]) -> loss [B], differentiable in x0.
        scale: s, or a function of the model time.
        through: "network": the gradient in x, through the network (Chung et al. 2023, DPS); "x0":
            the gradient in the x0 estimate alone (He et al. 2024, MPGD); "x": the function is given
            the noisy state x in place of the estimate.

    Raises:
        ValueError: at the first call, a loss of another shape than [B]; what `Guide` raises.
    """
    who = "guidance.loss"
    if not callable(function):
        raise ValueError(f"{who}: function is a {type(function).__name__} but must be callable")

    def descent(at: Point) -> torch.Tensor:
        place = at.x if at.x0 is None else at.x0
        made = -slope(who, function, place, at.time)
        return made if at.pull is None else at.pull(made)

    return Guide(descent, scale, through, who)


def slope(
    who: str,
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """Returns the gradient of function(x, t) [B], each sample's own, in x [B, ...].

    Raises:
        ValueError: if the function returns another shape than [B], or nothing that depends on x.
    """
    return value_and_slope(who, function, x, t)[1]


def value_and_slope(
    who: str,
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    t: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns function(x, t) [B] without a graph, and its gradient as `slope` does."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().requires_grad_()
        made = function(x, t)
        if not isinstance(made, torch.Tensor) or made.shape != x.shape[:1]:
            got = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise ValueError(f"{who}: {len(x)} samples but the function returned {got}, not [B]")
        if not made.requires_grad:
            raise ValueError(
                f"{who}: what the function returned does not depend on its input by operations "
                "that torch can differentiate"
            )
        (found,) = torch.autograd.grad(made.sum(), x)
    return made.detach(), found
