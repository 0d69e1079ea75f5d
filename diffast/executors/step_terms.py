"""Guidance terms of a `Stepper`: which a step weighs, and their gradients at a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.executors import terms
from diffast.executors.terms import Pullback, spread, terms_of
from diffast.guidance.guide import Guide, Point
from diffast.lowering.evaluations import OUTPUTS, branch_names
from diffast.lowering.program import Program
from diffast.lowering.step_table import FIXED, StepCall


class Needs(NamedTuple):
    """What a step is made of.

    Attributes:
        network: whether it weighs an output of the network.
        terms: numbers, from 1, of the guidance terms whose gradients it weighs.
        graph: whether a term is taken through the network, whose output then needs its graph.
    """

    network: bool
    terms: tuple[int, ...]
    graph: bool


class StepTerms:
    """The guidance terms of a stepper's plans, and the numbers that they are told.

    Args:
        pairs: the plans, and what says what the network's outputs mean.
        calls: all stages of all plans; None among them is a plan's end.
        first: each plan's first stage.

    Raises:
        ValueError: denoisers whose terms differ: a batch has one gradient of each number.
    """

    def __init__(
        self, pairs: Sequence[tuple[Any, Any]], calls: list[StepCall | None], first: list[int]
    ):
        """Settles the numbers of every stage."""
        self.terms: tuple[Guide, ...] = ()
        for plan, read in pairs:
            own = terms_of(read)
            if own and self.terms and own != self.terms:
                raise ValueError(
                    f"Stepper: plan {plan.name} comes with other guidance terms than a plan before "
                    "it, but all samples of a batch have the same: give one stepper each its own"
                )
            self.terms = own or self.terms
        self.calls = calls
        self.needs = [self._needs(call) for call in calls]
        # Rows of (alpha, sigma), and the weights of the estimate that is pulled back.
        self.levels = np.ones((len(calls), 2))
        self.pulled: list[dict[int, float]] = [{} for _ in calls]
        for (_, read), begin, end in zip(pairs, first, [*first[1:], len(calls)], strict=True):
            for row in range(begin, end):
                call = calls[row]
                if call is not None and call.gradients:
                    self._add(row, call, read)
        self.union = Needs(
            any(need.network for need in self.needs),
            tuple(sorted({k for need in self.needs for k in need.terms})),
            any(need.graph for need in self.needs),
        )
        self._masks: torch.Tensor | None = None
        self._tables: tuple[torch.Tensor, torch.Tensor, tuple[int, ...]] | None = None

    def _needs(self, call: StepCall | None) -> Needs:
        if call is None:
            return Needs(False, (), False)
        graph = bool(terms.through(self.terms, call.gradients, "network"))
        return Needs(call.calls_network or graph, call.gradients, graph)

    def _add(self, row: int, call: StepCall, read: Any) -> None:
        """Notes the levels of a stage, and the estimate that its terms pull back."""
        time = np.array([call.time])
        self.levels[row] = float(read.schedule.alpha(time)[0]), float(read.schedule.sigma(time)[0])
        if not self.needs[row].graph:
            return
        read_weights = read.weights_at(call.time)  # raises for a rule that reduces
        if call.calls_network:
            self.pulled[row] = dict(zip(call.x0_columns, call.x0_weights, strict=True))
            return
        a, b = (float(weight[0]) for weight in read.affine(time))
        weights = zip(OUTPUTS, read_weights, strict=False)
        self.pulled[row] = {FIXED.index("x"): a}
        self.pulled[row] |= {FIXED.index(name): b * w for name, w in weights if w != 0.0}

    def counts(self, programs: Sequence[Program]) -> list[tuple[int, int]]:
        """Returns how many network calls come before every row, and rows of their batches."""
        found, row = [], 0
        for program in programs:
            widest = max((len(branch_names(b)) for b in program.branches), default=1)
            calls = rows = 0
            for stage in program.stages:
                found.append((calls, rows))
                called, row = self.needs[row].network, row + 1
                calls += called
                rows += called * (len(branch_names(stage.branches)) or widest)
            found.append((calls, rows))
            row += 1  # the plan's end
        return found

    def of(self, row: int | torch.Tensor) -> Needs:
        """Returns what a step needs: of samples at different stages, what any of them needs."""
        return self.needs[row] if isinstance(row, int) else self.union

    def tables(self, put: Any) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """Returns the levels [R, 2], the pulled estimates [R, columns] and their columns."""
        if self._tables is None:
            columns = tuple(sorted({k for weights in self.pulled for k in weights}))
            pulled = np.array([[w.get(k, 0.0) for k in columns] for w in self.pulled])
            pulled = pulled.reshape(len(self.pulled), len(columns))
            self._tables = (
                put(torch.from_numpy(self.levels)),
                put(torch.from_numpy(pulled)),
                columns,
            )
        return self._tables

    def weighed(self, row: torch.Tensor, found: dict[str, torch.Tensor], put: Any) -> dict:
        """Returns the gradients with zeros for samples whose stage does not weigh them.

        Sums take every column of the table, and a zero times NaN is NaN.
        """
        if self._masks is None:
            masks = [[k in need.terms for k in range(1, 10)] for need in self.needs]
            self._masks = put(torch.tensor(masks, device="cpu"))
        masks: Any = self._masks
        mask = masks[row]
        shape = (-1, *[1] * (next(iter(found.values())).dim() - 1))
        return {
            name: torch.where(mask[:, int(name[1:]) - 1].reshape(shape), g, torch.zeros_like(g))
            for name, g in found.items()
        }

    def point(self, state: Any, time: torch.Tensor, stage: Any, put: Any) -> Point:
        """Returns where the gradients of a state are taken."""
        if isinstance(state.row, int):
            one = torch.ones((len(state.x), *[1] * (state.x.dim() - 1)), device=state.x.device)
            alpha, sigma = (one.to(state.x.dtype) * level for level in self.levels[state.row])
        else:
            alpha, sigma = (spread(v, state.x) for v in self.tables(put)[0][state.row].unbind(1))
        point = Point(state.x, time, alpha, sigma, state.ids, stage)
        return point._replace(normals=terms.normals_of(point, state.seed))

    def pullback(self, state: Any, x: Any, outputs: dict[int, torch.Tensor], put: Any) -> Pullback:
        """Returns the estimate of a state as a function of x, through which it was made.

        Raises:
            ValueError: an output without a graph from x.
        """
        need = "call the network on x = state.x.detach().requires_grad_() with gradients enabled, "
        need += "and give x too"
        graphs = [k for k, output in outputs.items() if output.requires_grad]
        if not isinstance(x, torch.Tensor) or not x.requires_grad or not graphs:
            raise ValueError(
                "Stepper: a guidance term is taken through the network, but the output has no "
                f"graph from x: {need}"
            )
        if x.shape != state.x.shape:
            raise ValueError(
                f"Stepper: x is {list(x.shape)} but the state is {list(state.x.shape)}"
            )
        tensors = outputs | {FIXED.index("x"): x}
        if isinstance(state.row, int):
            weights: list[tuple[int, Any]] = list(self.pulled[state.row].items())
        else:
            _, table, columns = self.tables(put)
            found = table[state.row]
            weights = [(k, spread(found[:, n], state.x)) for n, k in enumerate(columns)]
        return Pullback.of([(weight, tensors[k]) for k, weight in weights], x)
