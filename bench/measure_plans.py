"""Errors of plans and of other tools' samplers at equal network calls.

    python -m bench.measure_plans peers NAME ...     diffusers' and azula's, on trained networks
    python -m bench.measure_plans ours NAME ...      the package's solvers x grids x orders
    python -m bench.measure_plans plan NAME ...      what `df.plan` chooses
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

import diffast as df
from bench.networks import problems
from bench.networks.problems import Problem

CALLS = (4, 5, 6, 8, 10, 12, 15, 16, 20, 30)
SHOWN = (5, 8, 10, 15, 20)  # networks of pictures have these alone
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
            except Exception:  # what another tool cannot do is no result
                continue
            if taken <= n:
                best.append([problem.error(y), name])
    return {str(n): sorted(best)[:KEPT] for n, best in found.items()}


def budgets(problem: Problem) -> tuple[int, ...]:
    """Returns the numbers of calls that a problem is measured at: fewer for pictures."""
    return tuple(n for n in CALLS if n in SHOWN) if len(problem.shape) > 2 else CALLS


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


def ours(name: str) -> dict[str, dict]:
    """Returns what the package's solvers reach, and what `df.plan` does."""
    from bench.networks import own_runs

    problem = problem_of(name)
    return {"diffast": measured(problem, own_runs.runs(problem), SHOWN)}


def chosen(name: str) -> dict[str, dict]:
    """Returns the errors of `df.plan` at each number of calls."""
    from bench.networks.own_runs import follow

    problem, found = problem_of(name), {}
    for n in SHOWN:
        plan = df.plan(problem.denoiser, n)
        found[str(n)] = [[problem.error(follow(problem, plan)[0]), plan.name]]
    return {"plan": found}


def save(name: str, part: dict) -> None:
    """Adds results to a problem's file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name.replace(' ', '_')}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **part}, indent=1) + "\n")


TOOLS = {"diffast": "own best", "diffusers": "diffusers' best", "azula": "azula's best"}


def report(calls: Iterable[int] = SHOWN) -> str:
    """Returns the table: a line for each network and number of calls."""
    lines = ["| network | calls | `df.plan` | " + " | ".join(TOOLS.values()) + " | ratio |"]
    lines += ["|---" * (len(TOOLS) + 4) + "|"]
    for name in FOUR:
        held = json.loads((RESULTS / f"{name}.json").read_text())
        for n in map(str, calls):
            error = held["plan"][n][0][0]
            best = {tool: held[tool][n][0] for tool in TOOLS}
            least = min(value for value, _ in best.values())
            cells = [f"{value:.3g} ({what})" for value, what in best.values()]
            star = ", held out" if name == HELD_OUT else ""
            cells = [f"{name}{star}", n, f"{error:.3g}", *cells, f"{error / least:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is asked for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what, *names = sys.argv[1:]
    if what == "report":
        print(report())
        return
    for name in names or FOUR:
        save(name, {"peers": peers, "ours": ours, "plan": chosen}[what](name))
        print(f"{name}: {what} measured", flush=True)


if __name__ == "__main__":
    main()
