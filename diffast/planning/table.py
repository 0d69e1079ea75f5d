"""The table of measurements behind `df.plan`: made by bench/make_plan_table.py, kept as JSON."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from diffast.planning.rows import Row


@cache
def table() -> dict[str, Any]:
    """Returns the table.

    "rows": "ve", "vp", "flow" and the same with " guided" -> number of calls -> a row: "levels",
    "weights", and "measured", problem -> [error of the row, least standard error].
    "standard": the same names -> list of [calls, solver, options, grid]: from so many calls on.
    "stochastic": the same.
    """
    text = files("diffast.planning").joinpath("table.json").read_text(encoding="utf-8")
    return json.loads(text)


def rows_of(kind: str, guided: bool) -> dict[int, Row]:
    """Returns the learned rows of a kind by their number of calls, in rising order."""
    held = table()["rows"].get(f"{kind} guided" if guided else kind, {})
    return {int(calls): _row(row) for calls, row in sorted(held.items(), key=lambda i: int(i[0]))}


def standard_of(kind: str, guided: bool, stochastic: bool, calls: int) -> tuple[str, dict, str]:
    """Returns solver, options and grid that were measured best for so many calls and up."""
    held = table()["stochastic" if stochastic else "standard"]
    entries = held.get(f"{kind} guided" if guided else kind) or held[kind]
    chosen = entries[0]
    for entry in entries:
        if entry[0] <= calls:
            chosen = entry
    return chosen[1], dict(chosen[2]), chosen[3]


def _row(row: dict[str, Any]) -> Row:
    return Row(tuple(row["levels"]), tuple(tuple(weights) for weights in row["weights"]))
