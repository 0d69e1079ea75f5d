"""Makes the table behind `df.plan`: learned rows for each kind of schedule and number of calls.

    python -m bench.make_plan_table learn KIND GUIDED CALLS ...   as in: learn ve 0 5 8 10
    python -m bench.make_plan_table assemble                      diffast/planning/rows.json

A row is learned over many problems at once (`bench/networks/learn.py`): closed forms, and the
trained networks but the one that is held out. It is the row whose worst ratio is least: error over
the best standard error, of the package and of other tools, chosen after the fact for each problem.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.measure_plans import HELD_OUT, RESULTS
from bench.networks import problems
from bench.networks.convert import row_of
from bench.networks.learn import MEMORY, Row, adams_row, errors, learn, remembered
from bench.networks.problems import Problem
from diffast import grids, solvers

ROWS = RESULTS / "rows"
NETWORKS = {
    "ve": ("smalldiffusion",),
    "vp": ("azula_vp", "monai"),
    "flow": ("torchcfm", "flow_matching"),
}
TABLE = Path(__file__).parents[1] / "diffast" / "planning" / "table.json"
SLOW = ("monai",)  # these join for the last iterations
# Least level of the last call, as a share of the first level; more calls may go lower.
LEAST = 2e-3
LEAST_OF_FEW = 0.02  # up to 10 calls: lower ones are below what some schedules reach
# Closed forms count by their error over so many times the least standard error, networks over one.
SLACK = 2.0
ITERATIONS = 100  # for more than 10 calls; a second run goes on from the row that is there


def starts(kind: str, calls: int) -> list[Row]:
    """Returns standard methods to begin from."""
    found = [
        adams_row(calls, order, power, 0.0, fall)
        for order in (1, 2, 3, 4)
        for power in (1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
        for fall in (False, True)
        if order <= calls
    ]
    schedule = {"ve": problems.VE, "vp": problems.VP, "flow": problems.FLOW}[kind]
    if kind == "flow":
        spaced = [grids.uniform_time(schedule, calls)]
    else:
        spaced = [grids.karras(schedule, calls), grids.uniform_logsnr(schedule, calls),
                  grids.kl_optimal(schedule, calls)]  # fmt: skip
    for grid in spaced:
        for name, options in (("dpmpp_2m", {}), ("unipc", {"order": 2}), ("unipc", {"order": 3}),
                              ("deis", {"order": 3})):  # fmt: skip
            for final in ("clean", "falling"):
                try:
                    found.append(row_of(getattr(solvers, name)(schedule, grid, final=final,
                                                               **options)))  # fmt: skip
                except ValueError:
                    continue
    return found


def best_known(problem: Problem, calls: int) -> float:
    """Returns the least error that is written down for a network; infinite where none is."""
    path = RESULTS / f"{problem.name}.json"
    if not path.exists():
        return np.inf
    held = json.loads(path.read_text())
    lists = [tool.get(str(calls), []) for tool in held.values() if isinstance(tool, dict)]
    return min((best[0][0] for best in lists if best), default=np.inf)


def learn_row(kind: str, guided: bool, calls: int, iterations: int) -> dict:
    """Returns the learned row and how well it does."""
    began = time.perf_counter()
    if guided:
        quick, slow = problems.guided_forms(kind), []
    else:
        quick = problems.closed_forms(kind)
        quick += problems.imperfect_forms() if kind == "vp" else []
        quick += [problems.network(n) for n in NETWORKS[kind] if n not in SLOW]
        if kind == "ve":  # one more network: the ODE is the same on every schedule
            other = problems.network("azula_vp")
            quick.append(replace(other, name="azula_vp (ve)", kind="ve", schedule=problems.VE))
        slow = [problems.network(n) for n in NETWORKS[kind] if n in SLOW and calls <= 10]
    assert all(p.name != HELD_OUT for p in quick + slow)
    every = quick + slow
    low = LEAST if calls > 10 else LEAST_OF_FEW
    options = starts(kind, calls)
    kept = ROWS / f"{kind}_{int(guided)}_{calls}.json"
    if kept.exists():  # goes on from there
        held = json.loads(kept.read_text())
        weights = np.zeros((calls, calls))
        for n, given in enumerate(held["weights"]):
            weights[n, : n + 1] = given
        options.append(Row(np.array(held["levels"]), weights))
    options = [remembered(row) for row in options]
    table = np.array([errors(quick, row) for row in options])
    table = np.where(np.isfinite(table), table, 1e9)
    least = table[: len(options) - kept.exists()].min(0)
    reference = np.minimum(least, [best_known(p, calls) for p in quick])
    reference[[p.closed is not None for p in quick]] *= SLACK
    order = (table / reference).max(1).argsort()
    best, value = None, np.inf
    for index in order[:1]:
        row = learn(quick, options[index], reference, iterations, least=low)
        ratio = float((errors(quick, row) / reference).max())
        if ratio < value:
            best, value = row, ratio
    assert best is not None
    if slow:
        some = np.array([errors(slow, row) for row in options])
        some = np.where(np.isfinite(some), some, 1e9)
        at = np.minimum(some[: len(options) - kept.exists()].min(0),
                        [best_known(p, calls) for p in slow])  # fmt: skip
        reference = np.concatenate([reference, at])
        whole = (np.concatenate([table, some], 1) / reference).max(1)
        begins = [best, options[int(whole.argmin())]] if calls < 8 else [best]
        value = float((errors(every, best) / reference).max())
        for begin in begins:
            count, rate = (90, 1e-2) if calls < 8 else (30, 3e-3)
            row = learn(every, begin, reference, count, rate=rate, least=low, batch=64)
            ratio = float((errors(every, row) / reference).max())
            if ratio < value:
                best, value = row, ratio
    found = errors(every, best)
    return {
        "kind": kind,
        "guided": guided,
        "calls": calls,
        "levels": best.levels.tolist(),
        "weights": [best.weights[n, : n + 1].tolist() for n in range(calls)],
        "measured": {
            p.name: [float(e), float(r)] for p, e, r in zip(every, found, reference, strict=True)
        },
        "seconds": time.perf_counter() - began,
    }


def assemble() -> None:
    """Writes diffast/planning/table.json from the parts under bench/results/plans/rows/."""
    rows: dict = {}
    standard: dict = {}
    stochastic: dict = {}
    for kind in NETWORKS:
        for guided, mark in (("0", ""), ("1", " guided")):
            parts = sorted(ROWS.glob(f"{kind}_{guided}_*.json"), key=_calls)
            rows[kind + mark] = {}
            for path in parts:
                part = shortened(json.loads(path.read_text()))
                rows[kind + mark][str(part["calls"])] = {
                    "levels": _rounded(part["levels"]),
                    "weights": [_rounded(w[-MEMORY:]) for w in part["weights"]],
                    "measured": {k: [float(f"{e:.4g}") for e in v]
                                 for k, v in part["measured"].items()},
                }  # fmt: skip
            for what, held in (("ode", standard), ("sde", stochastic)):
                path = ROWS / f"{what}_{kind}_{guided}.json"
                if path.exists():
                    held[kind + mark] = json.loads(path.read_text())
    made = {"rows": rows, "standard": standard, "stochastic": stochastic}
    TABLE.write_text(json.dumps(made, separators=(",", ":")) + "\n")


def shortened(part: dict) -> dict:
    """Returns a learned row that weighs the newest velocities alone, measured again if it changed.

    Rows that were learned with all velocities are cut so.
    """
    calls = part["calls"]
    weights = np.zeros((calls, calls))
    for n, given in enumerate(part["weights"]):
        weights[n, : n + 1] = given
    row = remembered(Row(np.array(part["levels"]), weights))
    if np.array_equal(row.weights, weights):
        return part
    every = problems.closed_forms(part["kind"])
    every += [problems.network(n) for n in NETWORKS[part["kind"]] if n not in SLOW]
    found = dict(zip((p.name for p in every), errors(every, row), strict=True))
    part["measured"] = {k: [float(found.get(k, e)), r] for k, (e, r) in part["measured"].items()}
    part["weights"] = [row.weights[n, : n + 1].tolist() for n in range(calls)]
    return part


def _calls(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _rounded(numbers: list[float]) -> list[float]:
    return [float(f"{number:.7g}") for number in numbers]


def main() -> None:
    """Learns what is asked for, or makes the table."""
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:]
    if what == "assemble":
        assemble()
    if what == "learn":
        kind, guided, *calls = rest
        ROWS.mkdir(parents=True, exist_ok=True)
        for n in map(int, calls):
            row = learn_row(kind, guided == "1", n, 250 if n <= 10 else ITERATIONS)
            path = ROWS / f"{kind}_{guided}_{n}.json"
            path.write_text(json.dumps(row) + "\n")
            worst = max(e / r for e, r in row["measured"].values())
            print(kind, guided, n, f"worst ratio {worst:.2f}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
