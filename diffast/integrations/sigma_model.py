"""Runs a plan on `model(x, sigma, **extra_args) -> denoised`, as k-diffusion's samplers call it.

A plan is built from the sigmas and `df.sample` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from diffast import schedules, solvers
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.solvers.core.stability import unchecked


def levels_of(name: str, sigmas: torch.Tensor) -> tuple[float, ...]:
    """Returns the sigmas as Python floats: the only read from their device.

    Raises:
        ValueError: unless they are one-dimensional, fall strictly and end at 0 or above.
    """
    if sigmas.dim() != 1:
        raise ValueError(f"{name}: sigmas has shape {list(sigmas.shape)}, but it must be [N+1]")
    levels = tuple(sigmas.detach().double().cpu().tolist())
    for i, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        if not level > following >= 0.0:
            raise ValueError(
                f"{name}: sigmas[{i}] = {level:g} is followed by {following:g}, but sigmas must "
                "fall strictly and not below 0"
            )
    return levels


def sigma_plan(solver: str, levels: tuple[float, ...], **options: Any) -> Plan:
    """Returns the solver's plan on x = x0 + sigma eps at these noise levels, [N+1], N >= 1.

    Args:
        solver: name in `df.solvers`.
        levels: from `levels_of`; sigma is the model time.
        options: the builder's.

    Raises:
        ValueError: what the builder raises.
    """
    return _built(solver, levels, False, tuple(options.items()))


def flow_plan(solver: str, levels: tuple[float, ...], **options: Any) -> Plan:
    """Returns the same on x = (1 - sigma) x0 + sigma eps, sigma at most 1."""
    return _built(solver, levels, True, tuple(options.items()))


@lru_cache(maxsize=64)
def _built(solver, levels, is_flow, options):
    if is_flow:
        space = schedules.flow()
    else:
        above = [level for level in levels[1:] if level > 0.0]
        space = schedules.edm(above[-1] if above else 0.5 * levels[0], levels[0])
    with unchecked():  # the sampler and the levels are what the caller's program asks for
        return solvers.get(solver)(space, np.array(levels), **dict(options))


def step_starts(plan: Plan, levels: tuple[float, ...]) -> dict[int, int]:
    """Returns {stage that begins a step: number of the step}.

    A step begins where the step's state y has become x. Where that does not give one call a step,
    it is the last call at the step's level. The plan is one for the levels [N+1].
    """
    starts = plan.step_starts().tolist()
    if len(starts) != plan.steps:
        calls = {level: i for i, level in enumerate(plan.call_times.tolist())}
        starts = [calls[level] for level in levels[:-1]]
    return {i: step for step, i in enumerate(starts)}


def run(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    plan: Plan,
    levels: tuple[float, ...],
    sigmas: torch.Tensor,
    extra_args: dict | None = None,
    callback: Callable[[dict], Any] | None = None,
    disable: bool | None = None,
    draw: Callable[[int], torch.Tensor] | None = None,
    seed: int = 0,
    path: bool = False,
) -> torch.Tensor:
    """Returns the plan's samples [B, ...], of x's dtype.

    The state is float32 between the steps where x is float16 or bfloat16 (the model still sees x's
    dtype), else of x's dtype. The model runs under `no_grad`, not in inference mode: it may enable
    gradients itself.

    Args:
        model: called as model(x, sigma [B], **extra_args); returns the x0 estimate.
        x: the initial state [B, ...].
        plan: for the sigmas.
        levels: the sigmas as numbers, see `levels_of`.
        sigmas: [N+1], as the caller gave them.
        extra_args: passed to the model.
        callback: called once a step, after its first model call, with {'x', 'i', 'sigma',
            'sigma_hat', 'denoised'}. 'x' is a copy; what the callback writes into it has no effect.
        disable: True for no progress bar; None: none where stderr is no terminal.
        draw: the normals of a stage, as `df.sample` wants them as `noise`; None: the package's.
        seed: of the package's noise.
        path: whether that is one Brownian path a sample.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with tqdm(total=plan.steps, disable=disable) as bar:
        network = _Steps(model, plan, levels, sigmas, x.dtype, extra_args or {}, callback, bar)
        low = None if x.dtype == dtype else x.dtype
        denoiser = Denoiser(network, plan.schedule, predicts="x0", dtype=low)
        noise = ("path" if path else "counter") if draw is None else _cast(draw, dtype)
        with torch.no_grad():
            out = sample(denoiser, plan, x=x.detach().to(dtype), seed=seed, noise=noise)
        bar.update()
    return out.x.to(x.dtype)


def _cast(draw, dtype):
    return lambda stage: draw(stage).to(dtype)


class _Steps:
    """The model as a network that counts its calls and reports each step's first."""

    def __init__(self, model, plan, levels, sigmas, dtype, extra_args, callback, bar):
        self.model, self.extra_args, self.callback, self.bar = model, extra_args, callback, bar
        self.sigmas, self.dtype, self.calls = sigmas, dtype, 0
        self.starts = step_starts(plan, levels)
        self.levels: Any = None
        if callback is not None:
            self.levels = torch.tensor(plan.call_times, dtype=sigmas.dtype, device=sigmas.device)

    def __call__(self, x, sigma):
        with torch.inference_mode(False), torch.no_grad():
            denoised = self.model(x, sigma.to(self.dtype), **self.extra_args)
            if self.calls in self.starts:
                self._report(x, denoised)
        self.calls += 1
        return denoised

    def _report(self, x, denoised):
        step = self.starts[self.calls]
        if step:
            self.bar.update()
        if self.callback is not None:
            levels = {"sigma": self.sigmas[step], "sigma_hat": self.levels[self.calls]}
            self.callback({"x": x.clone(), "i": step, **levels, "denoised": denoised})


def drawn_by(
    noise_sampler: Callable[..., torch.Tensor], plan: Plan, sigmas: torch.Tensor
) -> Callable[[int], torch.Tensor]:
    """Returns `noise` for `df.sample` that asks noise_sampler(sigma, sigma_next), as k-diffusion.

    Args:
        noise_sampler: returns N(0, 1) for two noise levels, given as tensors like sigmas[i].
        plan: its `spans` are the levels; those of its opening are (start, times[0]).
        sigmas: gives dtype and device.
    """
    opening = [plan.start, plan.call_times[0]]
    spans = np.vstack([np.asarray(plan.spans)[plan.evaluations], opening])  # the opening's at -1
    spans = torch.tensor(spans, dtype=sigmas.dtype, device=sigmas.device)
    return lambda stage: noise_sampler(spans[stage, 0], spans[stage, 1])


def drawn_each_step(
    normal: Callable[[], torch.Tensor], plan: Plan, levels: tuple[float, ...]
) -> Callable[[int], torch.Tensor]:
    """Returns `noise` for a churned plan that draws one normal a step, also where its weight is 0.

    So do k-diffusion and EDM: a step outside [s_tmin, s_tmax] draws and throws away, and the steps
    after it get the same numbers there and here.

    Args:
        normal: returns the next N(0, 1) [B, ...].
        plan: from `df.solvers.churn`.
        levels: what it was made for.
    """
    starts, taken = step_starts(plan, levels), 0

    def draw(stage):
        nonlocal taken
        while taken < starts[stage + 1]:
            normal()
            taken += 1
        taken += 1
        return normal()

    return draw
