"""The ops' tests, where the package lies in a checkout: red tests, no speeds."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import diffast

TESTS = tuple(
    f"tests/ops/{name}"
    for name in (
        *("test_combine.py", "test_combine_exact.py", "test_normal.py", "test_op_errors.py"),
        *("test_brownian.py", "test_combine_error.py"),
        *("test_sweep.py", "test_sweep_errors.py", "test_gram.py"),
        *("test_accept.py", "test_accept_errors.py", "test_accept_controllers.py"),
        *("test_evaluate.py", "test_evaluate_errors.py"),
    )
)


def checkout() -> Path | None:
    """Returns the root of the checkout that holds the package and its tests, None without one."""
    root = Path(diffast.__file__).resolve().parent.parent
    there = all((root / name).is_file() for name in TESTS)
    return root if there and find_spec("pytest") else None


def build_key(root: Path) -> str:
    """Returns a hash of what is measured and of what tests it."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = root / "diffast"
    helpers = sorted((root / "tests" / "helpers").glob("*_cases.py"))
    helpers += [root / "tests" / "conftest.py", root / "tests" / "helpers" / "output_hashes.py"]
    built = sorted([*package.glob("_*.so"), *package.glob("ops/**/*.py")])
    for path in (*built, *helpers, *(root / name for name in TESTS)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tests_are_green(root: Path) -> bool:
    """Runs the ops' tests, unless these very files passed them before.

    Args:
        root: of the checkout; `.benchmarks/verified` there holds the key of what passed.
    """
    stamp, key = root / ".benchmarks" / "verified", build_key(root)
    if stamp.exists() and stamp.read_text() == key:
        return True
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout[-3000:])
        return False
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(key)
    return True
