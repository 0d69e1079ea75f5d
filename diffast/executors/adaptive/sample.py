"""`df.sample_adaptive`: every sample chooses its own steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast.executors.adaptive.graph_rounds import GraphRounds
from diffast.executors.adaptive.options import WHO, AdaptiveOptions
from diffast.executors.adaptive.round_terms import trial_terms
from diffast.executors.adaptive.rounds import STATUSES, AdaptiveRun
from diffast.executors.adaptive.shared_steps import (
    MOST_GROWTH,
    SharedNetwork,
    check_shared,
    first_step,
    for_each,
    shared_denoiser,
    shared_start,
)
from diffast.executors.adaptive.time_variable import TimeInterval
from diffast.executors.context import (
    check_own_times,
    place_of,
    progress_bar,
    warn_of_spread,
)
from diffast.executors.results import FINE, NonFiniteError, Result, StepLimitError
from diffast.executors.ruled import ruled
from diffast.lowering.trial_steps import lower_trial
from diffast.model.denoiser import Denoiser
from diffast.ops.schema import COUNTS, FAILED_FINITE, FINISHED, RUNNING
from diffast.solvers import embedded
from diffast.solvers.embedded import EmbeddedSolver
from diffast.solvers.embedded.runge_kutta import RungeKutta


@dataclass(frozen=True)
class Steps:
    """Every trial step of a run, in the order of its rounds: arrays [N].

    Attributes:
        sample: which sample.
        time, lam: model time and log-SNR where the step started.
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
class AdaptiveSamples(Result):
    """What `df.sample_adaptive` returns: a `Result`, and more.

    After an interruption x holds the states of the samples that were still on their way.

    Attributes:
        accepted, rejected: trial steps of each sample, [B] int64.
        forgotten: rejected points that there was no room to remember, [B].
        outcomes: what became of each sample in words, see `STATUSES`.
        rounds: network calls of the run: those of its slowest sample.
        wasted: network evaluations of samples that had finished before.
        steps: every trial step, if the run was traced.
    """

    accepted: torch.Tensor
    rejected: torch.Tensor
    forgotten: torch.Tensor
    outcomes: tuple[str, ...]
    rounds: int
    wasted: int
    steps: Steps | None = None


def sample_adaptive(
    denoiser: Denoiser,
    method: str | EmbeddedSolver = "pec",
    shape: Sequence[int] | None = None,
    **options: Any,
) -> AdaptiveSamples:
    """Returns samples of the denoiser's distribution, every one by steps of its own size.

    Each sample has its own time, step and decision. Those that are done leave the batch, so no
    network call is spent on them. Sample b depends on (seed, ids[b]) alone: it is the same in a
    batch of 1 or 1,000, if the network's answer for it is. With control="batch" all samples take
    the same steps instead, as in torchdiffeq; they then depend on one another.

    Args:
        denoiser: the network and what it predicts.
        method: name of an embedded solver, see `df.embedded`: "pec" (the reverse SDE, one call a
            trial step), "ggf", "euler_heun" (also SDEs), "dpm_12", "dpm_23", "bosh3", "dopri5",
            "tsit5" (the probability-flow ODE); or an embedded solver made there.
        shape: [B, ...] of the state; not needed with `x`.
        options: those of `AdaptiveOptions`, which describes them (seed, ids, x, device, noise,
            control, reject, controller, denoise, until, h_init, h_min, h_max, max_calls, clamp,
            on_x0, callback, progress, throw, compact, trace, executor). Others are passed to the
            method's builder (rtol, atol, ...).

    Raises:
        ValueError: for arguments that disagree; the message names the two facts.
        NonFiniteError: at the end of the run, if samples are not finite; its `result` holds the
            others.
        StepLimitError: the same, if samples met the least step or the most calls and none was not
            finite.
    """
    if options.get("control") == "batch":
        return _shared(denoiser, method, shape, options)
    run, evaluated = prepare(denoiser, method, shape, **options), 0
    name, given = run.solver.name, run.options
    stopped = False
    with torch.inference_mode(), progress_bar(run.shape[0], name, "sample", given.progress) as bar:
        rounds = GraphRounds(run) if given.executor == "graph" else run
        if run.batch.size:
            evaluated += run.batch.size
            run.start(given.x)
        while run.batch.size and not stopped:
            left = run.batch.size
            evaluated += left * rounds.round()
            bar.update(left - run.batch.size)
            if given.callback is not None and run.batch.size:
                stopped = bool(given.callback(run.progress()))
        if stopped:
            run.stop()
    return _result(run, evaluated, not stopped, given.x)


