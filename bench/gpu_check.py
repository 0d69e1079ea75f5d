"""Proves and measures everything that needs a GPU, in one run of less than eight minutes.

    python bench/gpu_check.py                     all steps: build, tests, benchmarks, sanitizers
    python bench/gpu_check.py --only ops,bench    some of them (--list names them)
    python bench/gpu_check.py --resume            keeps what passed: same card, same sources
    python bench/gpu_check.py --dry-run           without a GPU: the same scripts, small, on the CPU

Every step is a process with a time limit, killed with its children when the limit is over. After
each step bench/results/gpu/<card>-<commit>.json is written anew; the output of all steps is in the
.log beside it. Both go to $OUT if that is set. The exit code is 1 if a step failed or a number that
must be reached was missed.

The compiled libraries are taken as they are if they load and run; otherwise they are built for the
card at hand alone. Interfaces of other packages are tested where those packages are installed.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu import machine  # noqa: E402
from gpu.runner import PASSED, Check  # noqa: E402
from gpu.steps import BUDGET, make_steps, worst_case  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "gpu"
DRY_RESULTS = machine.ROOT / "build" / "gpu-check"
DRY_SLACK = 6  # limits of a dry run, in those of a run: its machine may be small and busy


def arguments(given=None) -> argparse.Namespace:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = {"metavar": "A,B"}
    parser.add_argument("--only", help="run these steps alone", **names)
    parser.add_argument("--skip", help="leave these steps out", **names)
    parser.add_argument("--resume", action="store_true", help="keep steps that passed before")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, GPU hidden, small")
    parser.add_argument("--list", action="store_true", help="name the steps and their limits")
    parser.add_argument("--out", type=Path, help="folder of the JSON and the log")
    parser.add_argument("--commit", help="the commit's name, where git is not at hand")
    parser.add_argument("--budget", type=float, help=f"seconds in all; default {BUDGET}")
    options = parser.parse_args(given)
    if options.budget is not None and not options.budget > 0:
        parser.error(f"--budget is {options.budget:g} but seconds above 0 are needed")
    for name in ("only", "skip"):
        if getattr(options, name) == "":
            parser.error(f"--{name} names no step")
    return options


def chosen(steps, only: str | None, skip: str | None):
    """Returns the wanted steps, in their order.

    Raises:
        SystemExit: for a name that no step has.
    """
    wanted, unwanted = ([n for n in (text or "").split(",") if n] for text in (only, skip))
    known = [step.name for step in steps]
    for name in (*wanted, *unwanted):
        if name not in known:
            sys.exit(f"gpu_check: there is no step {name!r}; steps are {', '.join(known)}")
    taken = [s for s in steps if (s.name in wanted if wanted else s.default)]
    return [s for s in taken if s.name not in unwanted]


def table(check: Check) -> None:
    """Prints the results of all steps and the numbers that must be reached."""
    print(f"\n{check.header['card']}, commit {check.header['commit']}")
    for record in check.results.values():
        note = record["reason"] or f"{len(record.get('figures', []))} figures"
        kept = " (kept)" if record.get("kept") else ""
        words = f"{record['name']:12} {record['state'] + kept:18} {record['seconds']:7.1f} s"
        print(f"{words} of {record['limit']:4.0f}  {record['what']}: {note}")
    for target in (t for r in check.results.values() for t in r.get("targets", [])):
        met = {True: "met", False: "MISSED", None: target.get("reason", "no number")}[target["met"]]
        value = "-" if target["value"] is None else f"{target['value']:.3g}"
        print(f"  {target['target']:58} {value:>8} {target['bound']:>9}  {met}")
    for record in check.results.values():
        if record.get("tail"):
            print(f"\n--- {record['name']}, its last lines")
            print("\n".join(record["tail"]))
    print(f"\n{check.path}\n{check.log}")


def main(given=None) -> int:
    """Runs the command; returns its exit code."""
    options = arguments(given)
    if options.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    found = machine.machine()
    steps = make_steps(found, options.dry_run, DRY_SLACK if options.dry_run else 1)
    if options.list:
        for step in steps:
            print(
                f"{step.name:12} {step.seconds:4.0f} s  {step.what}{'' if step.default else ' *'}"
            )
        usual = [step for step in steps if step.default]
        print(f"at most {worst_case(usual):.0f} s in all; * runs only when it is named")
        return 0
    if not found["gpus"] and not options.dry_run:
        sys.exit("gpu_check: torch finds no CUDA device here; --dry-run tries the script out")
    steps = chosen(steps, options.only, options.skip)
    commit = options.commit or machine.commit()
    header = {"card": found["card"], "commit": commit, "sources": machine.sources()}
    header |= {"dry_run": options.dry_run, "machine": found}
    header["file"] = f"{machine.slug(found['card'])}-{machine.slug(commit)}"
    slack = DRY_SLACK if options.dry_run else 1
    budget = options.budget or BUDGET * slack
    folder = options.out or Path(
        os.environ.get("OUT") or (DRY_RESULTS if options.dry_run else RESULTS)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"gpu_check: the results cannot go to {folder}: {error.strerror}")
    worst = worst_case(steps)
    print(f"{found['card']}: {len(steps)} steps, {worst:.0f} s at worst, of {budget:.0f} s")
    check = Check(header, folder, budget, options.resume, RESULTS, machine.smi)
    fine = check.run(steps)
    table(check)
    states = [check.results[step.name] for step in steps]
    missed = [t for r in states for t in r.get("targets", []) if t["met"] is False]
    ran = any(r["state"] == PASSED for r in states)
    return 0 if fine and ran and not (missed and not options.dry_run) else 1


if __name__ == "__main__":
    sys.exit(main())
