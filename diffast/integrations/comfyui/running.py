"""Runs a plan on a ComfyUI model, with ComfyUI's callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from diffast.executors.sequential import sample
from diffast.integrations.comfyui.branches import TwoBranches, marks, renamed
from diffast.integrations.comfyui.table import Entry
from diffast.integrations.sigma_model import step_starts
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan


def run(
    name: str,
    entry: Entry,
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    plan: Plan,
    levels: tuple[float, ...],
    arguments: tuple[Any, ...],
    draw: Callable[[int], torch.Tensor] | None,
    seed: int,
) -> torch.Tensor:
    """Returns the plan's samples [B, ...], of x's dtype; float32 between steps for lower ones.

    Args:
        name: begins the messages.
        entry: of the sampler.
        model: called as model(x, sigma [B], **extra_args); returns the x0 estimate.
        x: the initial state [B, ...].
        plan: for the levels.
        levels: of the sigmas.
        arguments: (sigmas as given, sigmas that the plan steps through, extra_args, callback,
            disable).
        draw: the normals of a stage, as `df.sample` wants them as `noise`; None: the package's.
        seed: of the package's noise.

    Raises:
        ValueError: a callback that writes into x; x is not finite.
        FloatingPointError: the model's estimates are not finite.
    """
    given, sigmas, extra_args, callback, disable = arguments
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    low = None if x.dtype == dtype else x.dtype
    own: dict[str, Any] = {}
    if entry.branches:
        plan = renamed(plan)
        own["conditions"], own["unconditional"] = marks(x.device)
        model, extra_args = TwoBranches(name, model, len(x), extra_args), {}
    noise = "counter" if draw is None else lambda stage: draw(stage).to(dtype)
    with tqdm(total=plan.steps, disable=disable) as bar:
        network = _Reporting(name, entry, model, plan, levels, sigmas, x, extra_args, callback, bar)
        network.given = given
        denoiser = Denoiser(network, plan.schedule, predicts="x0", dtype=low, **own)
        state = x.detach().to(dtype)
        with torch.no_grad():
            # Unchecked: states that are no noise of the first level are ComfyUI users' business.
            out = sample(denoiser, plan, x=state, seed=seed, noise=noise, check=False)
        bar.update()

    def what(row, call):
        return (
            f"the model's estimate is not finite at sigma = {plan.call_times[call]:g} (or x is not)"
        )

    out = out.or_raise(name, torch.arange(len(x)), True, what, initial=state)
    return out.x.to(x.dtype)


class _Reporting:
    """The model as a network that counts its calls and reports each step's first."""

    def __init__(self, name, entry, model, plan, levels, sigmas, x, extra_args, callback, bar):
        self.name, self.model, self.extra_args = name, model, extra_args
        self.sigmas, self.callback, self.bar = sigmas, callback, bar
        self.given = sigmas
        self.dtype, self.rows, self.calls = x.dtype, slice(len(x)), 0
        self.starts = _first_calls(plan, levels) if entry.twice else step_starts(plan, levels)
        last = len(levels) - 2
        self.early = {
            "none": set(),
            "all": {*range(last + 1)},
            "but last": {*range(last + (levels[-1] > 0.0))},
        }[entry.early]
        self.levels: Any = None
        if callback is not None:
            self.levels = torch.tensor(plan.call_times, dtype=sigmas.dtype, device=sigmas.device)

    def __call__(self, x, sigma, **branch):
        with torch.inference_mode(False), torch.no_grad():
            denoised = self.model(x, sigma.to(self.dtype), **self.extra_args, **branch)
            if self.calls in self.starts:
                self._report(x, denoised)
        self.calls += 1
        return denoised

    def _report(self, x, denoised):
        step = self.starts[self.calls]
        if step:
            self.bar.update()
        if self.callback is None:
            return
        shown, estimate = x[self.rows].clone(), denoised[self.rows]
        if step in self.early:
            estimate = estimate.clone()
        at = {"sigma": self.sigmas[step], "sigma_hat": self.levels[self.calls]}
        before = shown._version, _writes(self.given)
        self.callback({"x": shown, "i": step, **at, "denoised": estimate})
        after = shown._version, _writes(self.given)
        if after[1] != before[1]:
            raise ValueError(
                f"{self.name}: the callback wrote into sigmas at step {step}, but the steps are "
                "made of the sigmas as they were at the start: take ComfyUI's own sampler for it"
            )
        if after[0] != before[0] or _differs(shown, x[self.rows]):
            raise ValueError(
                f"{self.name}: the callback wrote into x at step {step}, but the step is made of "
                "the state as it was: take ComfyUI's own sampler for a callback that changes it"
            )


def _differs(shown, x):
    """Returns whether a copy on the host was written, also through `.data` or numpy."""
    if shown.device.type != "cpu" or torch.equal(shown, x):
        return False
    return not bool(x.isnan().any())


def _writes(tensor):
    """Returns how often a tensor was written; inference tensors do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _first_calls(plan, levels):
    """Returns {stage: step} where each step calls the network twice on its first level."""
    first: dict[float, int] = {}
    for i, level in enumerate(plan.call_times.tolist()):
        first.setdefault(level, i)
    return {first[level]: step for step, level in enumerate(levels[:-1])}
