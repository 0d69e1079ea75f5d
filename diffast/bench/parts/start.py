"""The part "start": imports, the first sample of a process, and what a plan costs to make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from diffast import grids, schedules, solvers
from diffast.bench import peers
from diffast.bench.parts.steps import LATENT
from diffast.bench.ratios import Timing, interleaved, timed, timing_of
from diffast.bench.settings import Settings
from diffast.bench.table import Section

_RUN = """
schedule = df.schedules.edm()
plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 20))
df.sample(df.Denoiser(lambda x, t: 0.5 * x, schedule, predicts="x0"), plan, shape=(1, 4, 64, 64))
"""
PROGRAMS = {
    "import torch": "import torch",
    "import diffast": "import torch, diffast",
    "import diffast, first sample of 20 steps": f"import torch, diffast as df\n{_RUN}",
    "import diffusers' DPMSolverMultistepScheduler": (
        "import torch\nfrom diffusers import DPMSolverMultistepScheduler"
    ),
    "import torchdiffeq": "import torch, torchdiffeq",
    "import torchsde": "import torch, torchsde",
}
SLOW = tuple(PROGRAMS)[3:]  # left out of a quick report
_PEERS = {
    "import diffusers' DPMSolverMultistepScheduler": "diffusers",
    "import torchdiffeq": "torchdiffeq",
    "import torchsde": "torchsde",
}
COLUMNS = ("what", "s", "s over torch", "spread")
ABOUT = (
    "Whole processes in turns, from start to end, on the CPU. Seconds over torch: less the median "
    "of a process that only imports torch."
)
PLAN_COLUMNS = ("what", "ms", "spread")
PLAN_ABOUT = (
    "What comes before a run: a plan of DPM++ 2M in 20 steps, made, checked and multiplied out; "
    "the drop-in scheduler's and diffusers' `set_timesteps(20)`."
)


def processes_in_turns(
    functions: dict[str, Callable[[], object]], rounds: int
) -> dict[str, Timing]:
    """Returns the timings of whole processes, after one turn that fills the disk's cache."""
    turns = [interleaved(functions, 1) for _ in range(rounds + (rounds > 1))]
    kept = turns[1:] or turns
    return {name: timing_of([turn[name].median for turn in kept]) for name in functions}


def _starting(program: str) -> Callable[[], object]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program]
    return lambda: subprocess.run(command, check=True, env=environment, capture_output=True)


def run(settings: Settings) -> list[Section]:
    """Returns a section of whole processes and one of the set-up of a run."""
    processes = Section("start", "Start-up", ABOUT, COLUMNS)
    wanted = {}
    for name, program in PROGRAMS.items():
        line = peers.missing(_PEERS[name]) if name in _PEERS else None
        if line:
            processes.notes.append(line)
        elif not settings.tiny or name in ("import torch", "import diffast"):
            wanted[name] = _starting(program)
    if settings.quick:
        wanted = {name: wanted[name] for name in wanted if name not in SLOW}
    timings = processes_in_turns(wanted, 1 if settings.tiny else 2 if settings.quick else 7)
    base = timings["import torch"].median
    for name, timing in timings.items():
        row = {"what": name, "s": timing.median, "s over torch": timing.median - base}
        processes.rows.append(row | {"spread": _spread(timing), "rounds": timing.rounds})
    return [processes, _plans(settings)]


def _spread(timing: Timing) -> float | None:
    return timing.spread if timing.rounds > 3 else None  # fewer turns have no quartiles


def _plans(settings: Settings) -> Section:
    section = Section("start: set-up", "Set-up of a run", PLAN_ABOUT, PLAN_COLUMNS)
    schedule = schedules.edm()
    grid = grids.karras(schedule, 20)
    functions: dict[str, Callable[[], object]] = {
        "diffast: plan": lambda: solvers.dpmpp_2m(schedule, grid)
    }
    line = peers.missing("diffusers")
    if line:
        section.notes.append(line)
    else:
        functions |= _scheduler_starts()
    with settings.using(settings.threads[0]):
        timings = timed(functions, settings.budget)
    for name, timing in timings.items():
        row = {"what": name, "ms": timing.median * 1e3, "spread": timing.spread}
        section.rows.append(row | {"rounds": timing.rounds})
    return section


def _scheduler_starts() -> dict[str, Callable[[], object]]:
    from diffast.integrations.diffusers import DiffastScheduler

    theirs = peers.diffusers().DPMSolverMultistepScheduler(**LATENT)
    ours = DiffastScheduler.from_scheduler(theirs)
    return {
        "drop-in: set_timesteps(20), seen before": lambda: ours.set_timesteps(20),
        "diffusers: set_timesteps(20)": lambda: theirs.set_timesteps(20),
    }
