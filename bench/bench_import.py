"""The time of `import diffast` in a program that also imports torch.

Processes in turn: one imports torch, the next torch and diffast, the next torch and everything
that a sampling program touches. Floor: reading some twenty small modules and one 400 KB library,
about 20 ms. Target: at most 0.3 s over torch, everything included.
"""

import os
import subprocess
import sys

PROGRAMS = {
    "torch": "import torch",
    "diffast": "import torch, diffast",
    "everything": (
        "import torch, diffast; "
        "diffast.sample, diffast.Denoiser, diffast.solvers, diffast.grids, diffast.ops"
    ),
}


def starting(program):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    return lambda: subprocess.run(command, check=True, env=environment)


def test_import(benchmark, measure, report):
    """Target: `import diffast` and all it loads on use, at most 0.3 s over `import torch`."""
    functions = {name: starting(program) for name, program in PROGRAMS.items()}
    timings = measure(functions, rounds=7)
    benchmark.pedantic(functions["diffast"], rounds=1, iterations=1)
    for name in ("diffast", "everything"):
        over = timings[name].median - timings["torch"].median
        report(
            f"import {name} over torch",
            {key: timings[key] for key in ("torch", name)},
            [("s over torch", "<=", 0.3)],
            **{"s over torch": over, "us": over * 1e6},
        )
