"""Crafted plan files: is each refused in one sentence, or read as what it says?

    python bench/attack/files.py [--count 6000] [--seed 0] [--out FILE] [--keep FOLDER]

Files of plans of every kind and version are damaged: bytes, text, types, numbers, names, headers of
arrays, archives. Each is given to `Plan.load`. Wrong are: any exception but a ValueError that
begins with the file's name and has one line; a warning; more than 200 MB or 20 s; and a plan that
says something else than the file, read again by json and numpy alone. The report is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from file_damage import NOT_MADE, damaged

import diffast as df
from diffast.plans.file import to_record
from diffast.plans.gaussian import Gaussian

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "attack_files.json"
MOST_MEMORY, MOST_SECONDS = 200 << 20, 20.0
VP = df.schedules.vp_linear()


# The files that are damaged.


def plans():
    """Returns {name: plan} of every kind that a file can hold."""
    edm, solvers, grids = df.schedules.edm(), df.solvers, df.grids
    rng = np.random.default_rng(0)
    betas = df.schedules.from_betas(np.linspace(1e-3, 0.05, 20))
    table = df.schedules.from_functions(lambda t: 1.0 - t, lambda t: t)
    whole = Gaussian.of(rng.standard_normal((9, 2, 3)), rank=3)
    classes = [Gaussian(np.full(4, k), np.eye(4)[:2], [0.3, 0.2], 0.1) for k in range(3)]
    long = solvers.dpmpp_3m(VP, grids.uniform_logsnr(VP, 8))
    late = df.thermo.StartLaw(tuple(classes), "label", np.array([3.0, 1.0]), np.array([0.1, 0.5]))
    base = solvers.heun(edm, grids.karras(edm, 3))
    made_for = {"predicts": "v", "network": "0" * 16, "measured": [["heun", 8, 0.1]]}
    return {
        "two_m": solvers.dpmpp_2m(VP, grids.uniform_time(VP, 3)),
        "heun": base,
        "churn": solvers.churn(edm, grids.karras(edm, 3), s_churn=2.0),
        "sde": solvers.seeds_3(VP, grids.uniform_time(VP, 3, start=0.9)),
        "betas": solvers.deis(betas, grids.trailing(betas, 4)),
        "table": solvers.euler(table, grids.uniform_time(table, 3)),
        "flow": solvers.unipc(df.schedules.flow(), grids.uniform_time(df.schedules.flow(), 4)),
        "piadm": solvers.piadm_sde(VP, grids.ou_early(VP, 6), block=2.0),
        "guided": base.with_weights({}, guidance=np.where(np.isnan(base.times), np.nan, 2.0)),
        "made_for": base.with_weights({}, made_for=made_for),
        "late": long.late_start(df.thermo.StartLaw((whole,)), calls=4),
        "classes": long.late_start(late, calls=5),
    }


def seeds():
    """Returns [(name, ending, bytes)] of good files, of all versions."""
    found = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plans with few steps
        for name, plan in plans().items():
            for ending in (".json", ".npz"):
                path = Path(folder) / f"{name}{ending}"
                plan.save(path)
                found.append((name, ending, path.read_bytes()))
    for path in sorted((ROOT / "tests" / "plans" / "older").iterdir()):
        if path.suffix in (".json", ".npz"):
            found.append((f"older_{path.stem}", path.suffix, path.read_bytes()))
    return found


# What becomes of a file.


def peak():
    """Returns (resident bytes, highest since `forget_peak`)."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("VmRSS", "VmHWM")):
            found[line[:5]] = int(line.split()[1]) << 10
    return found["VmRSS"], found["VmHWM"]


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def judged(path):
    """Returns (verdict, words, seconds, bytes) of one file."""
    forget_peak()
    before, begun, plan = peak()[0], time.monotonic(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = df.Plan.load(path)
        verdict, words = "loaded", ""
    except ValueError as error:
        words = str(error)
        named = words.startswith((str(path), f"plan file {path}"))
        verdict = "refused" if named and "\n" not in words and len(words) < 1500 else "unnamed"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict, words = "foreign", "".join(traceback.format_exception(error))[-1500:]
    seconds, memory = time.monotonic() - begun, peak()[1] - before
    if verdict == "loaded":
        try:
            other = differs(plan, path)
        except Exception as error:
            other = f"the file cannot be read again: {error!r}"
        if other:
            verdict, words = "another meaning", other
    return verdict, words, seconds, memory


def plain(value):
    """Returns numbers as floats and NaN as None, through lists, dicts and arrays."""
    if isinstance(value, np.ndarray):
        # long doubles are no Python numbers: a plan holds them rounded
        wide = value.dtype.kind == "f" and value.dtype.itemsize > 8
        return plain((value.astype(float) if wide else value).tolist())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return None if math.isnan(value) else float(value)
    return value


def agrees(said, held):
    """Returns whether what a file says is what the plan holds; None may have been filled in."""
    if said is None:
        return True
    if isinstance(said, list) and isinstance(held, list):
        return len(said) == len(held) and all(map(agrees, said, held))
    return said == held


def read_again(path):
    """Returns a file's fields by json and numpy alone."""
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    with np.load(path) as archive:
        body = {name: archive[name] for name in archive.files}
    return json.loads(str(body.pop("head"))) | body


def differs(plan, path):
    """Returns the field in which the plan is not what the file says, or nothing."""
    body, held = read_again(path), plain(to_record(plan))
    if body["version"] < 3:  # the arrays have other names there: those that have not
        names = ("times", "end", "start", "steps", "name", "check")
        stages = len(plan.times) - len(body["times"])
        if stages:  # an opening is a stage of its own
            held["times"] = held["times"][stages:]
        body = {name: body[name] for name in names if name in body}
    initial = {k: v for k, v in body.items() if k.startswith("initial/")}
    for name, array in initial.items():
        inner = held
        for key in name.split("/"):
            inner = inner[key]
        if not agrees(plain(array), inner):
            return name
    for name, value in body.items():
        if name in ("format", "version") or name in initial:
            continue
        said, own = plain(value), held.get(name)
        if name == "made_for" and said is not None:
            own = plain(dict(plan.made_for))
        if name == "schedule":  # a table is saved anew, at other times
            own = plain(plan.schedule.to_dict())
            if said.get("name") == "from_table":
                continue
        if name == "initial" and path.suffix == ".npz":
            continue
        if not agrees(said, own):
            return f"{name}: {said!r:.200} but {own!r:.200}"
    return ""


def attack(count, seed=0, keep=None):
    """Returns the report of so many files."""
    rng, good = np.random.default_rng(seed), seeds()
    counts, ways, wrong = Counter(), Counter(), []
    worst = {"bytes": [0, ""], "seconds": [0.0, ""]}
    with tempfile.TemporaryDirectory() as folder:
        for name, ending, data in good:
            path = Path(folder) / f"good{ending}"
            path.write_bytes(data)
            verdict, words, *_ = judged(path)
            if verdict != "loaded":
                wrong.append(
                    {
                        "file": f"{name}{ending}",
                        "damage": "none",
                        "verdict": verdict,
                        "words": words,
                    }
                )
        for number in range(count):
            name, ending, data = good[number % len(good)]
            try:
                way, made = damaged(rng, ending, data)
            except NOT_MADE as error:
                counts["not made"] += 1
                ways[f"not made: {type(error).__name__}"] += 1
                continue
            path = Path(folder) / f"plan{ending}"
            path.write_bytes(made)
            verdict, words, seconds, memory = judged(path)
            if verdict in ("loaded", "refused") and memory > MOST_MEMORY:
                verdict, words = "memory", f"{memory >> 20} MB"
            elif verdict in ("loaded", "refused") and seconds > MOST_SECONDS:
                verdict, words = "time", f"{seconds:.1f} s"
            counts["files"] += 1
            counts[verdict] += 1
            ways[f"{way}: {verdict}"] += 1
            for key, value in (("bytes", memory), ("seconds", round(seconds, 3))):
                if value > worst[key][0]:
                    worst[key] = [value, f"{number}: {way} of {name}{ending}"]
            if verdict not in ("loaded", "refused"):
                case = {"number": number, "file": f"{name}{ending}", "damage": way}
                wrong.append(case | {"verdict": verdict, "words": words})
                if keep:
                    (Path(keep) / f"{number}{ending}").write_bytes(made)
    return {
        "seed": seed,
        "counts": dict(counts),
        "worst": worst,
        "damages": dict(sorted(ways.items())),
        "wrong": wrong,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--keep", help="folder for the files that were not treated as they should be"
    )
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    report = attack(options.count, options.seed, options.keep)
    report["seconds"] = round(time.monotonic() - begun, 1)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["counts"]), json.dumps(report["worst"]), f"-> {options.out}")
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
