"""Guidance terms of a bound run: where their gradients are taken, and network calls that need one.

A term's gradient is torch's own business (autograd). What is made of it is a column of the stage's
`combine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors import context, terms
from diffast.executors.terms import Pullback
from diffast.guidance.guide import Guide, Point
from diffast.lowering.evaluations import BRANCHES, branch_names
from diffast.lowering.program import Stage
from diffast.model.denoiser import Denoiser
from diffast.model.times import told_time
from diffast.plans.registers import X


class Guides:
    """The guidance terms of one run.

    Args:
        denoiser: the network and its guides.
        stages: of the lowered plan.
        place: what the tensors are.
    """

    def __init__(self, denoiser: Denoiser, stages: Sequence[Stage], place: context.Place):
        """Makes the numbers that terms are told at every stage."""
        self.denoiser, self.place, self.stages = denoiser, place, stages
        self.terms: Sequence[Guide] = denoiser.guides
        # Whether terms may draw noise. A graph would hold the seed that it was captured with.
        self.draws = True
        told = np.array([np.nan if s.gradient_time is None else s.gradient_time for s in stages])
        timed = np.flatnonzero(~np.isnan(told))
        levels = np.full((3, len(told)), np.nan)
        levels[0, timed] = told[timed]
        levels[1, timed] = denoiser.schedule.alpha(told[timed])
        levels[2, timed] = denoiser.schedule.sigma(told[timed])
        with torch.inference_mode(False):
            self.levels = torch.tensor(levels, dtype=place.dtype, device=place.device)
        # The weights of x and the outputs in the estimates that are pulled back.
        self.estimates = {
            i: self._estimate(stage) for i, stage in enumerate(stages) if self.through_network(i)
        }

    def _estimate(self, stage: Stage) -> dict[str, float]:
        """Returns the x0 estimate of a stage over x and the branches' outputs.

        A row of the stage will not do: stages of gradients alone have none.
        """
        a, b = (float(w[0]) for w in self.denoiser.affine(np.array([stage.time])))
        weights = self.denoiser.weights_at(stage.time)  # raises for a rule that reduces
        return {X: a} | {name: b * w for name, w in zip(BRANCHES, weights, strict=True)}

    def through_network(self, i: int) -> bool:
        """Returns whether a term of stage i is pulled back through the network."""
        return bool(terms.through(self.terms, self.stages[i].gradients, "network"))

    def calls(self, stages: int | None = None) -> int:
        """Returns how many network calls the first stages make for the terms alone."""
        found = enumerate(self.stages[:stages])
        return sum(not stage.times and self.through_network(i) for i, stage in found)

    def point(self, i: int, x: torch.Tensor) -> Point:
        """Returns where the gradients of stage i are taken."""
        batch, dims = len(x), x.dim()
        time, alpha, sigma = self.levels[:, i]
        alpha, sigma = (v.expand(batch).view(batch, *[1] * (dims - 1)) for v in (alpha, sigma))
        shape, dtype, _, ids, seed, _ = self.place

        def normals(k: int) -> torch.Tensor:
            word = ops.GUIDANCE_NOISE + (i << 8) + k
            return ops.normal(shape, seed=seed, stage=word, ids=ids, dtype=dtype)

        drawn = normals if self.draws else None
        return Point(x, time.expand(batch), alpha, sigma, ids, i, normals=drawn)

    def gradients(
        self,
        i: int,
        x: torch.Tensor,
        x0: torch.Tensor | None,
        pulled: Pullback | None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> dict[str, torch.Tensor]:
        """Returns the gradients of stage i by name, see `terms.gradients`.

        Args:
            i: number of the stage.
            x: the state.
            x0: the x0 estimate as the step takes it; None where no term reads it.
            pulled: from `pulled`, where a term is pulled through the network.
            memory_format: how the gradients have to lie.
        """
        numbers, at = self.stages[i].gradients, self.point(i, x)
        where = f"sample: stage {i}"
        return terms.gradients(where, self.terms, numbers, at, x0, pulled, memory_format)

    def pulled(
        self, i: int, x: torch.Tensor, calls: list, branches: str, memory_format: Any
    ) -> Pulled:
        """Returns the outputs of the branches at x, with what pulls vectors back to x.

        `calls` are (network, its branches, its conditions), one a network.
        """
        return Pulled(self, i, x, calls, branches, memory_format)


class Pulled(Pullback):
    """A network call through which vectors are pulled back.

    Attributes:
        outputs: of the branches, in one batch, without gradients.
    """

    def __init__(self, guides: Guides, i: int, x, calls, branches: str, memory_format):
        """Calls the networks and keeps their graph."""
        denoiser, time = guides.denoiser, guides.stages[i].time
        made: dict[str, torch.Tensor] = {}
        with torch.inference_mode(False), torch.enable_grad():
            leaf = _saveable(x).detach().requires_grad_()
            for network, own, arguments in calls:
                # Autograd saves no tensor that was made in inference mode, as conditions may be.
                arguments = context.on_rows(arguments, _saveable)
                names = branch_names(own)
                rows = leaf if len(names) == 1 else torch.cat([leaf] * len(names))
                rows = rows.to(denoiser.dtype or x.dtype)
                told = told_time(denoiser.schedule, time, x.dtype)
                t = torch.full((len(rows),), told, dtype=x.dtype, device=x.device)
                output = denoiser.call(rows, t, arguments, memory_format, network)
                made |= zip(names, output.split(len(x)), strict=True)
        row = {n: w for n, w in guides.estimates[i].items() if n == X or (n in made and w != 0.0)}
        _check_graph(guides, [made[name] for name in row if name != X])
        parts = [(weight, leaf if name == X else made[name]) for name, weight in row.items()]
        super().__init__(terms.weighted_sum(parts, leaf), leaf)
        outputs = [made[name].detach() for name in branch_names(branches)]
        self.outputs = outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _saveable(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, or a copy that autograd can save."""
    return tensor.clone() if tensor.is_inference() else tensor


def _check_graph(guides: Guides, outputs: list[torch.Tensor]) -> None:
    """Raises ValueError where the outputs that an estimate weighs have no graph from x."""
    if not outputs or any(output.requires_grad for output in outputs):
        return
    term = next(term for term in guides.terms if term.through == "network")
    raise ValueError(
        f"sample: {term.name} takes its gradient through the network, but the network's output "
        "does not depend on its input by operations that torch can differentiate: is it called "
        "under torch.no_grad, or its output detached?"
    )
