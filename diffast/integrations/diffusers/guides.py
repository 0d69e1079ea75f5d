"""Guidance terms in a pipeline: gradients that join the x0 estimate of a scheduler's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffast.executors.terms import gradients
from diffast.guidance.guide import Guide, Point
from diffast.lowering.step_table import TERMS
from diffast.plans import Plan

NO_TERMS = (None,) * len(TERMS)


class GuidedOutputs:
    """What a pipeline's network output says of x0, with guidance terms beside it.

    Args:
        prediction: what the output alone says.
        plan: whose schedule and model times the terms are told.
        guides: the terms.

    Raises:
        ValueError: what is no term; a term that is taken through the network.
    """

    def __init__(self, prediction: Any, plan: Plan, guides: Sequence[Guide]):
        """Makes the numbers that the terms are told at every call."""
        self.prediction, self.schedule, self.guides = prediction, plan.schedule, tuple(guides)
        for k, term in enumerate(self.guides, 1):
            if not isinstance(term, Guide):
                raise ValueError(
                    f"accelerate: guides holds a {type(term).__name__}, but terms are made by "
                    "df.guidance; its ugd and tfg return two terms: guides=[*terms]"
                )
            if term.through == "network":
                raise ValueError(
                    f"accelerate: guidance term {k} ({term.name}) is taken through the network, "
                    "but a pipeline hands its scheduler the network's output alone: give the term "
                    "through='x0', or use df.sample with pipeline_denoiser"
                )
        self.times = plan.call_times.tolist()
        self.levels = [
            (float(self.schedule.alpha(t)), float(self.schedule.sigma(t))) for t in self.times
        ]

    @property
    def reads_x0(self) -> bool:
        """Returns whether a term reads the x0 estimate."""
        return any(term.through == "x0" for term in self.guides)

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output, [S] each."""
        return self.prediction.affine(times)

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the guidance scales [S]: 1, as the pipeline guides by itself."""
        return self.prediction.scales(times)

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns the same."""
        return self.prediction.planned_scales(scales)

    def gradient_scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the scales of the terms, [terms, S]."""
        return np.array([term.scales(times) for term in self.guides]).reshape(-1, len(times))

    def gradient_weights(self, times: np.ndarray) -> np.ndarray:
        """Returns the weights of the gradients in the x0 estimate, [terms, S]."""
        found = [term.weights(self.schedule, times) for term in self.guides]
        return np.array(found).reshape(-1, len(times))

    def gradients(
        self,
        i: int,
        numbers: Sequence[int],
        sample: torch.Tensor,
        x0: torch.Tensor | None,
        ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Returns the gradients of call i, one a place of a step's registers; None: not weighed.

        Args:
            i: number of the call.
            numbers: of the terms, from 1.
            sample: the latents [B, ...].
            x0: the x0 estimate, for terms that read it.
            ids: [B] int64; None: 0 .. B-1.
        """
        batch, dims = len(sample), sample.dim()
        time, alpha, sigma = (
            torch.full((batch,), number, dtype=torch.float32, device=sample.device)
            for number in (self.times[i], *self.levels[i])
        )
        alpha, sigma = (v.to(sample.dtype).view(-1, *[1] * (dims - 1)) for v in (alpha, sigma))
        ids = torch.arange(batch, device=sample.device) if ids is None else ids
        point = Point(sample.detach(), time, alpha, sigma, ids, i)
        found = gradients(f"step: call {i}", self.guides, numbers, point, x0)
        return tuple(found.get(name) for name in TERMS)
