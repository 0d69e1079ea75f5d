"""Loads the compiled libraries and runs one kernel; builds them for the card at hand otherwise.

python -m gpu.libraries --device cuda|cpu
"""

import argparse
import os
import subprocess
import sys
import time

from gpu.machine import ROOT
from gpu.runner import Figures

# One kernel of each library: a library without code for this card loads, and fails only then.
TRY = """
import sys, torch
from diffast import ops
device = sys.argv[1]
x = torch.ones(2, 8, device=device)
(y,) = ops.combine([x], [2.0])
assert (y == 2).all(), y
found = ops.backends()[device]
wanted = {"cuda": "cuda", "cpu": "c++"}[device]
assert found["backend"].startswith(wanted), found
print(found)
"""


def attempt(device: str) -> subprocess.CompletedProcess:
    """Returns the run of a process that loads the package and calls one op."""
    # On a machine without a GPU the library of the GPU is loaded too, where torch has CUDA.
    environment = os.environ | {"DIFFAST_BACKEND": "cuda" if device == "cuda" else ""}
    command = [sys.executable, "-c", TRY, device]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def build(device: str) -> float:
    """Builds both libraries in place, for this card alone; returns the seconds it took."""
    environment = dict(os.environ)
    if device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability(0)
        environment |= {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "DIFFAST_CUDA": "1"}
    begin = time.monotonic()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return time.monotonic() - begin


def main() -> int:
    """Runs the step; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    figures, first = Figures(), attempt(device)
    if first.returncode == 0:
        print(first.stdout)
        figures.note(built=False)
        return 0
    print(f"the libraries do not serve as they are:\n{first.stderr[-1500:]}")
    figures.note(built=True, before=first.stderr.strip().splitlines()[-1:])
    figures.add("build", seconds=build(device))
    second = attempt(device)
    print(second.stdout, second.stderr)
    return second.returncode


if __name__ == "__main__":
    sys.exit(main())
