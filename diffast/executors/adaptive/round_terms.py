"""Guidance terms of an adaptive run: their gradients at every sample's own time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffast.executors import terms
from diffast.executors.adaptive.tables import RoundTables
from diffast.executors.terms import Pullback, plain, spread
from diffast.guidance.guide import Point
from diffast.lowering.estimate import X0
from diffast.lowering.trial_steps import TrialTerm
from diffast.model.denoiser import Denoiser
from diffast.ops.schema import COUNTS
from diffast.plans.registers import X

CALLS = COUNTS.index("calls")


def trial_terms(denoiser: Denoiser) -> tuple[TrialTerm, ...]:
    """Returns the denoiser's guidance terms as a trial program has them."""
    return tuple(
        TrialTerm(term.through, None if callable(term.scale) else float(term.scale))
        for term in denoiser.guides
    )


class RoundTerms:
    """Evaluates the terms of a run in its rounds.

    Args:
        denoiser: whose guides they are.
    """

    def __init__(self, denoiser: Denoiser):
        """Settles what the terms read."""
        self.denoiser, self.terms = denoiser, denoiser.guides
        self.numbers = tuple(range(1, len(self.terms) + 1))
        self.graph = bool(terms.through(self.terms, self.numbers, "network"))

    @property
    def scales(self) -> list[Any]:
        """Returns the functions of the scales that depend on the time."""
        return [term.scales for term in self.terms if callable(term.scale)]

    def pullback(self, x: Any, answers: Mapping[str, Any], weights: Mapping[str, Any]) -> Pullback:
        """Returns the x0 estimate as a function of x.

        Args:
            x: the network's input [B, ...], which requires a gradient.
            answers: the network's outputs, made from it.
            weights: of x and the answers in the estimate, numbers or [B] each.
        """
        tensors, parts = {**answers, X: x}, []
        with torch.inference_mode(False):  # autograd saves no tensor that was made in it
            for name, weight in weights.items():
                if isinstance(weight, torch.Tensor):
                    weight = spread(plain(weight), x)
                parts.append((weight, tensors[name]))
        return Pullback.of(parts, x)

    def weights(self, tables: RoundTables) -> dict[str, torch.Tensor]:
        """Returns the weights [B] of x and the answers in the x0 estimate of a round."""
        estimate: Any = tables.traced.estimate
        found = tables.weights(estimate)[0][:, 0]
        return {name: found[:, k] for k, name in enumerate(estimate.columns)}

    def in_round(
        self, run: Any, tables: RoundTables, pulled: Pullback | None
    ) -> dict[str, torch.Tensor]:
        """Returns the gradients of a round by name."""
        size, levels = run.batch.size, tables.now["levels"]
        found = self.gradients(run, tables.told[:size], levels[:, 0], levels[:, 1], pulled)
        weights = levels[:, 2:].unbind(1)
        return {
            name: terms.where_weighed(g, weights[int(name[1:]) - 1]) for name, g in found.items()
        }

    def at_start(
        self, run: Any, times: np.ndarray, d: torch.Tensor, pulled: Pullback | None
    ) -> tuple[list[torch.Tensor], list[float]]:
        """Returns the gradients of the first call, and their weights in the x0 estimate d."""
        schedule, x = self.denoiser.schedule, run.batch.view[X]
        weights = self.denoiser.gradient_weights(times)[:, 0].tolist()
        numbers = [k for k, weight in enumerate(weights, 1) if weight != 0.0]
        time, alpha, sigma = (
            torch.full((len(x),), float(n[0]), dtype=x.dtype, device=x.device)
            for n in (times, schedule.alpha(times), schedule.sigma(times))
        )
        found = self.gradients(run, time, alpha, sigma, pulled, d, numbers)
        return list(found.values()), [weights[k - 1] for k in numbers]

    def gradients(
        self, run, time, alpha, sigma, pulled, x0=None, numbers=None
    ) -> dict[str, torch.Tensor]:
        """Returns the gradients at the points of the batch, whose times and levels are [B]."""
        batch = run.batch
        x = batch.view[X]
        alpha, sigma = (spread(plain(level), x) for level in (alpha, sigma))
        calls, ids = (plain(v) for v in (batch.now["counts"][:, CALLS], batch.now["streams"][:, 1]))
        time = plain(time).to(run.time_dtype)
        point = Point(x, time, alpha, sigma, ids, calls, owner=run.owner)
        point = point._replace(normals=terms.normals_of(point, run.seed))
        estimate = batch.view.get(X0) if x0 is None else x0
        where = f"sample_adaptive: round {run.rounds}"
        numbers = self.numbers if numbers is None else numbers
        return terms.gradients(where, self.terms, numbers, point, estimate, pulled)