def _with_options(signature: inspect.Signature) -> inspect.Signature:
    """Returns the signature with the fields of `AdaptiveOptions` before the last parameter."""
    *first, rest = signature.parameters.values()
    kind = inspect.Parameter.KEYWORD_ONLY
    named = [
        inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
        for field in fields(AdaptiveOptions)
    ]
    return signature.replace(parameters=[*first, *named, rest])


# What `help` and editors show.
sample_adaptive.__signature__ = _with_options(inspect.signature(sample_adaptive))


def prepare(
    denoiser: Denoiser,
    method: str | EmbeddedSolver = "pec",
    shape: Sequence[int] | None = None,
    **options: Any,
) -> AdaptiveRun:
    """Returns the run of `sample_adaptive` before its first network call; the same arguments."""
    given, solver = _settled(method, options)
    check_own_times(WHO, denoiser)
    denoiser = ruled(WHO, denoiser)
    place = place_of(
        WHO, denoiser, shape, given.x, given.device, given.seed, given.ids, given.clamp
    )
    warn_of_spread(WHO, denoiser.schedule, denoiser.schedule.t_start, given.x)
    prediction, interval = denoiser.prediction, _interval(denoiser, solver, given)
    # A term that reads the x0 estimate needs it as a tensor of its own, as a hook does.
    terms = trial_terms(denoiser)
    hook = given.on_x0 is not None or any(term.through != "x" for term in terms)
    noise, clamp = given.noise_for(solver), given.clamp is not None
    program = lower_trial(solver, prediction, noise, hook, clamp, terms)
    return AdaptiveRun(denoiser, program, interval, place, given)


