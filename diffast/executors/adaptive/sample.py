"""`df.sample_adaptive`: every sample chooses its own steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffast import ops
from diffast.executors.adaptive.rounds import STATUSES, Run
from diffast.executors.adaptive.time_variable import Clock
from diffast.executors.context import ids_of, limits_of, progress_bar, state_like
from diffast.lowering.trial_steps import Noise
from diffast.model.denoiser import Denoiser
from diffast.ops.schema import COUNTS, FINISHED
from diffast.solvers import embedded as pairs

NOISES = ("bridge", "path", "redraw")
_OF_THE_METHOD = ("step_min", "step_max", "balance", "noise_floor", "error_eps")


@dataclass(frozen=True)
class Steps:
    """Every attempt of a run, in the order of its rounds: arrays [N].

    Attributes:
        sample: which sample.
        time, lam: model time and log-SNR where the attempt started.
        time_to, lam_to: where it led.
        error: its scaled error.
        accepted: whether it was accepted.
    """

    sample: np.ndarray
    time: np.ndarray
    lam: np.ndarray
    time_to: np.ndarray
    lam_to: np.ndarray
    error: np.ndarray
    accepted: np.ndarray


@dataclass(frozen=True)
class AdaptiveSamples:
    """What an adaptive run returns.

    Attributes:
        x: the samples [B, ...]; of a sample that failed, its last accepted state.
        nfe: network calls of each sample, [B] int64. A guided call of both halves counts once.
        accepted, rejected: attempts of each sample, [B] int64.
        forgotten: rejected points that there was no room to remember, [B].
        status: [B] int64, see `STATUSES`; 1 is finished.
        rounds: network calls of the run: those of its slowest sample.
        wasted: network evaluations of samples that had finished before.
        steps: every attempt, if the run was traced.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    accepted: torch.Tensor
    rejected: torch.Tensor
    forgotten: torch.Tensor
    status: torch.Tensor
    rounds: int
    wasted: int
    steps: Steps | None = None

    @property
    def finished(self) -> torch.Tensor:
        """Returns whether each sample finished, [B] bool."""
        return self.status == FINISHED

    def reasons(self) -> list[str]:
        """Returns the status of each sample in words."""
        return [STATUSES[number] for number in self.status.tolist()]


