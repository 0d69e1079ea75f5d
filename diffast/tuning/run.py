"""A tuned plan's run in plain torch, through which gradients flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from diffast.model.denoiser import Denoiser
from diffast.model.times import time_dtype, within
from diffast.tuning.parameters import Numbers


class Rows:
    """A batch of pilots: its initial state, and the denoiser's conditions for its rows.

    Args:
        denoiser: with conditions for these rows.
        x: initial state [B, ...].
        saves: whether activations of a network call are computed again for the gradient, in place
            of being kept.
    """

    def __init__(self, denoiser: Denoiser, x: torch.Tensor, saves: bool = False):
        """Keeps them, and makes the conditions when a branch first asks for them."""
        self.denoiser, self.x, self.saves = denoiser, x, saves
        self._arguments: dict[str, Mapping[str, Any]] = {}

    def arguments(self, branch: str) -> Mapping[str, Any]:
        """Returns the conditions of one kind of call."""
        if branch not in self._arguments:
            self._arguments[branch] = self.denoiser.arguments(len(self.x), self.x.device, branch)
        return self._arguments[branch]

    def output(self, x: torch.Tensor, told: torch.Tensor, branch: str) -> torch.Tensor:
        """Returns the network's raw output on a branch, [B or 2B, ...], told a time or [B]."""
        told = within(told.to(x.device), self.denoiser.schedule, time_dtype(x.dtype))
        t = told.expand(len(x))
        t = torch.cat([t, t]) if branch == "both" else t
        given = torch.cat([x, x]) if branch == "both" else x
        given = given.to(self.denoiser.dtype or x.dtype)
        call = self.denoiser.call
        if self.saves and torch.is_grad_enabled():
            made = checkpoint(
                call,
                given,
                t,
                self.arguments(branch),
                use_reentrant=False,
                determinism_check="none",
            )
            return made.to(x.dtype)  # pyright: ignore[reportOptionalMemberAccess]
        return call(given, t, self.arguments(branch)).to(x.dtype)

    def estimate(
        self, x: torch.Tensor, told: torch.Tensor, a: Any, b: Any, scale: torch.Tensor
    ) -> torch.Tensor:
        """Returns the guided x0 estimate [B, ...]."""
        fixed = None if scale.requires_grad else float(scale)
        if fixed in (0.0, 1.0):
            return a * x + b * self.output(x, told, "cond" if fixed else "uncond")
        cond, uncond = self.output(x, told, "both").chunk(2)
        return a * x + (b * scale) * cond + (b * (1.0 - scale)) * uncond


def run(rows: Rows, numbers: Numbers, normals: list[torch.Tensor] | None = None) -> torch.Tensor:
    """Returns the samples [B, ...] of a plan's numbers, differentiable in them.

    Args:
        rows: the batch.
        numbers: from `Parameters.numbers`.
        normals: [N] fresh normals [B, ...] of the calls; None: the plan draws none.
    """
    states, estimates = [rows.x], []
    # Numbers without dimension leave the state's dtype as it is.
    keep, told, a, b, scales, fresh = (
        [*part.to(rows.x.device).unbind()]
        for part in (
            numbers.keep,
            numbers.told,
            numbers.a,
            numbers.b,
            numbers.scales,
            numbers.fresh,
        )
    )
    weights = numbers.weights.to(rows.x.device)
    for n, base in enumerate(numbers.bases()):
        estimates.append(rows.estimate(states[n], told[n], a[n], b[n], scales[n]))
        terms = zip(weights[n], estimates, strict=False)
        normal = None if normals is None else normals[n]
        states.append(next_state(keep[n], states[base], terms, fresh[n], normal))
    return states[-1]


def next_state(
    keep: torch.Tensor,
    state: torch.Tensor,
    terms: Iterable[tuple[torch.Tensor, torch.Tensor]],
    fresh: torch.Tensor,
    normal: torch.Tensor | None,
) -> torch.Tensor:
    """Returns keep * state + the sum of weight * estimate of the terms + fresh * normal."""
    made = keep * state
    for weight, estimate in terms:
        made = made + weight * estimate
    return made if normal is None else made + fresh * normal


@contextmanager
def without_own_gradients(network: Any) -> Iterator[None]:
    """Switches off the gradients of a network's parameters, and back on afterwards."""
    owner = getattr(getattr(network, "parameters", None), "__self__", None)
    module = network if isinstance(network, torch.nn.Module) else owner
    parameters = [*module.parameters()] if isinstance(module, torch.nn.Module) else []
    wanted = [p for p in parameters if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
