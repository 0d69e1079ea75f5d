"""The part "runs": seconds and network calls of whole runs to a given error.

Every method is run with its settings at rising budgets until its error is small enough. Of each
family, the settings that need the fewest calls are taken, and the families' best are then timed in
turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffast.bench import candidates, peer_candidates, problems
from diffast.bench.candidates import Candidate
from diffast.bench.problems import Problem
from diffast.bench.ratios import slower, timed
from diffast.bench.settings import Settings
from diffast.bench.table import Section

COLUMNS = ("error", "family", "best of its settings", "budget", "calls", "rounds", "error reached")
COLUMNS += ("ms", "times of ours", "spread")
ABOUT = (
    "The probability-flow ODE from sigma {high:.2f} to 0, {count} samples, from the same initial "
    "states for all. {network} Error: the rms distance to the end of the exact flow (made in a "
    "fine grid) over the standard deviation of the samples. Of each family, every setting is "
    "tried at rising budgets, up to {most} calls; the one that reaches the error with the fewest "
    "network calls a sample is listed (with equally many: the least error). Rounds: network calls "
    "one after another, where there are fewer than evaluations. Times of ours: milliseconds over "
    "those of the package's fixed steps at the same error."
)
NETWORKS = {
    "mixture": "The denoiser is the exact one of 8 Gaussians in 16 dimensions and costs next to "
    "nothing, so that the milliseconds are the samplers' own.",
    "digits": "The denoiser is the embedded digit network, which takes nearly all of the time.",
}
TARGETS = {"mixture": (0.1, 0.03, 0.01), "digits": (0.1, 0.03, 0.01)}


@dataclass(frozen=True)
class Point:
    """One run: its budget, network evaluations a sample, rounds, and error."""

    budget: float
    calls: float
    rounds: int | None
    error: float


@dataclass(frozen=True)
class Curve:
    """A candidate's runs at rising budgets, and why they ended early, if they did."""

    candidate: Candidate
    points: list[Point]
    failure: str | None = None

    def first(self, target: float) -> Point | None:
        """Returns the first run whose error is small enough."""
        return next((point for point in self.points if point.error <= target), None)


def curve_of(candidate: Candidate, problem: Problem, targets: tuple, most: float) -> Curve:
    """Returns the runs of a candidate until its error meets the last target.

    Args:
        candidate: method and settings.
        problem: what it samples from.
        targets: errors to reach; the runs end once the smallest is reached.
        most: network evaluations a sample, after which the runs end.
    """
    points = []
    for budget in candidate.budgets:
        problem.reset()
        try:
            x, rounds = candidate.run(problem, budget)
        except (ValueError, FloatingPointError, AssertionError, IndexError) as error:
            # An AssertionError is torchdiffeq's "underflow in dt".
            return Curve(candidate, points, str(error).splitlines()[0])
        points.append(Point(budget, problem.calls, rounds, problem.error(x)))
        sequential = rounds or problem.calls
        if points[-1].error <= min(targets) or sequential >= most:
            break
    return Curve(candidate, points)


def run(settings: Settings) -> list[Section]:
    """Returns a section for each problem."""
    names = ("mixture",) if settings.tiny else ("mixture", "digits")
    return [_section(name, settings) for name in names]


def _problem(name: str, settings: Settings) -> Problem:
    sizes: dict[str, int] = {}
    if settings.tiny:
        sizes = {"count": 2, "steps": 12}
    elif settings.quick and name == "digits":
        sizes = {"count": 2, "steps": 24}
    return getattr(problems, name)(settings.device, **sizes)


def _section(name: str, settings: Settings) -> Section:
    refusal = settings.refusal("combine", "combine_error", "accept", "sweep", "gram")
    title = f"Whole runs: {name}"
    if refusal:
        about = "Seconds and network calls to a given error."
        return Section(f"runs: {name}", title, about, COLUMNS, [{"error": 0, "refused": refusal}])
    quick = settings.quick or settings.tiny
    targets = TARGETS[name][: 2 if quick and name == "digits" else None]
    most = 24 if quick and name == "digits" else 64
    with settings.using(settings.threads[0]), torch.no_grad():
        problem = _problem(name, settings)
        theirs, lines = peer_candidates.theirs(quick)
        tried = [*candidates.ours(quick), *theirs]
        curves = [curve_of(candidate, problem, targets, most) for candidate in tried]
        rows = [row for target in targets for row in _rows(target, curves, problem, settings)]
    about = ABOUT.format(
        high=problems.SIGMA_MAX, count=len(problem.start), network=NETWORKS[name], most=most
    )
    points = [
        {
            "family": curve.candidate.family,
            "name": curve.candidate.name,
            "points": [[point.calls, point.error] for point in curve.points],
        }
        for curve in curves
    ]
    failed = [f"{c.candidate.family}, {c.candidate.name}: {c.failure}" for c in curves if c.failure]
    section = Section(f"runs: {name}", title, about, COLUMNS, rows, [*lines, *failed])
    return Section(
        **{**vars(section), "plot": {"kind": "runs", "curves": points, "most": 2 * most}}
    )


def best_of(curves: list[Curve], target: float) -> dict[str, tuple[Candidate, Point]]:
    """Returns each family's candidate that reaches an error with the fewest calls."""
    best: dict[str, tuple[Candidate, Point]] = {}
    for curve in curves:
        point, family = curve.first(target), curve.candidate.family
        if point is None:
            continue
        held = best.get(family)
        if held is None or (point.calls, point.error) < (held[1].calls, held[1].error):
            best[family] = (curve.candidate, point)
    return best


def _rows(target: float, curves: list[Curve], problem: Problem, settings: Settings) -> list[dict]:
    best = best_of(curves, target)

    def timed_run(candidate: Candidate, budget: float) -> Callable[[], object]:
        return lambda: candidate.run(problem, budget)

    functions = {family: timed_run(c, point.budget) for family, (c, point) in best.items()}
    timings = timed(functions, settings.budget, settings.device, least=5) if functions else {}
    mine = best.get(candidates.FIXED)
    rows = []
    for family in dict.fromkeys(curve.candidate.family for curve in curves):
        row: dict[str, Any] = {"error": target, "family": family} | settings.marks()
        if family not in best:
            rows.append(row | {"best of its settings": "not reached"})
            continue
        candidate, point = best[family]
        timing = timings[family]
        row |= {
            "best of its settings": candidate.name,
            "budget": point.budget,
            "calls": point.calls,
            "rounds": point.rounds,
            "error reached": point.error,
            "ms": timing.median * 1e3,
            "spread": timing.spread,
            "rounds of timing": timing.rounds,
        }
        if mine and family != candidates.FIXED:
            base = timings[candidates.FIXED]
            row["times of ours"] = timing.median / base.median
            # What the row's tool does better than the package's fixed steps.
            if not family.startswith("diffast"):
                row["loss"] = point.calls < mine[1].calls or slower(base, timing)
        rows.append(row)
    return rows
