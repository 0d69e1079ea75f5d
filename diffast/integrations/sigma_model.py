"""Runs a plan on `model(x, sigma, **extra_args) -> denoised`, as k-diffusion's samplers call it.

A plan is built from the sigmas and `df.sample` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from diffast import schedules, solvers
from diffast.executors import context
from diffast.executors.bound_run import BoundRun
from diffast.executors.results import Samples
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.model.input_watch import InputWatch, InputWritten
from diffast.model.outputs import tensor_of
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
    return _built(solver, levels, tuple(options.items()))


@lru_cache(maxsize=64)
def _built(solver, levels, options):
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
    *,
    begin: Callable[[int, Steps], Any] | None = None,
    manner: Manner | None = None,
) -> torch.Tensor:
    """Returns the plan's samples [B, ...], of the dtype that torch's promotion gives them.

    The dtype is x's, promoted with the model's answers and with the noise. The model sees x in
    that dtype. Between the steps the state is float64 where x is float64, or becomes so by the
    dtype of the sigmas, else float32.
    The model runs under `no_grad`, not in inference mode: it may enable gradients itself.

    Args:
        model: called as model(x, sigma [B], **extra_args); returns the x0 estimate.
        x: the initial state [B, ...].
        plan: for the sigmas.
        levels: the sigmas as numbers, see `levels_of`.
        sigmas: [N+1], as the caller gave them.
        extra_args: passed to the model; read anew at each call.
        callback: called once a step, after its first model call, with {'x', 'i', 'sigma',
            'sigma_hat', 'denoised'}. 'x' is a copy of the step's state. The step goes on from what
            the callback writes into it, and from what it writes into 'denoised'.
        disable: True for no progress bar; None: none where stderr is no terminal.
        draw: the normals of a stage, as `df.sample` wants them as `noise`; None: the package's.
        seed: of the package's noise.
        path: whether that is one Brownian path a sample.
        begin: called with the number of each step, and the model's `Steps`, before its first model
            call.
        manner: what is particular to the sampler.

    Raises:
        ValueError: the model wrote into its input; sigmas were written to during the run; a
            callback wrote into an x that is not the state of the plan's step.
        FloatingPointError: a value that is not finite.
    """
    manner = manner or Manner()
    kinds = (x.dtype, sigmas.dtype) if manner.slopes else (x.dtype,)
    wide = torch.float64 if torch.float64 in kinds else torch.float32
    with tqdm(total=plan.steps, disable=disable) as bar, torch.no_grad():
        network = Steps(model, plan, levels, sigmas, x.dtype, extra_args, callback, bar)
        network.begin, network.manner = begin, manner
        denoiser = Denoiser(network, plan.schedule, predicts="x0")
        noise: Any = ("path" if path else "counter") if draw is None else network.drawn(draw, wide)
        start = x.detach().to(wide)
        if callback is None:
            out = sample(denoiser, plan, x=start, seed=seed, noise=noise).x
        else:
            out = _told(denoiser, plan, start, seed, noise, network)
        bar.update()
    return out.to(network.ends_as(levels[-1] == 0.0))


class Manner(NamedTuple):
    """What a sampler does with its tensors beside the arithmetic, as k-diffusion's does.

    Attributes:
        slope_first: whether the step's slope is made before the callback: 'denoised' is then read
            no more, and a callback that moves x moves the step's end by as much.
        slopes: whether each step divides by a sigma that is no number but a tensor [1, ...], whose
            dtype x then takes on.
        last_slope: whether the step into sigma = 0 does so.
        clean: whether the step into sigma = 0 returns the last estimate, in its dtype.
        follows: whether sigma and 'denoised' are made anew in x's dtype at each call.
    """

    slope_first: bool = False
    slopes: bool = False
    last_slope: bool = False
    clean: bool = False
    follows: bool = False


def _told(denoiser, plan, x, seed, noise, network) -> torch.Tensor:
    """Returns what `df.sample` does, of a run whose state the callback may write into."""
    place = context.place_of("sample", denoiser, None, x, None, seed, None, None)
    network.run = bound = BoundRun(denoiser, plan, place, network.hook, noise)
    done, total = 0, len(bound.stages)
    with torch.inference_mode():
        bound.start(x)
        while done < total and bound.batch and not bound.lost:
            bound.stage(done)
            done += 1
    nfe = torch.full((bound.batch,), bound.evaluations(done), device=bound.device)
    made = Samples(bound.made(done, True), nfe, bound.status, True, network_rows=nfe)
    return made.or_raise("sample", bound.ids, True, bound.what_failed, initial=x).x


class Steps:
    """The model as a network that counts its calls and reports each step's first."""

    run: Any = None  # set when it is made: the run asks the network

    def __init__(self, model, plan, levels, sigmas, dtype, extra_args, callback, bar):
        """Keeps what a call needs; nothing is called yet."""
        self.model, self.callback, self.bar = model, callback, bar
        self.extra_args = {} if extra_args is None else extra_args
        self.first = self.dtype = self.shown = self.answered = dtype
        self.sigmas, self.version, self.calls = sigmas, version_of(sigmas), 0
        self.starts = step_starts(plan, levels)
        self.begin: Callable[[int, Steps], Any] | None = None
        self.manner, self.step = Manner(), -1
        self.raw: Any = None
        self.same = False  # whether the model returned its input
        self.levels: Any = None
        if callback is not None:
            self.levels = torch.tensor(plan.call_times, dtype=sigmas.dtype, device=sigmas.device)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the x0 estimate [B, ...]."""
        self.step = self.starts.get(self.calls, -1)
        if version_of(self.sigmas) != self.version:
            raise ValueError(
                f"sigmas were written to before model call {self.calls + 1}, but the steps were "
                "planned for the sigmas at the start: give the sampler a copy"
            )
        if self.step > 0:
            self.bar.update()
        if self.begin is not None and self.step >= 0:
            self.begin(self.step, self)
        self.calls += 1
        with torch.inference_mode(False), torch.no_grad():
            seen = x if x.dtype == self.dtype else x.to(self.dtype)
            watch = None if seen is x else InputWatch(seen)  # df.sample looks at its own
            before = watch and watch.look()
            level = sigma.to(self.dtype if self.manner.follows else self.first, copy=True)
            made = self.model(seen, level, **self.extra_args)
            if watch is not None and watch.look() != before:
                raise InputWritten("sample", f" at call {self.calls}")
        self.raw = made if isinstance(made, torch.Tensor) else tensor_of(made, "x0")
        self.same = self.raw.data_ptr() == seen.data_ptr()
        self.shown, self.answered = self.dtype, self.raw.dtype
        self.widen(self.answered)
        if self.manner.slopes:
            self.widen(self.sigmas.dtype)
        return self.raw

    def ends_as(self, at_zero: bool) -> torch.dtype:
        """Returns the dtype of the samples."""
        if at_zero and self.manner.clean:
            return self.answered
        if at_zero and self.manner.last_slope:
            self.widen(self.sigmas.dtype)
        return self.dtype

    def drawn(self, draw, wide):
        """Returns `noise` for `df.sample` from the caller's, whose dtype x takes on."""

        def noise(stage):
            z = draw(stage)
            self.widen(z.dtype)
            return z.to(wide)

        return noise

    def widen(self, dtype: torch.dtype) -> None:
        """Gives x the dtype that it has after a sum with a tensor of this dtype."""
        if dtype != self.dtype and dtype.is_floating_point:
            self.dtype = torch.promote_types(self.dtype, dtype)

    def hook(self, x0: torch.Tensor, info: Any) -> torch.Tensor:
        """Returns the x0 estimate after the callback, which may have written into it and into x."""
        step, self.step = self.step, -1  # a stage of two inputs has two estimates
        if step < 0:
            return x0
        state = self.run.states[info.stage]
        raw = self.raw[: len(state)]
        slope_first = self.manner.slope_first
        with torch.inference_mode(False), torch.no_grad():
            x = state.to(self.shown, copy=True)
            if self.manner.follows:
                raw = raw.to(self.dtype, copy=True)
            elif self.same:
                raw = x
            before, call = x._version, self.calls - 1
            levels = {"sigma": self.sigmas[step], "sigma_hat": self.levels[call]}
            assert self.callback is not None  # without one there is no hook
            self.callback({"x": x, "i": step, **levels, "denoised": raw})
            if info.stage and not self.run.stages[info.stage - 1].joined:
                if x._version != before:
                    raise ValueError(
                        f"the callback wrote into x at call {self.calls}, but the plan's step "
                        "goes on from another tensor there, which the write does not reach"
                    )
                return x0 if slope_first else x0.copy_(raw)
            # Compared by values: a write through numpy or .data raises no version.
            moved = torch.where(x == state.to(x.dtype), state, x.to(state.dtype))
            x0.copy_(x0 + (moved - state) if slope_first else raw)
            state.copy_(moved)
        return x0


