"""Bad calls of the command line: every option of every command with values that it cannot take.

    python bench/attack/cli.py --out report.json

Most calls run in this process, with a time limit each; some run as processes, with streams closed,
packages hidden, another encoding, no room for columns. A call may run (some values are good), or be
refused in one line on stderr with status 2 or 1. Counted as failures are tracebacks, errors without
words of their own, calls that run away, more than one line, and files that are left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from diffast.cli import main as command

LIMIT = 25.0
# What numbers, words and files can look like.
NUMBERS = ("", "x", "1.5", "-1", "0", "nan", "inf", "1e400", "1000000000000", "9" * 30, "0x10", "٣")
REALS = ("", "x", "nan", "inf", "-inf", "1e400", "1,2", "0x10")
WORDS = ("", "no_such_name", "\u00e4\U0001f600", "a b", "--", "x" * 5000, "../..", "%s%n{0}")
OUTS = ("", ".", "/", "x", "x.gif", "nowhere/x.json", "folder.json", "locked/x.json", "a\nb.txt",
        "/dev/null/x.json", "x" * 300 + ".json", "/proc/x.json", "~x/y.png")  # fmt: skip
FILES = ("", ".", "/", "missing.json", "empty.json", "text.json", "list.json", "deep.json",
         "binary.npz", "cut.npz", "other.npz", "folder.json", "pickled.npy", "/dev/null",
         "x" * 5000)  # fmt: skip
SAMPLE = ["sample", "--count", "1", "--steps", "1", "--quiet", "--out", "x.npz"]
TUNE = ["tune", "--calls", "2", "--count", "2", "--iterations", "0", "--starts", "1", "--quiet"]
PROFILE = ["profile", "--count", "2", "--levels", "3", "--measure", "none", "--quiet", "--out",
           "p.json"]  # fmt: skip
PARALLEL = ["profile", "--parallel", "--count", "1", "--steps", "3", "--quiet", "--out", "p.json"]
ADAPTIVE = [
    "profile",
    "--adaptive",
    "--count",
    "1",
    "--set",
    "rtol=1",
    "--quiet",
    "--out",
    "p.json",
]


def calls() -> list[list[str]]:
    """Returns the bad calls."""
    found: list[list[str]] = [[], [""], ["no_such_command"], ["--nothing"], ["sample", "surplus"]]
    per_option = {
        "count": NUMBERS, "steps": NUMBERS, "seed": NUMBERS, "columns": NUMBERS, "guidance": REALS,
        "solver": WORDS, "grid": WORDS, "classes": (*WORDS, "12", "5-3", "1-", "-1", "0-9-9", ",",
        "٣", "0-99999999999"), "device": (*WORDS, "cuda", "cuda:99", "cpu:7", "meta", "mps", "xla"),
        "guidance-rule": (*WORDS, "apg:eta", "apg:eta=x", "apg:nothing=1", "rescale:phi=nan"),
        "corrector": (*WORDS, "ulmc:n=x", "ulmc:n=1000000000", "olmc:step=-1", "olmc:step=nan"),
        "task": (*WORDS, "inpaint", "class:scale=x", "class:calls=0", "class:calls=1000000000",
        "class:nothing=1", "text", "deblur:kernel=nan"), "out": (*OUTS, "folder.npz"),
        "set": ("", "eta", "=1", "nothing=1", "order=0", "order=99", "order=1e9", "order=,",
        "orders=1", "orders=9,9"), "plan": FILES, "image": FILES, "mask": FILES, "text": WORDS,
    }  # fmt: skip
    for option, values in per_option.items():
        base = SAMPLE if option != "plan" else [*SAMPLE[:3], *SAMPLE[5:]]
        more = ["--solver", "lms"] if option == "set" else []
        more = ["--task", "inpaint", "--mask", "mask.npy"] if option == "image" else more
        more = ["--task", "inpaint", "--image", "image.npy"] if option == "mask" else more
        more = ["--task", "text"] if option == "text" else more
        found += [[*base, *more, f"--{option}={value}"] for value in values]
    for n in ("0", "1000000000000", "x"):
        found += [["demo", "--quiet", "--steps", n], ["demo", "--quiet", "--guidance", n + "e9"]]
    per_option = {
        "calls": (*NUMBERS, "5,x", ","), "shape": (*NUMBERS, "3,x", "1,28,28"), "count": NUMBERS,
        "held-out": NUMBERS, "freedom": WORDS, "iterations": NUMBERS[:8], "starts": NUMBERS[:7],
        "polish": NUMBERS[:4], "batch": NUMBERS[:7], "resume": (*FILES, *OUTS), "out": OUTS,
        "picture": OUTS, "seed": NUMBERS[:4], "classes": ("", "12"), "guidance": REALS,
        "device": WORDS[:3], "network": (*WORDS, "os:path", "os:getcwd", "raises:made",
        "syntax:made", "user_networks:nothing", "user_networks:raises", "user_networks:exits",
        "user_networks:number", "user_networks:wrong_shape", "user_networks:nans", ":", "a:b:c"),
    }  # fmt: skip
    for option, values in per_option.items():
        own = ["--shape", "2"] if option == "network" else []
        own = ["--network", "user_networks:tiny"] if option == "shape" else own
        own = own or ["--network", "user_networks:tiny", "--shape", "2"]
        found += [[*TUNE, *own, f"--{option}={value}"] for value in values]
    per_option = {"data": FILES, "measure": WORDS, "levels": NUMBERS, "out": OUTS, "count": NUMBERS,
                  "set": ("x=1",), "steps": ("3",), "classes": ("", "99")}  # fmt: skip
    for option, values in per_option.items():
        found += [[*PROFILE, f"--{option}={value}"] for value in values]
    for base in (PARALLEL, ADAPTIVE):
        flag = base[1]
        found += [[*base, f"{flag}={value}"] for value in WORDS]
        found += [[*base, f"--set={value}"] for value in ("", "rtol", "=", "rtol=x", "nothing=1",
                  "window=0", "window=x", "rtol=nan", "tolerance=-1", "max_calls=0", "seed=1",
                  "shape=1", "throw=1", "callback=1", "x=1", "noise=?", "rtol=1,2")]  # fmt: skip
        found += [[*base, f"--out={value}"] for value in OUTS]
        found += [[*base, "--data", "other.npz"], [*base, "--count", "1000000000000"]]
    found += [[*PARALLEL, "--adaptive"], [*ADAPTIVE, "--solver", "euler"]]
    per_option = {"schedule": WORDS, "calls": NUMBERS, "guidance": REALS, "out": OUTS}
    for option, values in per_option.items():
        found += [["plan", f"--{option}={value}"] for value in values]
    per_option = {"only": WORDS, "device": (*WORDS, "cuda"), "threads": NUMBERS,
                  "out": ("text.json", "text.json/x")}  # fmt: skip
    for option, values in per_option.items():
        found += [["bench", "--quick", "--only", "start", f"--{option}={v}"] for v in values]
    return [*found, ["doctor", "surplus"], ["doctor", "--nothing"]]


def prepare(folder: Path) -> None:
    """Puts bad files into the folder where calls run."""
    (folder / "folder.json").mkdir()
    (folder / "folder.npz").mkdir()
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    (folder / "empty.json").write_bytes(b"")
    (folder / "text.json").write_text("not json")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "binary.npz").write_bytes(bytes(range(256)) * 40)
    np.savez(folder / "other.npz", images=np.zeros((3, 5)), labels=np.zeros(2))
    (folder / "cut.npz").write_bytes((folder / "other.npz").read_bytes()[:150])
    np.save(folder / "pickled.npy", np.array([{}, None], dtype=object))
    np.save(folder / "image.npy", np.zeros((28, 28), np.float32))
    np.save(folder / "mask.npy", np.ones((28, 28), np.float32))
    (folder / "raises.py").write_text("raise RuntimeError('of the user')")
    (folder / "syntax.py").write_text("def (")
    (folder / "user_networks.py").write_text(
        "import sys\nimport diffast as df\nimport torch\n"
        "def raises():\n    raise KeyError('of the user')\n"
        "def exits():\n    sys.exit(3)\n"
        "number = 3\n"
        "def _of(network):\n"
        "    return df.Denoiser(network, df.schedules.flow(), predicts='flow')\n"
        "def tiny():\n    return _of(lambda x, t: torch.tanh(x))\n"
        "def wrong_shape():\n    return _of(lambda x, t: x[:, :1])\n"
        "def nans():\n    return _of(lambda x, t: x * float('nan'))\n"
    )


class Late(BaseException):
    """A call ran past its limit."""


def run(argv: list[str], folder: Path) -> tuple[str, str, float]:
    """Returns (class, details, seconds) of a call in this process."""
    before = {path.name for path in folder.iterdir()}
    out, said = io.StringIO(), io.StringIO()
    begin = time.perf_counter()

    def late(*_):
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(said)
        with quiet[0], quiet[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = command(argv)
    except Late:
        return "ran away", "", LIMIT
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}", time.perf_counter() - begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - begin
    new = {path.name for path in folder.iterdir()} - before - {"__pycache__"}
    for name in new:
        path = folder / name
        if path.is_file():
            path.unlink()
    return *judge(status, said.getvalue(), new), seconds


def judge(status: int, said: str, new: set[str]) -> tuple[str, str]:
    """Returns (class, details) of an exit status, of what stood on stderr and of new files."""
    if "Traceback" in said:
        return "traceback", said[-300:]
    if status == 0:
        return "ran", ""
    if status not in (1, 2):
        return "status", f"{status}: {said[:200]}"
    if new:
        return "left files", ", ".join(sorted(new))[:200]
    if "DIFFAST_TRACEBACK" in said:
        return "without words of its own", said[:300]
    lines = said.splitlines()
    if len(lines) != 1 or not lines[0].startswith("diffast: "):
        return "not one line", said[:300]
    return ("refused" if status == 2 else "failed in one line"), said.strip()[:300]


ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "one column": {"COLUMNS": "1"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "no home": {"HOME": None},
    "bytes as bytes": {"PYTHONIOENCODING": "latin-1:strict"},
}
HIDDEN = "import sys; sys.modules.update(dict.fromkeys({names!r})); " \
         "from diffast.cli import main; sys.exit(main({argv!r}))"  # fmt: skip


def processes() -> list[tuple[str, list[str], dict, str]]:
    """Returns (what is special, command, environment, shell) of calls that are processes."""
    own = [sys.executable, "-m", "diffast"]
    found = []
    for name, environment in ENVIRONMENTS.items():
        for argv in (["--help"], ["sample", "--help"], ["plan", "--out", "ä€.txt"], ["plan"],
                     [*SAMPLE, "--solver", "é"]):  # fmt: skip
            found.append((name, [*own, *argv], environment, ""))
    for name, names, argv in (
        ("without Pillow", ["PIL"], ["sample", "--out", "x.png"]),
        ("without matplotlib", ["matplotlib"], ["profile", "--adaptive", "--out", "x.png"]),
        ("without matplotlib", ["matplotlib"], ["profile", "--out", "x.html"]),
        ("without matplotlib", ["matplotlib"], ["tune", "--picture", "x.svg"]),
        ("without safetensors", ["safetensors"], [*SAMPLE]),
        ("without tqdm", ["tqdm"], [*SAMPLE]),
    ):
        code = HIDDEN.format(names=names, argv=argv)
        found.append((name, [sys.executable, "-c", code], {}, ""))
    for name, shell in (
        ("closed pipe", " | true"), ("closed stdout", " >&-"), ("closed stderr", " 2>&-"),
        ("closed stdin", " <&-"), ("full disk", " >/dev/full"),
    ):  # fmt: skip
        for argv in (["plan"], ["doctor"], ["plan", "--calls", "0"]):
            found.append((name, [*own, *argv], {}, shell))
    return found


def process(case: tuple[str, list[str], dict, str], folder: Path) -> tuple[str, str, float]:
    """Returns (class, details, seconds) of a call that is a process."""
    name, argv, environment, shell = case
    surroundings = {k: v for k, v in (os.environ | environment).items() if v is not None}
    begin = time.perf_counter()
    before = {path.name for path in folder.iterdir()}
    line = " ".join("'" + word.replace("'", "'\\''") + "'" for word in argv)
    line = f"set -o pipefail; {line}{shell}"
    try:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=surroundings, capture_output=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "ran away", name, 120.0
    new = {path.name for path in folder.iterdir()} - before
    for left in new:
        (folder / left).unlink()
    said, status = done.stderr.decode(errors="replace"), done.returncode
    seconds = time.perf_counter() - begin
    if "Traceback" in said or "Exception ignored" in said:
        return "traceback", said[-300:], seconds
    if name in ("closed pipe", "closed stderr") and not said and status in (0, 2, 141):
        return "quiet", "", seconds
    return *judge(status, said, new if status else set()), seconds


def main() -> int:
    """Runs the calls; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="calls whose words contain this text")
    parser.add_argument("--no-processes", action="store_true")
    given = parser.parse_args()
    out = None if given.out is None else given.out.absolute()
    import torch

    torch.set_num_threads(1)
    counts, failures, slowest = Counter(), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        os.chdir(folder)
        cases = [(" ".join(argv), argv) for argv in calls()]
        todo = [(words, run, argv) for words, argv in cases]
        if not given.no_processes:
            todo += [(f"{c[0]}: {' '.join(c[1][1:])}{c[3]}", process, c) for c in processes()]
        for words, how, case in todo:
            if given.only is not None and given.only not in words:
                continue
            kind, why, seconds = how(case, folder)
            counts[kind] += 1
            slowest.append((round(seconds, 1), words[:90]))
            if kind not in ("ran", "refused", "failed in one line", "quiet"):
                failures.append({"call": words[:200], "class": kind, "what": why})
                print(f"{kind}: {words[:120]!r}: {why}", file=sys.stderr, flush=True)
            elif given.only is not None:
                print(f"{kind}: {words[:120]!r}: {why}", file=sys.stderr, flush=True)
        os.chdir("/")
        (folder / "locked").chmod(0o755)
    report = {
        "calls": sum(counts.values()), "limit_s": LIMIT, "classes": dict(counts.most_common()),
        "failures": failures, "slowest": sorted(slowest, reverse=True)[:5],
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
