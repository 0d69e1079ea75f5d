"""The report as one HTML page, made of its JSON: tables and pictures, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from diffast.bench import svg

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff; }
h1 { font-size: 1.6em; } h2 { font-size: 1.25em; margin-top: 2em; border-top: 1px solid #ccc;
  padding-top: .8em; }
p { max-width: 62em; }
table { border-collapse: collapse; font-size: 13px; margin: .8em 0; }
th, td { padding: 2px 9px; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #999; }
td.word, th.word { text-align: left; }
tr.loss td { background: #fdeceb; } tr.refused td { background: #fff4d6; }
svg { font: 11px system-ui, sans-serif; max-width: 100%; height: auto; }
.note { color: #666; }
"""
WORDS = ("op", "call", "state", "tool", "sampler", "family", "best of its settings", "what", "run")


def number(value: Any, column: str = "") -> str:
    """Returns a cell's text: three digits, thousands apart, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, (bool, str)):
        return str(value)
    if column in ("spread",):
        return f"{value:.0%}"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def page(report: dict[str, Any]) -> str:
    """Returns the HTML page of a report.

    Args:
        report: what `diffast.bench.run.make` returns, or the same read from its JSON.
    """
    machine, settings = report["machine"], report["settings"]
    title = f"diffast {machine['diffast']} on {machine['card']}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        _facts(machine, settings, report["verified"]),
        "<p>Times are medians of functions called in turns (A B A B ...) in one process; the "
        "spread is the distance of the quartiles over the median. A row is red where the package "
        "is slower than what it is compared with, by more than the quartiles of both overlap, or "
        "needs more network calls; it is yellow where nothing was measured.</p>",
        _losses(report["sections"]),
    ]
    parts += [_section(section) for section in report["sections"]]
    return "\n".join([*parts, "</body>\n</html>\n"])


def _facts(machine: dict, settings: dict, verified: dict) -> str:
    peers = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in machine["peers"].items()
    )
    threads = ", ".join(str(count) for count in settings["threads"])
    load = machine["load"]
    pairs = {
        "card": machine["card"],
        "kernels": machine["backend"],
        "threads": f"{threads} of {machine['cores']} cores",
        "versions": f"torch {machine['torch']}, numpy {machine['numpy']}, "
        f"triton {machine['triton'] or 'not installed'}, Python {machine['python']} on "
        f"{machine['system']}",
        "compared with": peers,
        "commit": machine["commit"] or "not known: an installed package",
        "date": machine["when"],
        "load before": "not known" if load is None else f"{load:.2f}",
        "settings": "quick" if settings["quick"] else "full",
        "ops checked by": verified["by"],
        "seconds": number(report_seconds(settings)),
    }
    red = [f"{op}: {why}" for op, why in verified["ops"].items() if why != "ok"]
    if verified["unchecked"]:
        pairs["ops that were not checked"] = ", ".join(verified["unchecked"])
    if red:
        pairs["ops that failed"] = "; ".join(red)
    cells = "".join(
        f'<tr><td class="word">{escape(name)}</td><td class="word">{escape(value)}</td></tr>'
        for name, value in pairs.items()
    )
    return f"<table>{cells}</table>"


def report_seconds(settings: dict) -> float:
    """Returns how long the report took to make, in seconds."""
    return round(settings["seconds"])


def _losses(sections: Iterable[dict]) -> str:
    lines = []
    for section in sections:
        count = sum(1 for row in section["rows"] if row.get("loss"))
        compared = sum(1 for row in section["rows"] if "loss" in row)
        if compared:
            lines.append(f"{section['title']}: {count} of {compared} comparisons")
    return f"<p>Losses: {escape('; '.join(lines) or 'nothing was compared')}.</p>"


def _section(section: dict[str, Any]) -> str:
    columns = [c for c in section["columns"] if any(c in row for row in section["rows"])]
    head = "".join(f"<th{_class(column)}>{escape(column)}</th>" for column in columns)
    body = "\n".join(_row(row, columns) for row in section["rows"])
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section["notes"])
    return (
        f"<h2>{escape(section['title'])}</h2>\n<p>{escape(section['about'])}</p>\n"
        f"{_picture(section)}\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
        f"</table>\n{notes}"
    )


def _class(column: str) -> str:
    return ' class="word"' if column in WORDS else ""


def _row(row: dict[str, Any], columns: list[str]) -> str:
    if "refused" in row:
        named = " ".join(str(row[c]) for c in columns if c in row and c in WORDS)
        words = escape(f"{named}: not measured: {row['refused']}")
        return f'<tr class="refused"><td class="word" colspan="{len(columns)}">{words}</td></tr>'
    cells = [number(row.get(column), column) for column in columns]
    if row.get("verified") is False:
        cells[-1] += " unverified"
    kind = ' class="loss"' if row.get("loss") else ""
    shown = zip(columns, cells, strict=True)
    return f"<tr{kind}>{''.join(f'<td{_class(c)}>{escape(text)}</td>' for c, text in shown)}</tr>"


def _picture(section: dict[str, Any]) -> str:
    plot = section["plot"] or {}
    rows = [row for row in section["rows"] if "refused" not in row]
    if plot.get("kind") == "runs":
        return svg.curves(
            lowest(plot["curves"]),
            "network evaluations of a sample",
            "error",
            f"{section['title']}: least error of each family against network calls",
        )
    if plot.get("kind") in ("ops", "steps"):
        threads = min((row["threads"] for row in rows), default=1)
        first = [row for row in rows if row["threads"] == threads]
        if plot["kind"] == "ops":
            bars = [(f"{r['op']}, {r['call']}, {r['state']}", r["of copy"]) for r in first]
            title = f"Share of copy, {threads} threads"
            # Calls with noise or norms are bound by arithmetic: to be below the copy is no loss.
            return svg.bars(bars, "of copy", title, 1.0, "#8fb4cf")
        bars = [(f"{r['tool']} {r['sampler']}, {r['state']}", r["times as fast"]) for r in first]
        return svg.bars(bars, "times", f"Steps, {threads} threads", 1.0)
    return ""


def lowest(curves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each family, the least error of its settings up to a number of calls.

    Args:
        curves: of all settings, each with "family" and "points", a list of [calls, error].
    """
    families: dict[str, list] = {}
    for curve in curves:
        families.setdefault(curve["family"], []).extend(curve["points"])
    found = []
    for family, points in families.items():
        kept, least = [], float("inf")
        for calls, error in sorted(points):
            if error < least:
                least = error
                kept.append([calls, error])
        found.append({"name": family, "points": kept})
    return found