def sample_adaptive(
    denoiser: Denoiser,
    method: str | pairs.Pair = "pec",
    shape: Sequence[int] | None = None,
    *,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    device: torch.device | str | None = None,
    noise: str | None = None,
    reject: bool = True,
    controller: dict | str | None = None,
    denoise: bool = True,
    until: float | None = None,
    h_init: float | None = None,
    h_min: float | None = None,
    h_max: float | None = None,
    max_calls: int = 10_000,
    clamp: tuple[float, float] | None = None,
    on_x0: Callable | None = None,
    compact: bool = True,
    trace: bool = False,
    progress: bool = False,
    **options,
) -> AdaptiveSamples:
    """Returns samples of the denoiser's distribution, every one by steps of its own size.

    Each sample has its own time, step and decision; those that are done leave the batch, so no
    network call is spent on them. Sample b depends on (seed, ids[b]) alone: it is the same in a
    batch of 1 or 1,000, if the network's answer for it is.

    Args:
        denoiser: the network and what it predicts.
        method: name of a pair, see `df.pairs`: "pec" (the reverse SDE, one call an attempt), "ggf",
            "euler_heun" (also SDEs), "dpm_12", "dpm_23", "bosh3", "dopri5", "tsit5" (the
            probability-flow ODE); or a pair made there.
        shape: [B, ...] of the state; not needed with `state`.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        state: the initial state itself, at the schedule's noisiest time. Not written to.
        device: where to run; default: the state's, else the network's.
        noise: of a stochastic method. "bridge" (default): what a rejected attempt drew is
            remembered, and later draws agree with it; "path": one path a sample that depends
            neither on steps nor on rejections, at a resolution of 16 / 2^20 in log-SNR, several
            times the work; "redraw" (only "ggf"): fresh noise after a rejection, as published:
            its samples have the wrong law in low dimension.
        reject: False: every attempt is accepted, the error only chooses the next step.
        controller: numbers of the step-size rule to change, by name; or "pi" or "ggf", which leave
            the method its bounds on steps.
        denoise: whether a sample ends as the x0 estimate at the last time (else as the state).
        until: model time of the last state; default: the schedule's t_min.
        h_init: first step, in the units of the method's clock.
        h_min: least step: a sample that would need a smaller one fails.
        h_max: largest step.
        max_calls: network calls after which a sample fails.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, times)` with the estimate [B', ...] of the samples in the batch
            and their model times [B']; what it returns is used instead.
        compact: whether samples that are done leave the batch. Without, the network sees one
            batch size throughout.
        trace: whether to record every attempt.
        progress: whether to show a progress bar of finished samples on stderr.
        options: passed to the method's builder (rtol, atol, ...).

    Raises:
        ValueError: for arguments that disagree; the message names the two facts.

    Warns:
        RuntimeWarning: if samples failed; their status says why.
    """
    run = prepare(
        denoiser,
        method,
        shape,
        seed=seed,
        ids=ids,
        state=state,
        device=device,
        noise=noise,
        reject=reject,
        controller=controller,
        denoise=denoise,
        until=until,
        h_init=h_init,
        h_min=h_min,
        h_max=h_max,
        max_calls=max_calls,
        clamp=clamp,
        on_x0=on_x0,
        compact=compact,
        trace=trace,
        **options,
    )
    evaluated = 0
    with (
        torch.inference_mode(),
        progress_bar(run.shape[0], run.pair.name, "sample", progress) as bar,
    ):
        if run.batch.size:
            evaluated += run.batch.size
            run.start(state)
        while run.batch.size:
            left = run.batch.size
            evaluated += left
            run.round()
            bar.update(left - run.batch.size)
    return _result(run, evaluated)


def prepare(
    denoiser,
    method="pec",
    shape=None,
    *,
    seed=0,
    ids=None,
    state=None,
    device=None,
    noise=None,
    reject=True,
    controller=None,
    denoise=True,
    until=None,
    h_init=None,
    h_min=None,
    h_max=None,
    max_calls=10_000,
    clamp=None,
    on_x0=None,
    compact=True,
    trace=False,
    **options,
) -> Run:
    """Returns the run of `sample_adaptive` before its first network call; the same arguments."""
    pair = copy.copy(_pair(method, options))
    shape, device, dtype = state_like("sample_adaptive", denoiser, shape, state, device)
    until = denoiser.schedule.t_min if until is None else until
    clock = Clock(denoiser.schedule, pair.clock, until, pair.slopes or denoiser.prediction.sloped)
    _change_rule(pair, controller, h_min, h_max)
    step = pair.step if h_init is None else h_init
    for name, value in (("h_init", step), ("max_calls", max_calls)):
        if not value > 0:
            raise ValueError(f"sample_adaptive: {name} is {value} but must be above 0")
    return Run(
        denoiser,
        pair,
        clock,
        _noise(pair, noise, reject),
        shape=shape,
        device=device,
        dtype=dtype,
        ids=ids_of("sample_adaptive", ids, shape[0], device),
        seed=ops.fold_seed(seed),
        limits=limits_of("sample_adaptive", clamp),
        on_x0=on_x0,
        rejects=reject,
        denoise=denoise,
        step=step,
        most_calls=int(max_calls),
        compact=compact,
        traced=trace,
    )


def _result(run: Run, evaluated: int) -> AdaptiveSamples:
    counts = run.final["counts"]
    column = {name: counts[:, k].clone() for k, name in enumerate(COUNTS)}
    status = column["status"].tolist()
    failed = [b for b, code in enumerate(status) if code != FINISHED]
    if failed:
        words = [f"{b} (id {int(run.ids[b])}): {STATUSES[status[b]]}" for b in failed[:8]]
        more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
        warnings.warn(
            f"sample_adaptive: {len(failed)} of {len(status)} samples failed: "
            f"{', '.join(words)}{more}",
            RuntimeWarning,
            stacklevel=3,
        )
    return AdaptiveSamples(
        x=run.out,
        nfe=column["calls"],
        accepted=column["accepted"],
        rejected=column["rejected"],
        forgotten=column["forgotten"],
        status=column["status"],
        rounds=run.rounds + 1,
        wasted=evaluated - int(column["calls"].sum()),
        steps=None if run.trace is None else _steps(run),
    )


