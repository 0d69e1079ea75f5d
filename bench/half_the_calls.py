"""Tuned plans of N calls against the best standard plans of N, 2 N and 3 N calls.

    python -m bench.half_the_calls NAME ...     tunes for 5, 6, 8 and 10 calls
    python -m bench.half_the_calls report       the table of docs/tuning.md
    python -m bench.half_the_calls picture      docs/pictures/half_the_calls.png

NAME is a trained network of bench/networks, or a closed form as "moons (ve)". "Best standard" is
the least error of all solvers, orders and grids of the package, diffusers and azula, as
bench/measure_plans.py found it on the same noises. Tuning sees other noises than these.
Results go to bench/results/half/.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import diffast as df
from bench.measure_plans import RESULTS as STANDARD
from bench.measure_plans import problem_of
from bench.networks.own_runs import follow
from bench.networks.problems import Problem

RESULTS = Path(__file__).parent / "results" / "half"
BUDGETS = (5, 6, 8, 10)


def rowwise(problem: Problem) -> df.Denoiser:
    """The problem's denoiser for batches whose rows have times of their own."""
    whole = problem.denoiser

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        told, which = torch.unique(t, return_inverse=True)
        if len(told) == 1:
            return whole.network(x, t)
        made = torch.empty_like(x)
        for k in range(len(told)):
            rows = which == k
            made[rows] = whole.network(x[rows], t[rows])
        return made

    return replace(whole, network=network)


def best_standard(name: str) -> dict[int, tuple[float, str]]:
    """Returns the least error at each number of calls, and whose it is."""
    held = json.loads((STANDARD / f"{name.replace(' ', '_')}.json").read_text())
    found: dict[int, tuple[float, str]] = {}
    for tool in ("diffast", "diffusers", "azula"):
        for calls, best in held.get(tool, {}).items():
            for error, setting in best[:1]:
                row = (error, f"{tool}: {setting}")
                found[int(calls)] = min(found.get(int(calls), row), row)
    return found


def least(found: dict[int, tuple[float, str]], calls: int) -> tuple[float, str]:
    """Returns the least error of plans of so many calls or fewer."""
    return min(row for n, row in found.items() if n <= calls)


def tuned(name: str, calls: int, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of one tuned plan."""
    problem = problem_of(name)
    pictures = len(problem.shape) > 2
    # A picture is many numbers. A pilot in the plane is two, and few lie near a border of modes.
    pilots, held_out, batch = (48, 32, 16) if pictures else (2048, 1024, 512)
    begun = time.perf_counter()
    result = df.tune(
        rowwise(problem),
        calls,
        (pilots, *problem.shape[1:]),
        held_out=held_out,
        batch=batch,
        rows=None if pictures else 2**15,
        progress=False,
        compare=(),
        **{"iterations": 20, "starts": 6, **options},
    )
    seconds = time.perf_counter() - begun
    with torch.no_grad():
        error = problem.error(follow(problem, result.plan)[0])
    return {
        "error": error,
        "held_out": result.error,
        "standard_here": [result.best_standard.error, result.best_standard.name],
        "evaluations": result.network_calls,
        "seconds": round(seconds, 1),
        "plan": result.plan.name,
        "options": options,
    }


def save(name: str, part: dict) -> None:
    """Adds results to a problem's file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name.replace(' ', '_')}.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **part}, indent=1) + "\n")


def report() -> str:
    """Returns the table: a line for each problem and budget."""
    lines = [
        "| problem | calls N | tuned, N | best standard, N | 2 N | 3 N | tuned over 2 N |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        name, held = path.stem, json.loads(path.read_text())
        standard = best_standard(name)
        for n in map(str, BUDGETS):
            if n not in held:
                continue
            error, here = held[n]["error"], int(n)
            rows = [least(standard, k * here) for k in (1, 2, 3)]
            cells = [name.replace("_", " "), n, f"{error:.3g}"]
            cells += [f"{value:.3g}" for value, _ in rows]
            lines.append("| " + " | ".join([*cells, f"{error / rows[1][0]:.2f}"]) + " |")
    return "\n".join(lines)


PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "half_the_calls.png"
SHOWN = {
    "smalldiffusion": "2-D, VE (smalldiffusion)",
    "azula": "2-D, EDM (azula)",
    "flow_matching": "2-D, flow (flow_matching)",
    "monai": "pictures, DDPM betas (MONAI)",
}


def picture() -> None:
    """Draws error against calls on the four networks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    tools = (
        ("diffusers", "diffusers, best of all", "0.6", "o-"),
        ("azula", "azula, best of all", "tab:olive", "s-"),
        ("plan", "df.plan", "tab:blue", "^-"),
    )
    for axis, (name, title) in zip(axes, SHOWN.items(), strict=True):
        held = json.loads((STANDARD / f"{name}.json").read_text())
        for tool, label, colour, style in tools:
            rows = sorted((int(n), best[0][0]) for n, best in held[tool].items())
            rows = [row for row in rows if 5 <= row[0] <= 20]
            axis.loglog(*zip(*rows, strict=True), style, color=colour, label=label, markersize=4)
        tuned_rows = json.loads((RESULTS / f"{name}.json").read_text())
        rows = sorted((int(n), row["error"]) for n, row in tuned_rows.items() if n.isdigit())
        axis.loglog(*zip(*rows, strict=True), "D-", color="tab:red", label="df.tune", markersize=5)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("network calls")
        axis.set_xticks([5, 6, 8, 10, 15, 20], ["5", "6", "8", "10", "15", "20"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error / spread of the samples")
    axes[0].legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--calls", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--freedom", default="levels,weights,times,scale,start")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--label", default="", help="a suffix of the results' keys")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.names == ["report"]:
        print(report())
        return
    if arguments.names == ["picture"]:
        picture()
        return
    options = {
        "freedom": arguments.freedom.split(","),
        "iterations": arguments.iterations,
    }
    for name in arguments.names:
        for calls in map(int, arguments.calls.split(",")):
            row = tuned(name, calls, options)
            save(name, {f"{calls}{arguments.label}": row})
            print(f"{name}, {calls} calls: {row['error']:.4g} in {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
