"""The fewest network calls to a given error: candidates run at rising budgets, and the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffast.bench.candidates import ADAPTIVE, Candidate
from diffast.bench.problems import Problem
from diffast.bench.ratios import slower, timed
from diffast.bench.settings import Settings

COLUMNS = ("error", "family", "best of its settings", "budget", "calls", "rounds", "error reached")
COLUMNS += ("ms", "times of ours", "spread")

Error = Callable[[str, torch.Tensor], float]  # of a family's samples


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

    def as_json(self) -> dict[str, Any]:
        """Returns the curve for a picture: [calls, error] of each run."""
        points = [[point.calls, point.error] for point in self.points]
        return {"family": self.candidate.family, "name": self.candidate.name, "points": points}


def curve_of(
    candidate: Candidate, problem: Problem, error_of: Error, least: float, most: float
) -> Curve:
    """Returns the runs of a candidate until its error is small enough.

    Args:
        candidate: method and settings.
        problem: what it samples from.
        error_of: the error of a family's samples.
        least: the error at which the runs end.
        most: network calls one after another at which they end, too.
    """
    points: list[Point] = []
    for budget in candidate.budgets:
        problem.reset()
        try:
            x, rounds = candidate.run(problem, budget)
        except (ValueError, FloatingPointError, AssertionError, IndexError) as error:
            # An AssertionError is torchdiffeq's "underflow in dt".
            return Curve(candidate, points, str(error).splitlines()[0])
        points.append(Point(budget, problem.calls, rounds, error_of(candidate.family, x)))
        if points[-1].error <= least or (rounds or problem.calls) >= most:
            break
    return Curve(candidate, points)


def best_of(curves: Sequence[Curve], target: float) -> dict[str, tuple[Candidate, Point]]:
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


def rows_of(
    target: float, curves: Sequence[Curve], problem: Problem, mine: str, settings: Settings
) -> list[dict[str, Any]]:
    """Returns a row for each family: its best settings, timed in turns with the other families'.

    Args:
        target: the error to reach.
        curves: all candidates' runs.
        problem: what they sample from.
        mine: the family of the package that the others are compared with.
        settings: of the report.
    """
    best = best_of(curves, target)

    def timed_run(candidate: Candidate, budget: float) -> Callable[[], object]:
        return lambda: candidate.run(problem, budget)

    functions = {family: timed_run(c, point.budget) for family, (c, point) in best.items()}
    least = 4 if settings.quick else 7
    timings = timed(functions, settings.budget, settings.device, least) if functions else {}
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
            "turns": timing.rounds,
        }
        if mine in best and family != mine:
            row["times of ours"] = timing.median / timings[mine].median
        # A tool is compared with the package's methods of its own kind, too.
        kind = ADAPTIVE if "adaptive" in family else mine
        if not family.startswith("diffast"):
            row["loss"] = any(
                point.calls < best[other][1].calls or slower(timings[other], timing)
                for other in {mine, kind} & best.keys()
            )
        rows.append(row)
    return rows