def _steps(run: Run) -> Steps:
    rows, starts, ends, errors, accepted = [], [], [], [], []
    for row, control, counts, after, state in run.trace:
        counts, after = counts.cpu().numpy(), after.cpu().numpy()
        decided = (after[:, 3:5] != counts[:, 3:5]).any(axis=1)
        rows.append(row[decided])
        control = control.cpu().numpy()[decided]
        starts.append(control[:, 0])
        ends.append(control[:, 1])
        errors.append(state.cpu().numpy()[decided, 3])
        accepted.append(after[decided, 3] > counts[decided, 3])

    def joined(parts, dtype):
        return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)

    begin, end = (run.clock.nodes(joined(p, np.float64)) for p in (starts, ends))
    return Steps(
        joined(rows, np.int64),
        begin.time,
        begin.lam,
        end.time,
        end.lam,
        joined(errors, np.float64),
        joined(accepted, bool),
    )


def _pair(method, options) -> pairs.Pair:
    if isinstance(method, pairs.Pair):
        if options:
            raise ValueError(
                f"sample_adaptive: the method is a pair made before, but options "
                f"{sorted(options)} are for making one"
            )
        return method
    try:
        return pairs.get(method)(**options)
    except TypeError as error:
        raise ValueError(f"sample_adaptive: options {sorted(options)} but {error}") from None


def _change_rule(pair, controller, h_min, h_max) -> None:
    rules = {"pi": pairs.proportional_integral(2.0), "ggf": pairs.GGF().controller}
    if isinstance(controller, str):
        if controller not in rules:
            raise ValueError(
                f"sample_adaptive: controller {controller!r} is not known, but pi and ggf are"
            )
        # What bounds a step belongs to the method, not to how errors choose it.
        controller = {k: v for k, v in rules[controller].items() if k not in _OF_THE_METHOD}
    rule = pair.controller | (controller or {})
    unknown = set(rule) - set(pair.controller)
    if unknown:
        raise ValueError(
            f"sample_adaptive: the controller has {sorted(unknown)} but knows "
            f"{sorted(pair.controller)}"
        )
    for name, key, value in (("h_min", "step_min", h_min), ("h_max", "step_max", h_max)):
        if value is not None:
            if not value > 0.0:
                raise ValueError(f"sample_adaptive: {name} is {value} but must be above 0")
            rule = rule | {key: value}
    if rule["step_min"] > rule["step_max"]:
        raise ValueError(
            f"sample_adaptive: h_min is {rule['step_min']} but h_max is {rule['step_max']}"
        )
    pair.controller = rule


def _noise(pair, noise, reject) -> Noise:
    if pair.noise != "point":
        if noise not in (None, "redraw"):
            what = "draws none" if pair.noise == "none" else "draws it after the decision"
            raise ValueError(f"sample_adaptive: noise is {noise!r} but {pair.name} {what}")
        return Noise("fresh" if pair.noise == "state" else "none", 0)
    noise = "bridge" if noise is None else noise
    if noise not in NOISES:
        raise ValueError(
            f"sample_adaptive: noise is {noise!r} but must be one of {', '.join(NOISES)}"
        )
    if noise == "redraw" and pair.name != "ggf":
        raise ValueError(
            f"sample_adaptive: noise is 'redraw' but {pair.name} is never run with noise drawn "
            "anew after a rejection, which makes the law wrong: only ggf is, as published"
        )
    if noise == "path":
        return Noise("path", 0)
    if noise == "redraw" or not reject:
        return Noise("fresh", 0)
    return Noise("bridge", pair.slots)
