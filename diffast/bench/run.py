"""Makes a report: checks the ops, runs the parts, writes JSON and HTML."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from diffast.bench import gate, machine, report, selfcheck
from diffast.bench.settings import PARTS, Settings
from diffast.ops.load import OPS
from diffast.solvers.core import stability

FORMAT = 1


def make(
    settings: Settings,
    parts: Sequence[str] = PARTS,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Returns a report as JSON values.

    Fields: "format" (1); "machine", see `machine.facts`; "settings"; "verified", with "by" (what
    checked the ops), "ops" ("ok" or a reason for each op) and "unchecked" (ops without a call to
    check); "sections", see `table.Section`.

    Args:
        settings: what is measured, and where.
        parts: names of parts, in the order of the report.
        say: told a line about each part.
    """
    begin = time.perf_counter()
    facts = machine.facts(settings.device)
    say(f"{facts['card']}, kernels: {facts['backend']}")
    found = selfcheck.check(settings.device)
    by = "comparison with the torch reference"
    whole = not settings.quick and not settings.tiny and not settings.unverified
    if whole and (root := gate.checkout()) is not None:
        say("running the ops' tests")
        by += ", and the ops' tests of the checkout"
        if not gate.tests_are_green(root):
            reason = "the ops' tests are red"
            found = {op: reason if why == "ok" else why for op, why in found.items()}
    for op, why in found.items():
        if why != "ok":
            say(f"{op} FAILED its check: {why}")
    settings = replace(settings, ops=found)
    sections = []
    for part in parts:
        started = time.perf_counter()
        module = import_module(f"diffast.bench.parts.{part}")
        with stability.unchecked():  # every solver is measured at every number of calls
            made = module.run(settings)
        sections += [section.as_json() for section in made]
        say(f"{part:<8} {time.perf_counter() - started:.0f} s")
    shown = {
        "quick": settings.quick,
        "device": str(settings.device),
        "threads": list(settings.threads),
        "unverified": settings.unverified,
        "parts": list(parts),
        "seconds": time.perf_counter() - begin,
    }
    unchecked = [op for op in OPS if op not in found]  # ops that `op_calls` has no call of
    verified = {"by": by, "ops": found, "unchecked": unchecked}
    content = {"format": FORMAT, "machine": facts, "settings": shown}
    return content | {"verified": verified, "sections": sections}


def write(content: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `bench.json` and `bench.html` into a folder; returns their paths.

    Args:
        content: what `make` returned.
        folder: made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "bench.json", folder / "bench.html"
    data.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    page.write_text(report.page(content))
    return data, page
