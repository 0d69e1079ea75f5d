"""The network on rows, with the gradients of guidance terms in its outputs.

A sweep weighs the network's outputs alone. The x0 estimate is a x + sum of b_j output_j, so a
gradient g with the weight W in the estimate is W / sum b_j times g in every output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors import terms
from diffast.executors.context import Place
from diffast.executors.parallel.batched_network import BatchedNetwork, RunChunks
from diffast.executors.terms import Pullback, plain, spread
from diffast.guidance.guide import Point
from diffast.lowering.sweep_tables import Tables
from diffast.model.denoiser import Denoiser

# Columns of the numbers of a row, before those of the outputs and of the terms.
ALPHA, SIGMA, OWN, FIRST = range(4)


class GuidedNetwork(BatchedNetwork):
    """A batched network whose outputs hold the gradients of the denoiser's guidance terms.

    Args:
        denoiser: with guides.
        times: [S] model times of the plan's calls.
        tables: of the plan: they say what the outputs are in the x0 estimate.
        place: of the run.
        batch_size: as for `BatchedNetwork`.
        run_chunks: as for `BatchedNetwork`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: np.ndarray,
        tables: Tables,
        place: Place,
        batch_size: int | None,
        run_chunks: RunChunks | None,
    ):
        """Makes the numbers of every stage."""
        super().__init__(denoiser, times, tables.outputs, place, batch_size, run_chunks)
        self.terms, self.place, self.count = denoiser.guides, place, len(tables.outputs)
        self.used = range(1, len(self.terms) + 1)
        self.graph = bool(terms.through(self.terms, self.used, "network"))
        levels = denoiser.schedule.alpha(times), denoiser.schedule.sigma(times)
        slope = tables.slope.sum(axis=1)
        weights = denoiser.gradient_weights(times)
        shares = np.divide(weights, slope, out=np.zeros_like(weights), where=slope != 0.0)
        self.numbers = np.stack([*levels, tables.own, *tables.slope.T, *shares], axis=1)

    def orders(self, stage: np.ndarray, sample: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays that a call needs on the device; see `BatchedNetwork`."""
        numbers = {"numbers": self.numbers[stage], "stage": stage.astype(np.int64)}
        return {"times": self.times[stage], "sample": sample} | numbers

    def _call(self, x: torch.Tensor, sent: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        if not self.graph:
            return self._guided(x, super()._call(x, sent), sent, None)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = plain(x).requires_grad_()
            outputs = super()._call(leaf, {name: plain(tensor) for name, tensor in sent.items()})
            pulled = Pullback(self._estimate(leaf, outputs, plain(sent["numbers"])), leaf)
        return self._guided(x, [output.detach() for output in outputs], sent, pulled)

    def _estimate(self, x: Any, outputs: list[torch.Tensor], numbers: torch.Tensor) -> Any:
        """Returns the x0 estimate in plain torch."""
        found = spread(numbers[:, OWN], x) * x
        for k, output in enumerate(outputs):
            found = found + spread(numbers[:, FIRST + k], x) * output.to(x.dtype)
        return found

    def _guided(self, x, outputs, sent, pulled: Pullback | None) -> list[torch.Tensor]:
        """Returns the outputs with the gradients in them."""
        numbers, sample, stage, time = map(
            plain, (sent["numbers"], sent["sample"], sent["stage"], sent["times"])
        )
        alpha, sigma = (spread(numbers[:, k], x) for k in (ALPHA, SIGMA))
        ids = self.place.ids[sample]
        point = Point(plain(x), time, alpha, sigma, ids, stage, owner=sample)
        point = point._replace(normals=terms.normals_of(point, self.place.seed))
        x0 = None
        if terms.through(self.terms, self.used, "x0"):
            x0 = self._estimate(x, outputs, numbers)
        where = "sample_parallel"
        found = terms.gradients(where, self.terms, self.used, point, x0, pulled)
        shares = numbers[:, FIRST + self.count :]
        each = zip(found.values(), shares.unbind(1), strict=True)
        gradients = [terms.where_weighed(g.to(x.dtype), share) for g, share in each]
        weights = torch.cat([torch.ones_like(shares[:, :1]), shares], 1)[:, None]
        sums = (ops.combine_table([o, *gradients], weights, None, None, []) for o in outputs)
        return [made[0].to(x.dtype) for made in sums]
