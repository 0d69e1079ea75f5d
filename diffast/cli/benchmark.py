"""The command `diffast bench`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

PARTS = ("ops", "steps", "runs", "paths", "start", "memory")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `diffast bench` to a parser."""
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer cases; under 3 minutes on 2 cores")
    parts = ",".join(PARTS)
    add("--only", default=parts, metavar="PARTS", help="some of %(default)s")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    about = "numbers of CPU threads, as in 1,2 (1; on a CPU without --quick also all cores)"
    add("--threads", default=None, help=about)
    add("--out", default="diffast-bench", metavar="FOLDER", help="where to write (%(default)s)")
    about = "measure ops that fail their check, too, and mark every row"
    add("--unverified", action="store_true", help=about)


def bench(arguments: argparse.Namespace) -> int:
    """Makes the report; returns the exit status: 1 if an op failed its check.

    Raises:
        ValueError: for a part or a number of threads that does not exist, or a folder that cannot
            be written to.
    """
    parts = _parts(arguments.only)
    short = arguments.quick or arguments.device.startswith("cuda")
    threads = _threads(arguments.threads, short)
    folder = _folder(arguments.out)

    from diffast.bench import run
    from diffast.bench.settings import Settings
    from diffast.cli import doors

    settings = Settings(
        quick=arguments.quick,
        device=doors.device_of(arguments.device),
        threads=threads,
        budget=0.1 if arguments.quick else 0.4,
        unverified=arguments.unverified,
    )
    content = run.make(settings, parts, lambda line: print(line, file=sys.stderr, flush=True))
    data, page = run.write(content, folder)
    for section in content["sections"]:
        losses = sum(1 for row in section["rows"] if row.get("loss"))
        lost = f", {losses} losses" if losses else ""
        print(f"{section['title']}: {len(section['rows'])} rows{lost}")
        for note in section["notes"]:
            print(f"  {note}")
    print(f"wrote {data}\nwrote {page}")
    return int(any(why != "ok" for why in content["verified"]["ops"].values()))


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    for part in wanted:
        if part not in PARTS:
            raise ValueError(f"--only {text!r}: {part!r} is no part, but {', '.join(PARTS)} are")
    return [part for part in PARTS if part in wanted]


def _threads(text: str | None, short: bool) -> list[int]:
    from diffast.bench.machine import usable_cores

    cores = usable_cores()
    if text is None:
        return [1] if short or cores == 1 else [1, cores]
    counts = text.split(",")
    for count in counts:
        if not count.isdigit() or not 0 < int(count) <= cores:
            raise ValueError(f"--threads {text!r}: {count!r} but there are 1 to {cores} cores")
    return sorted({int(count) for count in counts})


def _folder(text: str) -> Path:
    folder = Path(text)
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not standing.is_dir():
        raise ValueError(f"--out {text}: {standing} is a file but a folder is needed")
    if not os.access(standing, os.W_OK):
        raise ValueError(f"--out {text}: the folder {standing} is not writable")
    return folder
