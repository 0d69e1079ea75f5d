"""Attacks the ops: random calls, most of them bad, against the references; a report in JSON.

    python bench/attack/ops.py --calls 20000 --report bench/results/attack_ops.json
    python bench/attack/ops.py --seed 1234        # one call again, with what was made of it

A call is made from a seed alone: shapes, dtypes, places in memory, and up to three changes that
may make it bad. Processes of its own run it, so that a crash ends a process, is counted, and names
its seed. Every call must be one of

    equal        the op wrote and returned what the reference did, and no other byte
    refused      the op and the reference raised the same sentence, and nothing was written
    unordered    a `sweep` whose jobs read what others write, against its rules; no crash

Anything else is a finding. With `--package` the package comes from another folder, such as one
whose kernels were built with sanitizers (`make asan`).
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BATCH = 50  # calls that a process is asked for at once
LIMIT = 120  # seconds for them
FINE = ("equal", "refused", "unordered")


class Worker:
    """A process that makes calls; it is started anew after a crash."""

    def __init__(self, package: Path):
        """Starts nothing yet."""
        self.package = package
        self.process = self.errors = self.lines = None

    def ask(self, seeds: list[int]) -> None:
        """Sends seeds to the process, which is started if none runs."""
        if self.process is None or self.process.poll() is not None:
            self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "ops_worker.py")],
                stdin=pipe,
                stdout=pipe,
                stderr=self.errors,
                text=True,
                env=environment(self.package),
            )
            self.lines = queue.SimpleQueue()
            threading.Thread(target=self.read, args=(self.process, self.lines), daemon=True).start()
        self.process.stdin.write(" ".join(map(str, seeds)) + "\n")
        self.process.stdin.flush()

    @staticmethod
    def read(process: subprocess.Popen, lines: queue.SimpleQueue) -> None:
        """Passes the process's lines on, and an empty one at its end."""
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def outcomes(self, seeds: list[int]) -> list[dict]:
        """Returns what became of each call; a crash and an endless call are outcomes, too."""
        found, end = [], time.monotonic() + LIMIT
        self.ask(seeds)
        while len(found) < len(seeds):
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
                ended = True
            except queue.Empty:
                line, ended = "", False
                self.process.kill()
            if line:
                found.append(json.loads(line))
                continue
            code = self.process.wait()
            self.errors.seek(0)
            said = f"exit {code}: {self.errors.read()[-4000:]}"
            kind = "crashed" if ended else "endless"
            found.append({"kind": kind, "seed": seeds[len(found)], "call": "", "said": said})
            if len(found) < len(seeds):
                self.ask(seeds[len(found) :])
                end = time.monotonic() + LIMIT
        return found

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait()


def environment(package: Path) -> dict[str, str]:
    """Returns the variables of a process that imports the package from a folder."""
    path = [str(package), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p)}


def attack(calls: int, first: int, package: Path, jobs: int = 1, progress: bool = False) -> dict:
    """Makes so many calls and returns the report.

    Args:
        calls: how many.
        first: the first seed; the others follow.
        package: the folder that holds the package `diffast`.
        jobs: how many processes share the calls.
        progress: whether counts are printed meanwhile.
    """
    batches = [
        list(range(start, min(start + BATCH, first + calls)))
        for start in range(first, first + calls, BATCH)
    ]
    own = threading.local()
    workers, counts, by_op, changes = [], Counter(), {}, Counter()
    findings, begun = [], time.monotonic()

    def serve(seeds):
        if not hasattr(own, "worker"):
            own.worker = Worker(package)
            workers.append(own.worker)
        return own.worker.outcomes(seeds)

    with ThreadPoolExecutor(jobs) as pool:
        for number, outcomes in enumerate(pool.map(serve, batches)):
            for outcome in outcomes:
                counts[outcome["kind"]] += 1
                op = outcome["call"].partition(" ")[0]
                by_op.setdefault(op, Counter())[outcome["kind"]] += 1
                changes.update(change.partition(" ")[0] for change in outcome.get("changes", []))
                if outcome["kind"] not in FINE:
                    findings.append(outcome)
            if progress and number % 20 == 19:
                print(f"{(number + 1) * BATCH:7d} calls: {dict(counts)}", flush=True)
    for worker in workers:
        worker.stop()
    return {
        "calls": sum(counts.values()),
        "first_seed": first,
        "seconds": round(time.monotonic() - begun),
        "counts": dict(counts),
        "crashed": counts["crashed"] + counts["endless"],
        "ops": {op: dict(kinds) for op, kinds in sorted(by_op.items())},
        "changes": dict(changes),
        "findings": findings,
    }


def main() -> int:
    """Runs the attack; the exit status is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="make one call again, in this process")
    parser.add_argument("--package", type=Path, default=ROOT, help="the folder above diffast/")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the calls")
    parser.add_argument("--report", type=Path, help="where the JSON goes")
    parser.add_argument("--name", default="plain", help="of this attack in the report's file")
    options = parser.parse_args()
    if options.seed is not None:
        command = [sys.executable, str(HERE / "ops_worker.py")]
        given = {"input": f"{options.seed}\n", "text": True, "env": environment(options.package)}
        return subprocess.run(command, **given).returncode
    report = attack(options.calls, options.first, options.package, options.jobs, True)
    if options.report:
        kept = json.loads(options.report.read_text()) if options.report.exists() else {}
        text = json.dumps({**kept, options.name: report}, indent=1)
        options.report.write_text(text + "\n")
    else:
        print(json.dumps(report, indent=1))
    print(report["counts"], f"{len(report['findings'])} findings")
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
