"""What a run of a task needs: the network, the plan, and what is done to its estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffast import ops
from diffast.executors.context import Clamp
from diffast.executors.results import Info, Samples
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan

# Counter words of the noise that a task draws by itself, apart from those of plans.
_TASK_NOISE = ops.INITIAL_NOISE + 2

Estimate = Callable[[Tensor, Info], Tensor]
# (x, alpha, sigma, normals) -> x: what is done to a network's input; levels are [B, 1, 1, 1].
Input = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """A network, a plan, and what is done to inputs and estimates on the way.

    Functions of `df.tasks` take a setup and return another one, so that they can be chained.

    Args:
        denoiser: the network and what it predicts.
        plan: a solver's matrices, for the denoiser's schedule.
        on_estimate: functions (x0, info) -> x0 of the x0 estimate, applied in this order.
        on_input: functions (x, alpha, sigma, normals) -> x of what the network is called on. The
            normals are fresh at every network call.
        clamp: (low, high) for the x0 estimate, or None.
    """

    denoiser: Denoiser
    plan: Plan
    on_estimate: tuple[Estimate, ...] = ()
    on_input: tuple[Input, ...] = ()
    clamp: Clamp | None = None

    def sample(
        self,
        shape: Sequence[int] | None = None,
        *,
        x: Tensor | None = None,
        seed: int = 0,
        ids: Sequence[int] | Tensor | None = None,
        **arguments: Any,
    ) -> Samples:
        """Returns the samples of `df.sample` with this setup.

        Args:
            shape: as for `df.sample`.
            x: as for `df.sample`.
            seed: as for `df.sample`; also of the normals that `on_input` is given.
            ids: as for `df.sample`.
            **arguments: others of `df.sample`, but `on_x0` and `clamp`.

        Raises:
            ValueError: `executor="graph"` where inputs are changed with fresh noise; what
                `df.sample` raises.
        """
        denoiser = self.denoiser
        if self.on_input:
            if arguments.get("executor", "sequential") != "sequential":
                raise ValueError(
                    f"sample: executor is {arguments['executor']!r}, but this task draws noise for "
                    "every network call, which a graph cannot repeat: leave executor out"
                )
            rows = 0 if shape is None else shape[0]
            known = torch.arange(rows if x is None else len(x)) if ids is None else ids
            known = torch.as_tensor(known, dtype=torch.int64)
            network = _Inputs(denoiser, self.on_input, seed, known)
            denoiser = dataclasses.replace(denoiser, network=network)
        return sample(
            denoiser,
            self.plan,
            shape,
            x=x,
            seed=seed,
            ids=ids,
            clamp=self.clamp,
            on_x0=self._estimate if self.on_estimate else None,
            **arguments,
        )

    def _estimate(self, x0: Tensor, info: Info) -> Tensor:
        for change in self.on_estimate:
            x0 = change(x0, info)
        return x0

    def estimating(self, change: Estimate, **fields: Any) -> Setup:
        """Returns the setup with one more function of the x0 estimate, and other fields."""
        return dataclasses.replace(self, on_estimate=(*self.on_estimate, change), **fields)


class _Inputs(torch.nn.Module):
    """A network whose input is changed at every call of one run."""

    def __init__(
        self, denoiser: Denoiser, changes: tuple[Input, ...], seed: int, ids: Tensor
    ) -> None:
        """Takes the denoiser whose network is called, and the run's seed and ids."""
        super().__init__()
        # A module, so that executors find the parameters and their device. By this name a network's
        # fingerprint looks through the wrapper.
        self.module, self.schedule = denoiser.network, denoiser.schedule
        self.changes, self.seed, self.ids, self.call = changes, seed, ids, 0

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Any:
        """Returns what the network answers to the changed input."""
        # the branches of classifier-free guidance see one input
        ids = self.ids.to(x.device).repeat(x.shape[0] // max(len(self.ids), 1))
        told = t.detach().double().cpu().numpy()
        alpha, sigma = (
            torch.as_tensor(level(told), dtype=x.dtype).to(x.device).view(-1, 1, 1, 1)
            for level in (self.schedule.alpha, self.schedule.sigma)
        )
        for place, change in enumerate(self.changes):
            word = _TASK_NOISE + self.call * len(self.changes) + place
            normals = ops.normal(x.shape, seed=self.seed, stage=word, ids=ids, dtype=x.dtype)
            x = change(x, alpha, sigma, normals)
        self.call += 1
        return self.module(x, t, **conditions)
