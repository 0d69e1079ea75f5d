"""Writes the tables of docs/performance.md and README.md from the JSONs in bench/results.

    python bench/make_tables.py --measure quick    measures, then writes the tables: all in one
    python bench/make_tables.py                    writes the tables from the JSONs that lie there
    python bench/make_tables.py --check            says which tables are not those of the JSONs

A table lies between `<!-- table: NAME -->` and `<!-- end of table -->`. `--measure` (quick or full)
is `diffast bench --out bench/results/DEVICE`, with `--device` cpu or cuda. Figures of a GPU come
from bench/results/cuda/bench.json; without that file from bench/results/gpu, where
bench/gpu_check.py measured nearly the same; what neither has is "not yet". Predictions come from
bench/results/gpu_predictions.json, whose bounds `--sass FILE` takes anew from the counts that
bench/sass.py has made.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffast.bench.report import number

sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_tables  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (ROOT / "docs" / "performance.md", ROOT / "README.md")
MARKED = re.compile(r"<!-- table: (.+?) -->\n(.*?)<!-- end of table -->", re.S)
NOT_YET = "not yet"

# Columns of each table of docs/performance.md.
COLUMNS = {
    "ops": ("op", "call", "state", "threads", "us", "GB/s", "of copy", "times torch", "spread"),
    "steps": ("tool", "sampler", "state", "threads", "us", "their us", "times as fast", "spread"),
    "runs: mixture": (
        *("error", "family", "best of its settings", "calls", "rounds", "ms", "times of ours"),
        "spread",
    ),
    "paths": ("state", "threads", "ms", "torchsde ms", "times as fast", "of 12 normals"),
    "start": ("what", "s", "s over torch"),
    "start: set-up": ("what", "ms", "spread"),
    "memory": ("tool", "run", "peak in states"),
}
COLUMNS["runs: digits"] = COLUMNS["runs: sde"] = COLUMNS["runs: mixture"]


def load(device: str) -> dict[str, Any] | None:
    """Returns the report of a device, "cpu" or "cuda"; None where there is none."""
    path = RESULTS / device / "bench.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def of_section(report: dict[str, Any], name: str) -> str:
    """Returns a section's rows; a loss is bold, what was not measured says so."""
    (section,) = (s for s in report["sections"] if s["name"] == name)
    columns = [c for c in COLUMNS[name] if any(c in row for row in section["rows"])]
    rows = []
    for row in section["rows"]:
        if "refused" in row:
            rows.append([str(row.get(columns[0], "")), f"not measured: {row['refused']}"])
            rows[-1] += [""] * (len(columns) - 2)
            continue
        cells = [number(row.get(column), column) for column in columns]
        rows.append([f"**{cell}**" if row.get("loss") and cell else cell for cell in cells])
    notes = "".join(f"\n{note}\n" for note in section["notes"])
    return f"{section['about']}\n\n{table(tuple(columns), rows)}{notes}"


def of_machine(report: dict[str, Any]) -> str:
    """Returns where a report was made, in a paragraph."""
    machine, settings = report["machine"], report["settings"]
    peers = ", ".join(f"{name} {v or 'not installed'}" for name, v in machine["peers"].items())
    threads = " and ".join(str(count) for count in settings["threads"])
    kind = "diffast bench --quick" if settings["quick"] else "diffast bench"
    return (
        f"`{kind}` on {machine['card']} ({machine['cores']} cores, threads: {threads}), kernels "
        f"{machine['backend']}, torch {machine['torch']}, numpy {machine['numpy']}, Python "
        f"{machine['python']}; {peers}. Commit {machine['commit']}, {machine['when'][:10]}, "
        f"{settings['seconds']:.0f} s; load of the machine before: {machine['load']:.1f}.\n"
    )


def of_predictions(predictions: dict[str, Any]) -> str:
    """Returns what is predicted for GPUs."""
    cards = list(predictions["cards"])
    head = ("op", "bytes an element", "instructions an element")
    head += tuple(f"{card}: ps an element at least" for card in cards)
    head += tuple(f"{card}: share of copy" for card in cards)
    rows = []
    for name, case in predictions["cases"].items():
        row = [name, number(case["bytes"]), number(case["instructions"])]
        row += [number(case[card]["ps"]) for card in cards]
        rows.append([*row, *(case[card]["share"] for card in cards)])
    return f"{predictions['about']}\n\n{table(head, rows)}"


def _find(report: dict[str, Any] | None, section: str, **wanted: Any) -> dict[str, Any] | None:
    for s in report["sections"] if report else []:
        for row in s["rows"] if s["name"] == section else []:
            fits = all(row.get(key) == value for key, value in wanted.items())
            if fits and "refused" not in row:
                return row
    return None


