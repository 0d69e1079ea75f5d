"""Tables of what `bench/gpu_check.py` measured, from the JSONs in bench/results/gpu."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffast.bench.report import number

CHECKS = Path(__file__).resolve().parent / "results" / "gpu"
MIB = 2**20
SHOWN = 8 * MIB  # bytes of one tensor in the summary of the README
LARGE, SMALL = 256 * MIB, MIB // 16


def reports() -> list[dict[str, Any]]:
    """Returns the reports of real cards, the oldest first."""
    found = [json.loads(path.read_text()) for path in CHECKS.glob("*.json")]
    return sorted((r for r in found if not r["dry_run"]), key=lambda report: report["when"])


def steps() -> dict[str, dict[str, Any]]:
    """Returns the newest record of each step by its name; each has its card, commit and day."""
    newest = {}
    for report in reports():
        about = {"card": report["card"], "commit": report["commit"], "day": report["when"][:10]}
        newest |= {step["name"]: about | step for step in report["steps"]}
    return newest


def figure(case: str, column: str, found: dict[str, dict[str, Any]] | None = None) -> float | None:
    """Returns a number of a case of the step `bench`, None where it was not measured.

    "ns a normal" is the time of the case over the float32 numbers that it writes.
    """
    measured = (steps() if found is None else found).get("bench", {}).get("figures", [])
    for row in measured:
        if row["case"] == case:
            if column == "ns a normal":
                return row["us"] * 1e3 / (row["tensor"] / 4)
            return row[column]
    return None


def card() -> str:
    """Returns the name of the card of the step `bench`, "" where there is none."""
    return steps().get("bench", {}).get("card", "")


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def of_steps() -> str:
    """Returns what ran on which card, and how it ended."""
    rows = [
        [name, step["what"], step["state"], f"{step['seconds']:.0f}", step["card"], step["commit"]]
        for name, step in steps().items()
    ]
    return _table(("step", "what", "state", "s", "card", "commit"), rows)


def of_targets() -> str:
    """Returns the numbers that were to be reached; a missed one is bold."""
    rows = []
    for name, step in steps().items():
        for target in step.get("targets", []):
            value = number(target["value"], "") if target["value"] is not None else ""
            met = {True: "met", False: "missed", None: target.get("reason", "")}[target["met"]]
            value = f"**{value}**" if target["met"] is False else value
            rows.append([name, target["target"], value, target["bound"], met])
    return _table(("step", "number", "measured", "wanted", ""), rows)


def _figures(step: str, size: int) -> dict[str, dict[str, Any]]:
    found = steps().get(step, {}).get("figures", [])
    return {row["case"]: row for row in found if row["tensor"] == size}


def of_ops() -> str:
    """Returns the figures of ops on large tensors, Triton's beside those of CUDA."""
    rows, triton = [], _figures("triton-bench", LARGE)
    for case, row in _figures("bench", LARGE).items():
        cells = [number(row.get(c), c) for c in ("us", "GB/s", "of copy", "of eager")]
        rows.append([case, *cells, number(triton.get(case, {}).get("of copy"))])
    return _table(("case", "us", "GB/s", "of copy", "of eager", "Triton, of copy"), rows)


def of_small() -> str:
    """Returns the figures of ops on small tensors."""
    columns = ("us", "of eager", "host us", "graph us")
    rows = [
        [case, *(number(row.get(c), c) for c in columns)]
        for case, row in _figures("bench", SMALL).items()
    ]
    return _table(("case", *columns), rows)


def of_runs() -> str:
    """Returns the figures of steps, rounds and whole runs."""
    rows = []
    for row in steps().get("executors", {}).get("figures", []):
        facts = {k: v for k, v in row.items() if k not in ("case", "card")}
        rows.append([row["case"], ", ".join(f"{k} {number(v, k)}" for k, v in facts.items())])
    return _table(("run", "figures"), rows)
