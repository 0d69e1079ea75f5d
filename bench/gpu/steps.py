"""The steps of a check, in the order of their worth."""

import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gpu.machine import ROOT
from gpu.runner import PASSED, Step

BUDGET = 470  # seconds of all steps together
PREBUILT = 10  # seconds of the step `libraries` where nothing has to be built
GPU_TESTS = "tests/gpu"
# These files have steps of their own.
APART = ("test_gpu_triton.py", "test_gpu_large.py", "test_gpu_compile.py")


def _python(*arguments) -> list[str]:
    return [sys.executable, *arguments]


def _pytest(workers: int, *arguments) -> list[str]:
    spread = []
    if workers > 1 and find_spec("xdist"):
        spread = ["-n", str(workers), "--dist", "worksteal"]
    return _python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", *spread, *arguments
    )


def sanitizer() -> str | None:
    """Returns the path of compute-sanitizer, None if it is not installed."""
    return shutil.which("compute-sanitizer") or next(
        (str(p) for p in sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None
    )


def _failed(name: str):
    """Returns a reason to skip a step where another step did not pass."""

    def unless(results):
        state = results.get(name, {}).get("state")
        return None if state in (None, PASSED) else f"the step {name} did not pass"

    return unless


def _built(results) -> str | None:
    built = results.get("libraries", {}).get("built")
    return "its time went into the build of the libraries" if built else None


def make_steps(machine: dict, dry_run: bool, slack: float = 1) -> list[Step]:
    """Returns all steps.

    Args:
        machine: what `gpu.machine.machine` returned.
        dry_run: whether the CPU stands in for a GPU.
        slack: factor on all time limits.
    """
    device = "cpu" if dry_run else "cuda"
    workers = 1 if dry_run else max(1, min(8, (machine["cores"] or 1) // 2))
    many = 1 if dry_run else max(1, min(14, (machine["cores"] or 1) - 2))
    backend = {"DIFFAST_BACKEND": "" if dry_run else "cuda"}
    paths = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests" / "helpers")]
    here = {"PYTHONPATH": ":".join(paths), "DIFFAST_TEST_DEVICE": device, **backend}
    # Workers with a thread for each core apiece wait for one another: the reference is on the CPU.
    shared = {"OMP_NUM_THREADS": "1"}
    triton = here | {"DIFFAST_BACKEND": "" if dry_run else "triton"}
    own = [argument for name in APART for argument in ("--ignore", f"{GPU_TESTS}/{name}")]
    sanitize = _python(f"{GPU_TESTS}/sanitize.py", "--device", device)
    checker = sanitizer()
    loaded = _failed("libraries")
    uncached = here | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def checked(tool):
        """A sanitizer's step; in a dry run the same script alone."""
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        wrap = [] if dry_run else [checker or "compute-sanitizer", *options]
        return [*wrap, *sanitize, "--sizes", "3,7,130" if tool == "racecheck" else "1,3,7,131,1029"]

    def no_checker(results):
        missing = None if dry_run or checker else "compute-sanitizer is not installed"
        return missing or loaded(results)

    steps = [
        Step(
            "libraries",
            70,
            "the kernels load, or are built for this card",
            _python("-m", "gpu.libraries", "--device", device),
            here | {"DIFFAST_BACKEND": ""},
        ),
        Step(
            "ops",
            25,
            "every op against the reference; bandwidth of a copy",
            [*sanitize, "--sizes", "7,1028", "--copy"],
            here,
            unless=loaded,
        ),
        Step(
            "tests",
            100,
            "tests/gpu with the loaded kernels",
            _pytest(many, *own, "-k", "not triton", GPU_TESTS),
            here | shared,
            unless=loaded,
        ),
        Step(
            "bench",
            45,
            "ops against a copy, eager torch and torch.randn",
            _python("-m", "gpu.measure_ops", "--device", device),
            here,
            unless=loaded,
        ),
        Step(
            "executors",
            50,
            "host time and kernels of steps, rounds and whole runs",
            _python("-m", "gpu.measure_runs", "--device", device),
            here,
            unless=loaded,
        ),
        Step(
            "heavy",
            45,
            "more than 2^31 elements; torch.compile",
            _pytest(min(4, workers), *(f"{GPU_TESTS}/{name}" for name in APART[1:])),
            here,
            unless=loaded,
        ),
        Step(
            "memcheck", 40, "memory of every op", checked("memcheck"), uncached, unless=no_checker
        ),
        Step(
            "racecheck",
            35,
            "shared memory of every op",
            checked("racecheck"),
            uncached,
            unless=no_checker,
        ),
        Step(
            "triton",
            80,
            "a few Triton variants of every op; a run with Triton alone",
            _pytest(many, f"{GPU_TESTS}/test_gpu_triton.py"),
            triton | shared,
            unless=_built,
        ),
        Step(
            "triton-bench",
            30,
            "the Triton kernels against a copy",
            _python("-m", "gpu.measure_ops", "--device", device, "--targets-only"),
            triton,
            unless=_built,
        ),
        Step(
            "triton-all",
            400,
            "all 1,500 Triton variants",
            _pytest(many, "--triton-variants", "all", "-k", "triton", GPU_TESTS),
            triton,
            default=False,
        ),
        Step(
            "emulated",
            300,
            "the CUDA sources run by the CPU, thread by thread",
            _pytest(1, *(f"tests/ops/test_cuda_emulated{n}.py" for n in ("", "_error", "_sweep"))),
            here | {"DIFFAST_BACKEND": ""},
            default=False,
        ),
    ]
    return [replace(step, seconds=step.seconds * slack, folder=ROOT) for step in steps]


def worst_case(steps: list[Step]) -> float:
    """Returns the seconds of all limits: with a build, or without one and with Triton's steps."""
    limits = {step.name: step.seconds for step in steps}
    triton = sum(limits.pop(name, 0) for name in ("triton", "triton-bench"))
    build = limits.pop("libraries", 0)
    return sum(limits.values()) + max(build, triton + min(build, PREBUILT))