def _shared(
    denoiser: Denoiser, method: str | EmbeddedSolver, shape: Sequence[int] | None, options: dict
) -> AdaptiveSamples:
    """Returns the samples of a run whose samples all take the same steps."""
    denoiser = ruled(WHO, denoiser)
    given, solver = _settled(method, dict(options))
    check_shared(given, solver)
    place = place_of(
        WHO, denoiser, shape, given.x, given.device, given.seed, given.ids, given.clamp
    )
    count = place.shape[0]
    if count == 0:
        return sample_adaptive(denoiser, method, shape, **{**options, "control": "sample"})
    network = SharedNetwork(denoiser, place)
    shared, x = shared_denoiser(network), shared_start(denoiser, place, given.x)
    step = given.h_init
    if step is None and isinstance(solver, RungeKutta):
        step = first_step(network, shared, solver, _interval(denoiser, solver, given), x)
    if given.controller is None:
        options = options | {"controller": {"most": MOST_GROWTH}}
    more = {"control": "sample", "x": x, "ids": None, "throw": False, "h_init": step}
    made = sample_adaptive(shared, method, **{**options, **more, "device": place.device})
    found = int(given.h_init is None and isinstance(solver, RungeKutta))
    before: Any = made.network_rows
    rows = (made.nfe + found) * (before // made.nfe.clamp(min=1))  # as many for every call
    made = replace(made, nfe=made.nfe + found, rounds=made.rounds + found, network_rows=rows)

    def what(b: int, call: int) -> str:
        return f"{made.outcomes[0]} after {call + 1} network calls of the whole batch"

    kind = NonFiniteError if made.outcomes[0] == STATUSES[FAILED_FINITE] else StepLimitError
    return for_each(made, count).or_raise(WHO, place.ids, given.throw, what, kind, initial=given.x)


def _settled(method: str | EmbeddedSolver, options: dict) -> tuple[AdaptiveOptions, EmbeddedSolver]:
    """Returns the run's options and its own solver, with the run's controller."""
    names = {field.name for field in fields(AdaptiveOptions)} & set(options)
    given = AdaptiveOptions(**{name: options.pop(name) for name in names})
    solver = copy.copy(_solver(method, options))
    solver.controller = given.controller_for(solver)
    return given, solver


def _interval(denoiser: Denoiser, solver: EmbeddedSolver, given: AdaptiveOptions) -> TimeInterval:
    """Returns the way of a run in its method's time variable."""
    slopes = solver.needs_slopes or denoiser.prediction.sloped
    until = denoiser.schedule.t_min if given.until is None else given.until
    try:
        return TimeInterval(denoiser.schedule, solver.time_variable, until, slopes)
    except ValueError as error:
        raise ValueError(f"{WHO}: until is {until:g} but {error}") from None


def _solver(method: str | EmbeddedSolver, options: dict) -> EmbeddedSolver:
    if isinstance(method, EmbeddedSolver):
        if options:
            raise ValueError(
                f"sample_adaptive: the method is an embedded solver made before, but options "
                f"{sorted(options)} are for making one"
            )
        return method
    if not isinstance(method, str):
        said = arguments.shown(method)
        raise ValueError(f"{WHO}: method is {said} but must be an embedded solver or its name")
    try:
        build = embedded.get(method)
        for name in {"rtol", "atol"} & set(options):
            if options[name] is not None or name == "rtol":
                options[name] = arguments.number(WHO, name, options[name], "", lambda n: True)
        return build(**options)
    except TypeError as error:
        if str(error).startswith(WHO):
            raise
        raise ValueError(f"{WHO}: options {sorted(options)} but {error}") from None
    except ValueError as error:
        raise type(error)(f"{WHO}: {error}") from None


def _result(
    run: AdaptiveRun, evaluated: int, completed: bool, x: torch.Tensor | None
) -> AdaptiveSamples:
    counts = run.final["counts"]
    column = {name: counts[:, k].clone() for k, name in enumerate(COUNTS)}
    codes = column["status"].tolist()
    fine = (column["status"] == FINISHED) | (column["status"] == RUNNING)
    result = AdaptiveSamples(
        x=run.out,
        nfe=column["calls"],
        status=torch.where(fine, FINE, column["calls"] - 1),
        completed=completed,
        accepted=column["accepted"],
        rejected=column["rejected"],
        forgotten=column["forgotten"],
        outcomes=tuple(STATUSES[code] for code in codes),
        rounds=run.rounds + 1,
        wasted=evaluated - int(column["calls"].sum()),
        steps=None if run.trace is None else _steps(run),
        network_rows=column["calls"] * run.rows_a_call,
    )

    def what(b: int, call: int) -> str:
        return f"{STATUSES[codes[b]]} after {call + 1} network calls"

    kind = NonFiniteError if FAILED_FINITE in codes else StepLimitError
    return result.or_raise(WHO, run.ids, run.options.throw, what, kind, initial=x)


def _steps(run: AdaptiveRun) -> Steps:
    made = []  # (samples, starts, ends, errors, accepted) of each round's decided steps
    for row, control, counts, after, state in run.trace or ():
        counts, after = counts.cpu().numpy(), after.cpu().numpy()
        decided = (after[:, 3:5] != counts[:, 3:5]).any(axis=1)
        begin, end = control.cpu().numpy()[decided, :2].T
        error, accepted = state.cpu().numpy()[decided, 3], after[:, 3] > counts[:, 3]
        made.append((row[decided], begin, end, error, accepted[decided]))
    columns = zip(*made, strict=True) if made else [()] * 5
    sample, begin, end, error, accepted = (
        np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
        for parts, dtype in zip(columns, (np.int64, *[np.float64] * 3, bool), strict=True)
    )
    begin, end = run.interval.nodes(begin), run.interval.nodes(end)
    return Steps(sample, begin.time, begin.lam, end.time, end.lam, error, accepted)
