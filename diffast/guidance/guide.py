"""`Guide`: a guidance term, which is the gradient of a log-density, its scale and its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

# What a term's gradient is taken through: the state itself, the x0 estimate alone, or the network.
THROUGH = ("x", "x0", "network")


class Point(NamedTuple):
    """Where a guidance term's gradient is asked for.

    Attributes:
        x: the state [B, ...], of the run's dtype. Not to be written to.
        time: model times, [B].
        alpha: of the schedule at these times, [B, 1, ...].
        sigma: likewise.
        ids: [B] int64, which tell the samples apart when rows leave the batch.
        stage: number of the evaluation, from 0.
        x0: the x0 estimate [B, ...], without gradients; None for terms of through="x".
        pull: v [B, ...] -> J^T v, J the Jacobian of the x0 estimate in x; None but for terms of
            through="network". May be called more than once.
        normals: k, from 0 to 254 -> normals [B, ...] of the sample's own, other ones for every k
            and stage; the same for all terms. None where nothing draws noise.
        owner: [B] int64, the sample whose condition each row has, where samples have several rows
            (particles); None: row b is sample b.
    """

    x: torch.Tensor
    time: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    ids: torch.Tensor
    stage: int | torch.Tensor
    x0: torch.Tensor | None = None
    pull: Callable[[torch.Tensor], torch.Tensor] | None = None
    normals: Callable[[int], torch.Tensor] | None = None
    owner: torch.Tensor | None = None

    def pulled(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns a vector in the x0 estimate, [B, ...], pulled back to x through the network.

        Raises:
            ValueError: where nothing pulls.
        """
        if self.pull is None:
            raise ValueError("guidance: the point has nothing that pulls a gradient back to x")
        return self.pull(vector)

    def own(self, who: str, name: str, given: torch.Tensor) -> torch.Tensor:
        """Returns the rows of a condition [N, ...], one a sample or one for all, for these rows.

        Args:
            who: what a message calls the term.
            name: what it calls the condition.
            given: one row a sample, or a single one; on any device.

        Raises:
            ValueError: for another number of rows; for a condition on another device.
        """
        if given.device != self.x.device:
            raise ValueError(
                f"{who}: the {name} are on {given.device} but the state is on {self.x.device}"
            )
        samples = len(self.x) if self.owner is None else None
        if len(given) == 1 or self.owner is None:
            if len(given) not in (1, samples):
                raise ValueError(f"{who}: {len(given)} {name} but {samples} samples")
            return given.expand(len(self.x), *given.shape[1:])
        return given[self.owner]


@dataclass(frozen=True, eq=False)
class Guide:
    """A guidance term: the gradient of a log-density, and how much of it a step takes.

    With g = grad log p(condition | x) the guided score is score + scale g, so the x0 estimate
    becomes x0 + scale (sigma^2 / alpha) g (Dhariwal and Nichol 2021, section 4). A term of
    through="x0" gives the gradient in the x0 estimate, and x0 becomes x0 + scale g (He et al. 2024,
    MPGD). At alpha = 0 the state says nothing of the data, and the term is left out.

    Args:
        function: Point -> gradient [B, ...], shaped as the state, of any floating-point dtype.
        scale: s, or a function of the model time that returns it.
        through: "x": the gradient is a function of the state x; "x0": of the x0 estimate alone;
            "network": of the x0 estimate, pulled back to x through the network (`Point.pull`),
            which costs a backward pass of the network.
        name: what messages call it.

    Raises:
        ValueError: for a function that cannot be called, a scale that is not finite, or another
            `through`.
    """

    function: Callable[[Point], torch.Tensor]
    scale: float | Callable[[float], float] = 1.0
    through: str = "x"
    name: str = "guide"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not callable(self.function):
            raise ValueError(
                f"{self.name}: function is a {type(self.function).__name__} but must be callable"
            )
        if self.through not in THROUGH:
            raise ValueError(
                f"{self.name}: through is {self.through!r} but must be one of {', '.join(THROUGH)}"
            )
        if isinstance(self.scale, str) or getattr(self.scale, "shape", ()) != ():
            raise ValueError(
                f"{self.name}: scale is a {type(self.scale).__name__} but must be a number or f(t)"
            )
        if not callable(self.scale) and not math.isfinite(self.scale):
            raise ValueError(f"{self.name}: scale is {self.scale} but must be finite")

    def gradient(self, point: Point) -> torch.Tensor:
        """Returns the gradient [B, ...] at a point, without the scale."""
        return self.function(point)

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the scale at each model time, [S] float64.

        Raises:
            ValueError: if one is not finite.
        """
        if not callable(self.scale):
            return np.full(len(times), float(self.scale))
        found = np.array([float(self.scale(float(t))) for t in times], dtype=np.float64)
        if not np.isfinite(found).all():
            i = int(np.argmin(np.isfinite(found)))
            raise ValueError(f"{self.name}: scale is {found[i]} at t = {times[i]:g}")
        return found

    def weights(self, schedule: Any, times: np.ndarray) -> np.ndarray:
        """Returns what the gradient is multiplied by in the x0 estimate, [S] float64."""
        if self.through == "x0":
            return self.scales(times)
        alpha = np.asarray(schedule.alpha(times), dtype=np.float64)
        sigma = np.asarray(schedule.sigma(times), dtype=np.float64)
        factor = np.divide(sigma**2, alpha, out=np.zeros(len(times)), where=alpha > 0.0)
        return self.scales(times) * factor
