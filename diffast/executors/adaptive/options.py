"""The options of an adaptive run: what they are, and which of them fit the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffast import _arguments as arguments
from diffast.executors.context import OnX0, check_executor, check_flags, check_noise, refuse
from diffast.executors.results import Progress
from diffast.lowering.trial_steps import TrialNoise
from diffast.solvers.embedded import EmbeddedSolver, controllers

# The function that messages name.
WHO = "sample_adaptive"

# Why a source of noise cannot be had here.
_SOURCES = {"callable": "samples take steps of their own: there is no stage to ask a function for"}


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions:
    """Keyword arguments of `df.sample_adaptive`.

    Attributes:
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        x: the initial state [B, ...], at the schedule's noisiest time. Not written to.
        device: where to run; default: that of `x`, else the network's.
        noise: where the noise of a stochastic method comes from. "bridge" (default): what a
            rejected trial step drew is remembered, and later draws agree with it. "path": one path
            a sample that depends neither on steps nor on rejections, at a resolution of 16 / 2^20
            in log-SNR, several times the work. "redraw" (only "ggf"): fresh noise after a
            rejection, as published; its samples have the wrong law in low dimension. "counter": a
            normal for each (seed, id, call, element), for methods whose decisions do not depend on
            their noise, and with `reject=False`.
        control: "sample": every sample has steps of its own. "batch": all samples take the same
            steps, and the error is the root mean square over all of them. rtol and atol then mean
            what they mean in torchdiffeq's `odeint`, and the first step is found as there. For
            methods of the probability-flow ODE; a sample that is not finite fails the whole batch.
        reject: False: every trial step is accepted, the error only chooses the next step.
        controller: numbers of the step-size rule to change, by name; or "pi" or "ggf", which leave
            the method its bounds on steps.
        denoise: whether a sample ends as the x0 estimate at the last time (else as the state).
        until: model time of the last state; default: the schedule's t_min.
        h_init: first step, in the units of the method's time variable; default: the method's
            `step`; with control="batch", Runge-Kutta methods find one, which costs a call.
        h_min: least step: a sample that would need a smaller one fails.
        h_max: largest step.
        max_calls: network calls after which a sample fails.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, info)` with the estimate [B', ...] of the samples in the batch
            (after the clamp, if any) and an `Info`; what it returns is used instead.
        callback: called after each round with a `Progress` of the samples in the batch, whose x are
            their states and whose x0 is None; a true answer stops the run.
        progress: whether to show a progress bar of finished samples on stderr.
        throw: whether failed samples raise; otherwise `status` says which failed.
        compact: whether samples that are done leave the batch. Without, the network sees one
            batch size throughout.
        trace: whether to record every trial step.
        executor: "sequential": round by round. "graph", on CUDA devices: rounds are replays of one
            CUDA graph, which holds the network's kernels; it is captured in every run, after the
            first rounds. The samples have the same bits. All samples stay in the batch until the
            last has finished (compact=False). Where the network cannot be captured, a warning says
            why.
    """

    seed: int = 0
    ids: Sequence[int] | torch.Tensor | None = None
    x: torch.Tensor | None = None
    device: torch.device | str | None = None
    noise: str | Callable | None = None
    control: str = "sample"
    reject: bool = True
    controller: dict | str | None = None
    denoise: bool = True
    until: float | None = None
    h_init: float | None = None
    h_min: float | None = None
    h_max: float | None = None
    max_calls: int = 10_000
    clamp: tuple[float, float] | None = None
    on_x0: OnX0 | None = None
    callback: Callable[[Progress], bool | None] | None = None
    progress: bool = False
    throw: bool = True
    compact: bool = True
    trace: bool = False
    executor: str = "sequential"

    def __post_init__(self):
        """Checks what no method changes."""
        check_executor(WHO, self.executor)
        arguments.choice(WHO, "control", self.control, ("sample", "batch"))
        names = ("reject", "denoise", "progress", "throw", "compact", "trace")
        flags = {name: getattr(self, name) for name in names}
        check_flags(WHO, on_x0=self.on_x0, callback=self.callback, **flags)
        if self.executor == "graph":
            why = "a graph's rounds cannot be looked into: leave executor out"
            refuse("sample_adaptive", trace=(self.trace, why))
            object.__setattr__(self, "compact", False)
        for name in ("h_init", "h_min", "h_max"):
            value = getattr(self, name)
            if value is not None:
                finite = name == "h_min"
                object.__setattr__(self, name, arguments.positive(WHO, name, value, finite))
        object.__setattr__(self, "max_calls", arguments.whole(WHO, "max_calls", self.max_calls))
        if self.until is not None:
            object.__setattr__(self, "until", arguments.number(WHO, "until", self.until))

    def controller_for(self, solver: EmbeddedSolver) -> dict:
        """Returns the numbers of the step-size rule for a method, or raises ValueError."""
        changes, rule = self.controller or {}, solver.controller
        if not isinstance(changes, (str, Mapping)):
            raise ValueError(
                f"{WHO}: controller is {arguments.shown(changes)} but must be a name or numbers by "
                "name"
            )
        if isinstance(changes, str):
            if changes not in controllers.NAMED:
                known = " and ".join(controllers.NAMED)
                raise ValueError(
                    f"sample_adaptive: controller {changes!r} is not known, but {known} are"
                )
            changes = controllers.NAMED[changes]
        if unknown := set(changes) - set(rule):
            named = sorted(map(str, unknown))
            raise ValueError(
                f"sample_adaptive: the controller has {named} but knows {sorted(rule)}"
            )
        for name, value in changes.items():
            if not isinstance(value, bool):  # a switch of the rule is one of its numbers
                _check_control(name, value)
        bounds = {"step_min": self.h_min, "step_max": self.h_max}
        rule = rule | changes | {k: v for k, v in bounds.items() if v is not None}
        if rule["step_min"] > rule["step_max"]:
            raise ValueError(
                f"sample_adaptive: h_min is {rule['step_min']} but h_max is {rule['step_max']}"
            )
        return rule

    def noise_for(self, solver: EmbeddedSolver) -> TrialNoise:
        """Returns where a method's noise comes from; raises ValueError where it cannot."""
        noise = "bridge"
        if self.noise is not None:
            refused = _SOURCES | self._noise_refused(solver)
            noise = check_noise("sample_adaptive", self.noise, refused)
        if solver.noise != "input":
            return TrialNoise("fresh" if solver.noise == "state" else "none", 0)
        if noise == "path":
            return TrialNoise("path", 0)
        if noise in ("redraw", "counter") or not self.reject:
            return TrialNoise("fresh", 0)
        return TrialNoise("bridge", solver.rejected_points)

    def _noise_refused(self, solver: EmbeddedSolver) -> dict[str, str]:
        """Returns why a method cannot have a kind of noise, by kind."""
        name, refused = solver.name, {}
        if solver.noise != "input":
            what = "draws none" if solver.noise == "none" else "draws it after the decision"
            return dict.fromkeys(("path", "bridge"), f"{name} {what}")
        if self.reject:
            refused["counter"] = (
                f"steps of {name} may be rejected, after which a draw has to agree with the last "
                "one: use 'bridge' or 'path'"
            )
        if not solver.allows_redraw:
            again = "noise drawn anew after a rejection, which makes the law wrong"
            refused["redraw"] = f"{name} is never run with {again}"
        return refused


def _check_control(name: str, value: Any) -> None:
    """Raises for what is no number of a step-size rule; factors and bounds of steps are above 0."""
    what = f"controller[{name!r}]"
    if name in ("safety", "least", "most", "step_max"):
        arguments.positive(WHO, what, value)
    else:
        arguments.number(WHO, what, value, "be a number", lambda n: n == n)
