"""Attacks on the executors: faulty networks, bad arguments, torch's modes, random calls.

    python bench/attack/runs.py                    the fault matrix, bad arguments and modes
    python bench/attack/runs.py --calls 5000       also so many random calls
    python bench/attack/runs.py --out FILE         where the report goes, as JSON
    python bench/attack/runs.py --table            prints the tables of docs/reliability.md

Exit status 1 where a run gave another picture in silence, or an error in other words than the
caller's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from runs_calls import calls
from runs_doors import tried
from runs_executors import EXECUTORS
from runs_matrix import BAD, matrix, table
from runs_modes import modes

OUT = Path(__file__).resolve().parents[1] / "results" / "attack_runs.json"


def _cells(found: dict[str, dict[str, tuple[str, str]]]) -> dict[str, Any]:
    """Returns counts of a table's cells, its rows as counts, and every bad cell in words."""
    rows = {name: dict(Counter(kind for kind, _ in row.values())) for name, row in found.items()}
    bad = [
        {"row": name, "executor": executor, "outcome": kind, "words": words[:300]}
        for name, row in found.items()
        for executor, (kind, words) in row.items()
        if kind in BAD
    ]
    total = Counter(kind for row in found.values() for kind, _ in row.values())
    return {"cells": sum(total.values()), "outcomes": dict(total), "rows": rows, "bad": bad}


def _doors() -> dict[str, Any]:
    """Returns counts of the outcomes of bad and of unusual arguments."""
    found = tried()
    bad = [
        {"function": who, "argument": name, "value": value, "outcome": kind, "words": words[:300]}
        for who, name, value, kind, words in found
        if kind in ("TAKEN", "FOREIGN", "REFUSED")
    ]
    by_function: dict[str, Counter] = {}
    for who, _, _, kind, _ in found:
        by_function.setdefault(who, Counter())[kind] += 1
    return {
        "values": len(found),
        "outcomes": dict(Counter(kind for *_, kind, _ in found)),
        "by function": {who: dict(count) for who, count in by_function.items()},
        "bad": bad,
    }


def main() -> int:
    """Runs the attacks and writes the report; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults, inside = matrix(), modes()
    if options.table:
        print(table(faults), "\n\n", table(inside), sep="")
        return 0
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "executors": list(EXECUTORS),
        "faulty networks": _cells(faults),
        "modes": _cells(inside),
        "arguments": _doors(),
    }
    if options.calls:
        report["random calls"] = calls(options.calls)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    bad = sum(len(part["bad"]) for part in report.values() if isinstance(part, dict))
    print(f"{bad} bad outcomes; the report is {options.out}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
