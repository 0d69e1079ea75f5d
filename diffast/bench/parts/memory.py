"""The part "memory": the most memory that a run holds, in units of the state.

Torch's allocators count. On the CPU, torch's profiler writes down each allocation and each release.
The few pages that kernels take by themselves are not counted.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import torch

import diffast as df
from diffast import grids, schedules, solvers
from diffast.bench import peers
from diffast.bench.parts.steps import LATENT
from diffast.bench.settings import Settings
from diffast.bench.table import Section

LEVEL = 80.0  # sigma at the start of `edm()`
COLUMNS = ("tool", "run", "peak in states")
ABOUT = (
    "The most memory that a run of {steps} steps holds beside what was there before, over the "
    "bytes of the state ({size}). The initial state and the network's output, which lie there "
    "before, are not counted; the result is."
)
STEPS = 6


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keeps stderr from the profiler, which prints two lines each time whatever it is told."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Returns the most bytes that torch's allocator held during a call, less those before it."""
    gc.collect()  # what earlier runs have left in cycles would be freed during this one
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _without_stderr(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profiler,
    ):
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    moves = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    held = list(accumulate((size for _, size in sorted(moves, key=itemgetter(0))), initial=0))
    return max(held)


def run(settings: Settings) -> list[Section]:
    """Returns one section: a row for each kind of run."""
    elements = 2**10 if settings.tiny else 2**20
    about = ABOUT.format(steps=STEPS, size=f"{elements * 4 // 1024:,} KiB")
    section = Section("memory", "Memory", about, COLUMNS)
    refusal = settings.refusal("combine", "combine_error", "accept", "sweep", "gram")
    if refusal:
        section.rows.append({"tool": "all", "refused": refusal})
        return [section]
    with settings.using(settings.threads[0]), torch.no_grad():
        x = LEVEL * torch.randn(1, elements, device=settings.device)
        for name in ("diffusers", "k_diffusion"):
            line = peers.missing(name)
            section.notes.extend([line] if line else [])
        for *_, function in _cases(LEVEL * torch.randn(1, 64, device=settings.device)):
            function()  # loads what is loaded on first use, which is no part of a run's memory
        for tool, kind, function in list(_cases(x))[:: 6 if settings.tiny else 1]:
            taken = peak_bytes(function, settings.device) / (x.numel() * 4)
            row = {"tool": tool, "run": kind, "peak in states": taken}
            section.rows.append(row | settings.marks())
    return [section]


def _cases(x: torch.Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    yield from _ours(x)
    for name, make in (("diffusers", _diffusers), ("k_diffusion", _k_diffusion)):
        if not peers.missing(name):
            yield from make(x)


def _ours(x: torch.Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    schedule = schedules.edm()
    output = torch.randn_like(x).repeat(STEPS, 1)  # one row for each stage of the window

    def stop(progress) -> bool:  # later rounds hold no more than the first ones
        return progress.stage + 1 >= STEPS

    def denoiser(guided: bool = False) -> df.Denoiser:
        kind = torch.zeros(1, device=x.device)
        given = {"conditions": {"kind": kind}, "unconditional": {"kind": kind}, "guidance": 2.0}
        network = lambda x, t, **_: output[: len(x)]  # noqa: E731
        return df.Denoiser(network, schedule, predicts="x0", **(given if guided else {}))

    def sample(solver: str, guided: bool = False, **options):
        plan = solvers.get(solver)(schedule, grids.karras(schedule, STEPS), **options)
        return lambda: df.sample(denoiser(guided), plan, x=x)

    for solver in ("euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2m_sde"):
        yield "diffast", solver, sample(solver)
    yield "diffast", "unipc, order 3", sample("unipc", order=3)
    yield "diffast", "dpmpp_2m, guided", sample("dpmpp_2m", guided=True)
    for method in ("dpm_23", "pec"):

        def adaptive(method=method):
            return df.sample_adaptive(denoiser(), method, x=x, callback=stop)

        yield "diffast", f"{method}, adaptive", adaptive
    plan = solvers.dpmpp_2m(schedule, grids.karras(schedule, STEPS))
    of_window = f"dpmpp_2m, parallel, window {STEPS}"
    yield "diffast", of_window, lambda: df.sample_parallel(denoiser(), plan, x=x, window=STEPS)


def _diffusers(x: torch.Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    from diffast.integrations.diffusers import DiffastScheduler

    output = torch.randn_like(x)

    def loop(scheduler):
        scheduler.set_timesteps(STEPS, device=x.device)
        scheduler.set_begin_index(0)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(output, t, state, return_dict=False)[0]
        return state

    for name, kind in (("DPM++ 2M", "DPMSolverMultistep"), ("UniPC-2", "UniPCMultistep")):
        theirs = getattr(peers.diffusers(), f"{kind}Scheduler")(**LATENT)
        ours = DiffastScheduler.from_scheduler(theirs)
        yield "diffast, drop-in", name, lambda ours=ours: loop(ours)
        yield "diffusers", name, lambda theirs=theirs: loop(theirs)


def _k_diffusion(x: torch.Tensor) -> Iterator[tuple[str, str, Callable[[], object]]]:
    sampling = peers.k_diffusion_sampling()
    output = torch.randn_like(x)
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 14.6, device=x.device)
    for name in ("sample_heun", "sample_dpmpp_2m"):
        function = getattr(sampling, name)

        def run(function=function):
            return function(lambda x, sigma: output, x, sigmas, disable=True)

        yield "k-diffusion", name.removeprefix("sample_"), run
