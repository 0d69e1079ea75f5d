"""Guidance terms where an executor stands at many times at once: their points and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from diffast import ops
from diffast.executors import context
from diffast.guidance.guide import Guide, Point


class Pullback:
    """An x0 estimate that torch can differentiate, and the state that it is a function of.

    Args:
        graph: the estimate [B, ...], with its graph.
        x: the state [B, ...], which requires a gradient.

    Attributes:
        x0: the estimate without its graph.
    """

    def __init__(self, graph: torch.Tensor, x: torch.Tensor):
        """Keeps both."""
        self.graph, self.x, self.x0 = graph, x, graph.detach()

    @classmethod
    def of(cls, parts: Iterable[tuple[Any, torch.Tensor]], x: torch.Tensor) -> Pullback:
        """Returns the sum of weight times tensor as a function of x, from which these were made.

        A weight is a number, or a tensor that fits the state.
        """
        return cls(weighted_sum(parts, x), x)

    def pull(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns J^T v for v [B, ...], J the Jacobian of the x0 estimate in x."""
        with torch.inference_mode(False), torch.enable_grad():
            vector = vector.to(self.graph.dtype)
            (found,) = torch.autograd.grad(self.graph, self.x, vector, retain_graph=True)
        return found


def weighted_sum(parts: Iterable[tuple[Any, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    """Returns the sum of weight times tensor in the dtype of x, with its graph."""
    with torch.inference_mode(False), torch.enable_grad():
        made = [weight * tensor.to(x.dtype) for weight, tensor in parts]
        graph = made[0]
        for part in made[1:]:
            graph = graph + part
    return graph


def spread(values: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """Returns numbers of the samples [B] as [B, 1, ...] of the state's dtype."""
    return values.to(state.dtype).reshape(-1, *[1] * (state.dim() - 1))


def through(terms: Sequence[Guide], numbers: Iterable[int], kind: str) -> list[int]:
    """Returns the numbers, from 1, of the terms whose gradient is taken through `kind`."""
    return [k for k in numbers if terms[k - 1].through == kind]


def gradients(
    where: str,
    terms: Sequence[Guide],
    numbers: Iterable[int],
    point: Point,
    x0: torch.Tensor | None = None,
    pulled: Pullback | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> dict[str, torch.Tensor]:
    """Returns the gradients of the terms [B, ...], in the memory format, as g1, g2 ...

    Args:
        where: the public function and the stage, for messages.
        terms: all of them.
        numbers: those that are asked for, from 1.
        point: where; its x0 and pull are filled in here.
        x0: the estimate that terms of through="x0" read.
        pulled: for terms of through="network".
        memory_format: how the gradients have to lie; one that does not is copied.

    Raises:
        ValueError: for a gradient that is no tensor like the state; a term that writes into x.
    """
    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        # Autograd saves no tensor of inference mode. Without that mode x counts its writes.
        x = point.x.clone() if point.x.is_inference() else point.x
        estimate = x0.clone() if x0 is not None and x0.is_inference() else x0
        given = (point.time, point.alpha, point.sigma, point.ids, estimate)
        given = given if pulled is None else (*given, pulled.x0)
        for k in numbers:
            term = terms[k - 1]
            watched = Watched(where, x, *given, *found.values())
            at = point._replace(x=x)
            if term.through == "x0":
                at = at._replace(x0=estimate)
            elif term.through == "network":
                assert pulled is not None  # the executor has looked
                at = at._replace(x0=pulled.x0, pull=pulled.pull)
            made = term.gradient(at)
            complaint = context.unlike(f"the gradient of guidance term {k} ({term.name})", made, x)
            if complaint is not None:
                raise ValueError(f"{where}: {complaint}")
            watched.check(k, term)
            found[f"g{k}"] = made.detach().contiguous(memory_format=memory_format)
    return found


class Watched:
    """The tensors that a guidance term is told, and the gradients of the terms before it.

    Args:
        where: the public function and the stage, for messages.
        x: the state.
        others: tensors beside it; None and tensors of inference mode are not watched.
    """

    def __init__(self, where: str, x: torch.Tensor, *others: torch.Tensor | None):
        """Notes how often each was written to."""
        self.where, self.x = where, x
        self.others = [t for t in others if t is not None and not t.is_inference()]
        self.before = [t._version for t in (x, *self.others)]

    def check(self, k: int, term: Guide) -> None:
        """Raises ValueError if term k wrote into one of them."""
        if self.x._version != self.before[0]:
            raise ValueError(
                f"{self.where}: a guidance term wrote into the state, but the solver still needs "
                "it: give it a copy"
            )
        if any(t._version != n for t, n in zip(self.others, self.before[1:], strict=True)):
            raise ValueError(
                f"{self.where}: guidance term {k} ({term.name}) wrote into a tensor that it was "
                "given, or into the gradient of a term before it: give it a copy"
            )


def where_weighed(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the gradient [B, ...] with zeros in rows whose weight [B] is 0.

    Sums take every column, and a zero times NaN is NaN.
    """
    return torch.where(spread(weights, gradient) != 0.0, gradient, torch.zeros_like(gradient))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy that autograd can save, also of a tensor that inference mode made."""
    with torch.inference_mode(False):
        return tensor.clone()


def normals_of(point: Point, seed: int | torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Returns the point's `normals`: those of `df.sample` at the same stage.

    Args:
        point: its stage is a number, or one for each sample.
        seed: folded; a number, or one for each sample.
    """

    def normals(k: int) -> torch.Tensor:
        x, word = point.x, ops.GUIDANCE_NOISE + (point.stage << 8) + k
        with torch.inference_mode(False), torch.no_grad():
            words = (torch.zeros_like(point.ids) + word for word in (seed, point.ids, word))
            streams = torch.stack([*words], 1)
            keep = torch.zeros((len(x), 1, 1), dtype=torch.float64, device=x.device)
            blank = torch.zeros_like(x)
            return ops.combine_table([blank], keep, torch.ones_like(keep), streams, [])[0]

    return normals


def terms_of(denoiser: Any) -> tuple[Guide, ...]:
    """Returns the guidance terms of what says what outputs mean; none of a `Prediction`."""
    return tuple(getattr(denoiser, "guides", ()))
