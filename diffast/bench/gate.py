"""The ops' tests, where the package lies in a checkout: red tests, no speeds."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import diffast
from diffast.ops.load import OPS

# Files of tests/ops that are not about what the host's kernels compute.
_OTHERS = re.compile(r"compile|emulated|triton|statistics|debugging|op_calls")


def tests_of(root: Path) -> list[str]:
    """Returns the test files of all ops in a checkout, relative to its root."""
    named = {path for op in (*OPS, "op") for path in (root / "tests/ops").glob(f"test_{op}*.py")}
    return sorted(str(p.relative_to(root)) for p in named if not _OTHERS.search(p.name))


def checkout() -> Path | None:
    """Returns the root of the checkout that holds the package and its tests, None without one."""
    root = Path(diffast.__file__).resolve().parent.parent
    return root if tests_of(root) and find_spec("pytest") else None


def build_key(root: Path) -> str:
    """Returns a hash of what is measured and of what tests it."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = root / "diffast"
    helpers = sorted((root / "tests" / "helpers").glob("*_cases.py"))
    helpers += [root / "tests" / "conftest.py", root / "tests" / "helpers" / "output_hashes.py"]
    built = sorted([*package.glob("_*.so"), *package.glob("ops/**/*.py")])
    for path in (*built, *helpers, *(root / name for name in tests_of(root))):
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
    command = [sys.executable, "-m", "pytest", *options, *tests_of(root)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout[-3000:])
        return False
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(key)
    return True