def version_of(tensor: torch.Tensor) -> int:
    """Returns how often the tensor was written to; 0 for tensors that do not count."""
    return 0 if tensor.is_inference() else tensor._version


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


class DrawnEachStep:
    """`noise` of a churned plan that draws one normal a step, also where its weight is 0.

    So do k-diffusion and EDM: a step outside [s_tmin, s_tmax] draws and throws away, and the steps
    after it get the same numbers there and here. So do whole runs without churn, after which the
    generator stands where theirs stands.

    Args:
        normal: returns the next N(0, 1) [B, ...] of a dtype.
        dtype: of x at the start.
        plan: for the levels.
        levels: what it was made for.
    """

    def __init__(
        self,
        normal: Callable[[torch.dtype], torch.Tensor],
        dtype: torch.dtype,
        plan: Plan,
        levels: tuple[float, ...],
    ):
        """Draws nothing yet."""
        self.normal, self.starts, self.taken = normal, step_starts(plan, levels), 0
        self.dtype, self.steps = dtype, None

    def __call__(self, stage: int) -> torch.Tensor:
        """Returns the normals of a stage, which belong to the step after it."""
        self._take(self.starts[stage + 1])
        self.taken += 1
        return self._drawn()

    def begin(self, step: int, steps: Steps | None = None) -> None:
        """Draws what a step has not used; `steps` knows the dtype of x from now on."""
        self.steps = steps
        self._take(step + 1)

    def _drawn(self):
        return self.normal(self.dtype if self.steps is None else self.steps.dtype)

    def _take(self, count):
        while self.taken < count:
            self._drawn()
            self.taken += 1
