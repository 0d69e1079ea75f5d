"""Runs steps one after another, each a process under a time limit, and keeps a JSON up to date."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
FIGURES = "GPU_CHECK_FIGURES"  # names the file into which a step's process writes what it measured
TAIL = 25  # lines of a step's output that the JSON keeps where it did not pass
LEAST = 5  # seconds: a step is not begun with less time left


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: how it is chosen.
        seconds: its time limit.
        what: a few words for the table.
        command: the process.
        environment: variables of the process, beside those of the runner.
        default: whether it runs when no step is named.
        folder: where the process runs; None: where the runner does.
        unless: called with the results so far; returns why the step is skipped, or None.
    """

    name: str
    seconds: float
    what: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    default: bool = True
    folder: Path | None = None
    unless: Callable[[dict[str, dict]], str | None] = lambda results: None


def run_process(step: Step, limit: float, log: Path, figures: Path) -> tuple[str, str]:
    """Runs a step's process; kills it and its children at the limit. Returns (state, reason)."""
    environment = {**os.environ, **step.environment, FIGURES: str(figures)}
    environment["PYTHONUNBUFFERED"] = "1"
    with log.open("ab") as file:
        file.write(f"\n===== {step.name}: {' '.join(step.command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            step.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=step.folder,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            state = PASSED if code == 0 else FAILED
            reason = "" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            state, reason = TIMED_OUT, f"not done after {limit:.0f} s"
        finally:
            _kill(process)
    return state, reason


def _kill(process: subprocess.Popen) -> None:
    """Kills what is left of the process's group: its workers, compilers, sanitizers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_json(path: Path) -> dict:
    """Returns what a JSON file holds, an empty dict where there is none or it is cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file at once: whoever reads it meanwhile finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(fresh, path)


class Check:
    """A run of steps and its results.

    Args:
        header: what the JSON begins with; `card`, `commit` and `sources` say what a result is of.
        folder: where the JSON and the log go.
        budget: seconds for all steps together.
        resume: whether steps that passed before, with this card and these sources, are kept.
        archive: another folder, where the earlier run's JSON is looked for too.
        probe: called after each step; returns the card's clocks, which the JSON keeps with it.
        echo: prints one line.
    """

    def __init__(
        self,
        header: dict,
        folder: Path,
        budget: float,
        resume: bool = False,
        archive: Path | None = None,
        probe: Callable[[], dict] = dict,
        echo: Callable[[str], object] = print,
    ):
        """Begins a run, or goes on with an earlier one's JSON."""
        self.header, self.folder, self.budget, self.echo = header, folder, budget, echo
        self.probe = probe
        self.path = folder / f"{header['file']}.json"
        self.log = folder / f"{header['file']}.log"
        self.results: dict[str, dict] = {}
        old = read_json(self.path) or read_json((archive or folder) / self.path.name)
        mine = all(old.get(key) == header[key] for key in ("card", "commit", "sources", "dry_run"))
        if resume and mine:
            kept = {r["name"]: r for r in old.get("steps", []) if r["state"] == PASSED}
            self.results = {name: {**r, "kept": True} for name, r in kept.items()}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab" if self.results else "wb"):
            pass
        self.begin = time.monotonic()

    @property
    def left(self) -> float:
        """Returns the seconds that are left of the budget."""
        return self.budget - (time.monotonic() - self.begin)

    def run(self, steps: list[Step]) -> bool:
        """Runs the steps; returns whether none failed."""
        self.write()
        for step in steps:
            if self.results.get(step.name, {}).get("kept"):
                self.echo(f"{step.name:12} passed before")
                continue
            self.results[step.name] = self._one(step)
            self.write()
            record = self.results[step.name]
            words = f"{step.name:12} {record['state']:10} {record['seconds']:6.1f} s"
            self.echo(f"{words}  {record['reason']}".rstrip())
        bad = (FAILED, TIMED_OUT)
        return not any(self.results[s.name]["state"] in bad for s in steps)

    def _one(self, step: Step) -> dict:
        record = {"name": step.name, "what": step.what, "limit": step.seconds, "seconds": 0.0}
        reason = step.unless(self.results)
        limit = min(step.seconds, self.left)
        if reason is None and limit < min(LEAST, step.seconds):
            reason = f"{max(0.0, self.left):.0f} s of {self.budget:.0f} s are left"
        if reason is not None:
            return {**record, "state": SKIPPED, "reason": reason}
        begin, place = time.monotonic(), self.log.stat().st_size
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures.json"
            state, reason = run_process(step, limit, self.log, figures)
            record |= {"state": state, "reason": reason, "seconds": time.monotonic() - begin}
            record["clocks"] = self.probe()
            record |= read_json(figures)
        for figure in record.get("figures", []):
            figure["card"] = self.header["card"]
        if state != PASSED:
            with self.log.open("rb") as file:
                file.seek(place)
                text = file.read().decode(errors="replace")
            record["tail"] = text.splitlines()[-TAIL:]
        return record

    def write(self) -> None:
        """Writes the JSON with all results so far."""
        steps = list(self.results.values())
        targets = [t for record in steps for t in record.get("targets", [])]
        content = {**self.header, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        content |= {"seconds": time.monotonic() - self.begin, "budget": self.budget}
        write_json(self.path, {**content, "targets": targets, "steps": steps})


class Figures:
    """What a step's process measures, written after every case: a step that is killed keeps it."""

    def __init__(self):
        """Begins with no figure."""
        name = os.environ.get(FIGURES)
        self.path = Path(name) if name else None
        self.content: dict = {"figures": [], "targets": []}

    def note(self, **facts) -> None:
        """Adds facts about the whole step."""
        self.content |= facts
        self._write()

    def add(self, case: str, **numbers) -> dict:
        """Adds one case's numbers, and prints them."""
        record = {"case": case, **{k: v for k, v in numbers.items() if v is not None}}
        self.content["figures"].append(record)
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        print(f"{case:50} {'  '.join(shown)}", flush=True)
        self._write()
        return record

    def target(self, name: str, value: float | None, sign: str, bound: float, reason="") -> None:
        """Adds one number that must be reached; without a value it says why there is none."""
        met = None
        if value is not None and not reason:
            met = value >= bound if sign == ">=" else value <= bound
        record = {"target": name, "value": value, "bound": f"{sign} {bound}", "met": met}
        self.content["targets"].append(record | ({"reason": reason} if reason else {}))
        print(f"target: {name}: {value} {sign} {bound}: {met} {reason}", flush=True)
        self._write()

    def _write(self) -> None:
        if self.path is not None:
            write_json(self.path, self.content)
