"""Errors of plans and of other tools' samplers at equal network calls.

    python -m bench.measure_plans peers NAME ...     diffusers' and azula's, on trained networks
    python -m bench.measure_plans ours NAME ...      the package's solvers x grids x orders
    python -m bench.measure_plans report             the table of docs/planning.md

The error is the rms distance to the fine solution from the same noise over the rms spread.
Results go to bench/results/plans/: for each problem and number of calls the best of each tool.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from bench.networks import problems
from bench.networks.problems import Problem

CALLS = (4, 5, 6, 8, 10, 12, 15, 16, 20, 30)
RESULTS = Path(__file__).parent / "results" / "plans"
FOUR = ("smalldiffusion", "azula", "flow_matching", "monai")
HELD_OUT = "azula"  # never seen by the table
KEPT = 5  # best settings that are written down


def measured(problem: Problem, runs: Iterable, calls: Iterable[int]) -> dict[str, list]:
    """Returns for each number of calls the best [error, name], best first.

    A setting that the tool refuses, or that takes more calls, is left out.
    """
    found: dict[int, list] = {n: [] for n in calls}
    for name, run in runs:
        for n, best in found.items():
            try:
                with torch.no_grad():
                    y, taken = run(problem, n)
            except Exception:  # noqa: BLE001, S112: what another tool cannot do is not a result
                continue
            if taken <= n:
                best.append([problem.error(y), name])
    return {str(n): sorted(best)[:KEPT] for n, best in found.items()}


def budgets(problem: Problem) -> tuple[int, ...]:
    """Returns the numbers of calls that a problem is measured at: fewer for pictures."""
    return tuple(n for n in CALLS if n not in (4, 6, 16, 30)) if len(problem.shape) > 2 else CALLS


def problem_of(name: str) -> Problem:
    """Returns a trained network's problem, or a closed form by its name, "moons (ve)"."""
    if "(" not in name:
        return problems.network(name)
    kind = name.partition("(")[2].rstrip(")")
    return next(p for p in problems.closed_forms(kind) if p.name == name)


def peers(name: str) -> dict[str, dict]:
    """Returns what diffusers and azula reach on a network."""
    from bench.networks import azula_runs, diffusers_runs

    problem = problem_of(name)
    calls = budgets(problem)
    return {
        "diffusers": measured(problem, diffusers_runs.runs(problem), calls),
        "azula": measured(problem, azula_runs.runs(problem), calls),
    }


def save(name: str, part: dict) -> None:
    """Adds results to a problem's file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name.replace(' ', '_')}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **part}, indent=1) + "\n")


def main() -> None:
    """Measures what is asked for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what, *names = sys.argv[1:]
    for name in names or FOUR:
        if what == "peers":
            save(name, peers(name))
            print(f"{name}: peers measured", flush=True)


if __name__ == "__main__":
    main()
