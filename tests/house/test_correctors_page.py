"""The examples of docs/correctors.md run as they stand; its figures are the stored ones."""

import json
import re

import pytest
from places import ROOT

from diffast.solvers.correctors.parse import CORRECTORS, SHORT

PAGE = (ROOT / "docs" / "correctors.md").read_text()
DATA = ROOT / "docs" / "pictures"


def test_the_examples_run_one_after_another():
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    assert names["found"].fine.all()


def test_every_corrector_has_a_row():
    rows = re.findall(r"^\| `(\w+)\([^`]*\)` \| ?(\w*) \|", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == set(CORRECTORS)
    assert {short: name for name, short in rows if short} == SHORT


def numbers(first):
    """The numbers of a table row that begins so."""
    (row,) = re.findall(rf"^\| {re.escape(first)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [float(cell.replace(",", "")) for cell in row.split("|")]


@pytest.mark.parametrize(
    ("first", "kind", "name"),
    [
        ("sample's law, `dpom`", "marginal", "dpom"),
        ("sample's law, `dpum`", "marginal", "dpum"),
        ("paths' law, overdamped corrector", "path", "dpom"),
        ("paths' law, underdamped corrector", "path", "dpum"),
    ],
)
def test_calls_by_dimension(first, kind, name):
    stored = json.loads((DATA / "correctors_dimension.json").read_text())
    *calls, slope = numbers(first)
    assert calls == stored[kind][name]["calls"]
    assert slope == pytest.approx(stored[kind][name]["slope"], abs=0.005)


def test_errors_on_the_mixture():
    stored = json.loads((DATA / "correctors_mixture.json").read_text())
    run = None
    table = PAGE[PAGE.index("| solver, calls | setting") : PAGE.index("![W1 on the mixture]")]
    seen, names = 0, ("ODE", "OLMC", "ULMC", "BAOAB", "few visits", "SDE")
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 8:
            continue
        run = cells[0].replace("`", "").replace(",", "") or run
        for name, cell in zip(names, cells[2:], strict=True):
            value, deviation = stored[f"{run} {cells[1]} {name}"]
            assert float(cell) == pytest.approx(value, abs=6e-4), (run, cells[1], name)
            assert deviation < 0.01
            seen += 1
    assert seen == 72


def test_frechet_distances_of_the_digits():
    lines = (DATA / "correctors_digits.jsonl").read_text().splitlines()
    stored = {}
    for line in lines:
        row = json.loads(line)
        solver, *_, steps = row["plan"].split()
        corrector = re.search(r"\+ (\w+)\((\d)\)", row["plan"])
        short = {name: short for short, name in SHORT.items()} | {"baoab": "baoab"}
        solver = solver.partition("(")[0]
        run = f"`{solver}`" + (f", {short[corrector[1]]} n = {corrector[2]}" if corrector else "")
        cell = f"{row['frechet']:.1f}, {row['accuracy']:.3f}"
        stored.setdefault((run, row["calls"]), {})[row["setting"]] = cell
    for (run, calls), cells in stored.items():
        wanted = f"| {run} | {calls} | {cells['exact']} | {cells['biased']} | {cells['early']} |"
        assert wanted in PAGE
    assert len(stored) == 11
