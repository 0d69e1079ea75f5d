"""Runs that are drawn: step sizes of adaptive samples, rounds of parallel samples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from diffast.executors.parallel.sample import ParallelSamples

# Colours that colour-blind people can tell apart (Okabe and Ito).
_BLUE, _VERMILION, _GRAY = "#0072B2", "#D55E00", "#7F7F7F"


def adaptive(arguments: argparse.Namespace, denoiser, given: dict):
    """Runs an adaptive method; returns (its name, facts, lines to print, what draws them)."""
    from diffast import sample_adaptive

    out = sample_adaptive(denoiser, arguments.adaptive, trace=True, throw=False, **given)
    facts = adaptive_facts(out)
    statuses = ", ".join(f"{count} {reason}" for reason, count in facts["statuses"].items())
    lines = (
        f"network calls  {facts['calls_mean']:.1f} a digit, {facts['calls_most']} the slowest",
        f"trial steps    {facts['accepted']} accepted, {facts['rejected']} rejected",
        f"digits         {statuses}",
    )
    return arguments.adaptive, facts, lines, partial(draw_steps, out)


def parallel(arguments: argparse.Namespace, denoiser, given: dict, known: Sequence[str]):
    """Runs a parallel method; returns the same of it.

    Raises:
        ValueError: a grid that is not among the known ones.
    """
    from diffast import grids, sample_parallel, schedules, solvers

    if arguments.grid not in known:
        raise ValueError(f"--grid {arguments.grid!r} but the grids are {', '.join(known)}")
    schedule = schedules.edm()
    times = getattr(grids, arguments.grid)(schedule, arguments.steps)
    plan = solvers.get(arguments.solver)(schedule, times)
    out = sample_parallel(denoiser, plan, method=arguments.parallel, **given)
    facts = {"plan": plan.name, "stages": plan.nfe} | parallel_facts(out)
    lines = (
        f"plan           {plan.name}, {plan.nfe} stages",
        f"rounds         {out.rounds}",
        f"evaluations    {facts['evaluations_mean']:.1f} a digit",
    )
    return arguments.parallel, facts, lines, partial(draw_rounds, out, plan.nfe)


def adaptive_facts(out) -> dict:
    """Returns numbers about an adaptive run, as JSON can hold them.

    Raises:
        ValueError: a run that was not traced.
    """
    steps = _steps_of(out)
    return {
        "samples": len(out.nfe),
        "calls_mean": _mean_calls(out),
        "calls_most": int(out.nfe.max()) if len(out.nfe) else 0,
        "accepted": int(out.accepted.sum()),
        "rejected": int(out.rejected.sum()),
        "forgotten": int(out.forgotten.sum()),
        "wasted": out.wasted,
        "statuses": {word: out.outcomes.count(word) for word in sorted(set(out.outcomes))},
        "trial_steps": {
            name: np.asarray(getattr(steps, name)).tolist()
            for name in ("sample", "lam", "lam_to", "error", "accepted")
        },
    }


def draw_steps(out, path: str | Path, title: str = "") -> None:
    """Draws size and error of an adaptive run's trial steps against the log-SNR of their starts.

    Raises:
        ValueError: a run that was not traced.
        ImportError: matplotlib is not installed (`pip install diffast[plot]`).
    """
    steps = _steps_of(out)
    figure, sizes, errors = _figure(title, sharex=True)
    size, good = steps.lam_to - steps.lam, steps.accepted
    kinds = ((good, _BLUE, "o", "accepted"), (~good, _VERMILION, "x", "rejected"))
    for mask, color, marker, label in kinds:
        if mask.any():
            marks = {"s": 12, "alpha": 0.6, "color": color, "marker": marker}
            marks["label"] = f"{label} trial steps ({mask.sum()})"
            sizes.scatter(steps.lam[mask], size[mask], **marks)
            errors.scatter(steps.lam[mask], np.maximum(steps.error[mask], 1e-6), **marks)
    sizes.set(ylabel="size of the step\n(log-SNR, nats)", yscale="log", title="Step sizes")
    errors.set(xlabel="log-SNR log(alpha / sigma) at the start of the step (nats)", yscale="log")
    errors.set(ylabel="error of the step\n(1 = tolerance)", title="Errors")
    if len(size):
        sizes.legend()
    figure.savefig(path, dpi=120)


def parallel_facts(out: ParallelSamples) -> dict:
    """Returns numbers about a parallel run, in types that JSON has."""
    return {
        "samples": len(out.nfe),
        "rounds": out.rounds,
        "evaluations_mean": _mean_calls(out),
        "rows": out.rows,
        "settled": [step.settled.tolist() for step in out.history],
        "error": [
            [value if np.isfinite(value) else None for value in step.error.tolist()]
            for step in out.history
        ],
    }


def draw_rounds(out: ParallelSamples, stages: int, path: str | Path, title: str = "") -> None:
    """Draws the round in which each of the plan's stages was settled, and each round's errors.

    Raises:
        ImportError: matplotlib is not installed (`pip install diffast[plot]`).
    """
    figure, settled, errors = _figure(title)
    count = len(out.nfe)
    starts = np.array([np.zeros(count), *(step.settled for step in out.history)])  # [rounds + 1, B]
    rounds = np.arange(len(starts))
    for b in range(count):
        label = "one sample" if b == 0 else None
        settled.step(starts[:, b], rounds, where="pre", color=_BLUE, alpha=0.3, label=label)
    if count:
        settled.plot(np.median(starts, axis=1), rounds, color="black", label="median of samples")
    settled.plot([0, stages], [0, stages], color=_GRAY, linestyle=":", label="one stage a round")
    settled.legend()
    settled.set(xlabel="settled stages of the plan (count)", ylabel="network rounds (count)")
    settled.set(title="Settled stages after each round")
    settled.locator_params(integer=True)
    settled.set(xlim=(0, stages), ylim=(0, max(1, out.rounds)))
    error = np.array([step.error for step in out.history]).reshape(len(out.history), count)
    error = np.where(np.isfinite(error) & (error > 0), error, np.nan)
    errors.plot(rounds[1:], error, color=_VERMILION, alpha=0.3, marker=".")
    errors.set(
        xlabel="network round (number)", yscale="log", title="Estimated error of each sample"
    )
    errors.set(ylabel="relative error (no unit)")
    figure.savefig(path, dpi=120)


def _figure(title: str, **options):
    """Returns an empty figure and its two axes, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 1, **options)
    for part in axes:
        part.grid(visible=True, which="both", alpha=0.3)
    return figure, *axes


def _mean_calls(out) -> float:
    return round(out.nfe.double().mean().item(), 3) if len(out.nfe) else 0.0


def _steps_of(out):
    if out.steps is None:
        raise ValueError("profile: the run has no steps, but trace=True records them")
    return out.steps