LARGE = "64x3x64x64"
SWEEP = "100 stages of 8x3072"
# What is shown, section and row of a report, column, unit, name of the prediction, and the case of
# bench/gpu_check.py that is most like it.
SUMMARY = (
    ("`combine`, 4 inputs, 1 row, share of copy", "ops",
     {"op": "combine", "call": "4 inputs, 1 row", "state": LARGE}, "of copy", "", "combine",
     "combine 4 to 1 fp32 8 MiB"),
    ("the same with 2 inputs and noise", "ops",
     {"op": "combine", "call": "2 inputs + noise", "state": LARGE}, "of copy", "", "noise",
     "combine 2 to 1 + noise fp32 8 MiB"),
    ("`combine_error`, 3 inputs, 2 rows, share of copy", "ops",
     {"op": "combine_error", "state": LARGE}, "of copy", "", "error",
     "combine_error 3 to 2 fp32 8 MiB"),
    ("a normal number", "ops", {"op": "normal", "state": LARGE}, "ns a normal", " ns", "normal",
     "normal  fp32 8 MiB"),
    ("`sweep`, 100 stages of [8, 3072]", "ops",
     {"op": "sweep", "call": "no noise", "state": SWEEP}, "us", " us", "sweep",
     "sweep 100 stages fp32 8 MiB"),
    ("DPM++ 2M step, [64, 3, 64, 64], times diffusers", "steps",
     {"tool": "diffusers", "sampler": "DPM++ 2M", "state": LARGE}, "times as fast", "", None, None),
    ("noise of a Brownian step, [1, 4, 64, 64], times torchsde", "paths",
     {"state": "1x4x64x64"}, "times as fast", "", None, None),
)  # fmt: skip


def of_summary(predictions: dict[str, Any]) -> str:
    """Returns the short table of the README."""
    cpu, gpu = load("cpu"), load("cuda")
    checked = {} if gpu else gpu_tables.steps()
    rows = []
    for words, section, wanted, column, unit, name, case in SUMMARY:
        cells = [words]
        for report, of_gpu in ((cpu, False), (gpu, True)):
            row = _find(report, section, **wanted)
            value = row[column] if row else None
            if of_gpu and row is None and case:
                value = gpu_tables.figure(case, column, checked)
            cells.append(NOT_YET if value is None else f"{number(value)}{unit}")
        cells.append(predictions["summary"][name] if name else "none")
        rows.append(cells)
    card = gpu["machine"]["card"] if gpu else gpu_tables.card()
    card = f" ({card})" if card else ""
    about = cpu["machine"] if cpu else {"card": "no report", "when": ""}
    where = f"{about['card']}, 1 thread, {about['when'][:10]}"
    head = ("what", f"CPU measured ({where})", f"GPU measured{card}", "H100 predicted")
    return table(head, rows)


def made(name: str) -> str:
    """Returns the table of that name, as the JSONs give it."""
    predictions = json.loads((RESULTS / "gpu_predictions.json").read_text())
    if name == "gpu predictions":
        return of_predictions(predictions)
    if name.startswith("gpu check "):
        return getattr(gpu_tables, f"of_{name.removeprefix('gpu check ')}")()
    if name == "summary":
        return of_summary(predictions)
    device, _, part = name.partition(" ")
    report = load(device)
    if report is None:
        return f"Not measured yet: there is no `bench/results/{device}` report.\n"
    return of_machine(report) if part == "machine" else of_section(report, part)


def filled(text: str) -> str:
    """Returns a document with its tables made anew."""

    def fill(found: re.Match) -> str:
        return f"<!-- table: {found[1]} -->\n{made(found[1])}<!-- end of table -->"

    return MARKED.sub(fill, text)


def measure(kind: str, device: str) -> None:
    """Makes the report of a device anew, in a process of its own."""
    command = [sys.executable, "-m", "diffast", "bench", "--device", device]
    command += ["--out", str(RESULTS / device), *(["--quick"] if kind == "quick" else [])]
    subprocess.run(command, check=True, cwd=ROOT)


def with_bounds(predictions: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the predictions with the bounds that counted instructions give.

    Args:
        predictions: as gpu_predictions.json has them.
        counts: a JSON of bench/sass.py; the counts of "after" are taken.
    """
    cases = {}
    for name, case in counts["after"]["cases"].items():
        instructions = case["instructions per 4 elements"] / 4
        cases[name] = {"bytes": case["bytes an element"], "instructions": instructions}
        for card in predictions["cards"]:
            bound = case["predicted"][card]
            share = f"at most {bound['share of copy at most']:g}"
            cases[name][card] = {"ps": bound["bound ps"], "share": share}
    nanoseconds = cases["normal fp32"]["H100"]["ps"] / 1000
    summary = predictions["summary"] | {"normal": f"{nanoseconds:.4f} ns at least"}
    return predictions | {"cases": cases, "summary": summary}


def main() -> int:
    """Returns 1 if `--check` finds a table that is not the JSONs'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    about = "first measure: a quick report or a full one"
    parser.add_argument("--measure", choices=("quick", "full"), help=about)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for --measure")
    about = "first take the bounds of the predictions from this JSON of bench/sass.py"
    parser.add_argument("--sass", type=Path, metavar="FILE", help=about)
    arguments = parser.parse_args()
    check, status = arguments.check, 0
    if arguments.measure:
        measure(arguments.measure, arguments.device)
    if arguments.sass:
        path = RESULTS / "gpu_predictions.json"
        counts = json.loads(arguments.sass.read_text())
        found = with_bounds(json.loads(path.read_text()), counts)
        path.write_text(json.dumps(found, indent=1) + "\n")
    for path in DOCUMENTS:
        text = path.read_text()
        new = filled(text)
        if text == new:
            continue
        print(f"{path.relative_to(ROOT)}: {'not what the JSONs give' if check else 'written'}")
        status = int(check)
        if not check:
            path.write_text(new)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
