"""The counts of docs/reliability.md are those of the reports in bench/results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def report(name):
    return json.loads((ROOT / "bench" / "results" / name).read_text())


def listed(section):
    """Returns {words of a row: number before them} of a section's table of outcomes."""
    text = PAGE[PAGE.index(f"\n## {section}\n") :].split("\n## ", 2)[1]
    rows = re.findall(r"^\| ([\d,]+) \| ([^|]+) \|", text, re.M)
    return {words: int(number.replace(",", "")) for number, words in rows}


def overview():
    """Returns [(cases, faults)] of the table of all attacks, in its order."""
    text = PAGE[: PAGE.index("\n## ")]
    rows = re.findall(r"^\|.*?\| ([\d,]+) \| ([\d,]+) \|", text, re.M)
    return [tuple(int(number.replace(",", "")) for number in row) for row in rows]


def test_the_table_of_all_attacks_has_the_reports_counts():
    runs, ops = report("attack_runs.json"), report("attack_ops.json")
    fuzz, builds = report("fuzz_dropin.json"), report("attack_builds.json")
    k_diffusion, comfyui = report("attack_k_diffusion.json"), report("attack_comfyui.json")
    dropins, files = report("attack_dropin_builds.json"), report("attack_files.json")
    cli, cells = report("attack_cli.json"), runs["faulty networks"]
    assert overview() == [
        (fuzz["cases"], len(fuzz["faults"])),
        (k_diffusion["cases"], len(k_diffusion["silent"])),
        (comfyui["cases"], len(comfyui["failed"])),
        (cells["cells"], len(cells["bad"])),
        (runs["modes"]["cells"], len(runs["modes"]["bad"])),
        (runs["arguments"]["values"], len(runs["arguments"]["bad"])),
        (runs["random calls"]["calls"], len(runs["random calls"]["bad"])),
        (ops["plain"]["calls"], len(ops["plain"]["findings"])),
        (ops["sanitized"]["calls"], len(ops["sanitized"]["findings"])),
        (builds["counts"]["builds"], len(builds["refused"])),
        (dropins["counts"]["settings"], dropins["counts"].get("different", 0)),
        (files["counts"]["files"], len(files["wrong"])),
        (cli["calls"], len(cli["failures"])),
    ]


def test_the_tables_of_outcomes_have_the_reports_counts():
    total = report("fuzz_dropin.json")["total"]
    rows = listed("Drop-ins")
    assert rows == {words: total.get(_kind(words), 0) for words in rows}
    assert sum(rows.values()) == sum(total.values())
    classes = report("attack_k_diffusion.json")["classes"]
    assert sorted(listed("k-diffusion").values()) == sorted(classes.values())
    counts = report("attack_dropin_builds.json")["counts"]
    assert sorted(listed("Builds of plans").values()) == sorted(
        counts[name] for name in ("equal", "equal within float32", "refused")
    )


def _kind(words):
    """Returns the report's name of an outcome of the drop-ins."""
    return words.split(":")[0].replace("refused by the drop-in alone", "refused")
