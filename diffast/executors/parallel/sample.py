"""`df.sample_parallel`: all stages of a plan at once, in a few rounds of one network call each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast.executors import context
from diffast.executors.device import sent
from diffast.executors.initial import Origin, origin_of, put_start
from diffast.executors.parallel.batched_network import BatchedNetwork
from diffast.executors.parallel.changes import ByChange
from diffast.executors.parallel.convergence import convergence_of
from diffast.executors.parallel.coupling import ByCoupling, check_plan
from diffast.executors.parallel.distributed import DistributedChunks
from diffast.executors.parallel.guided_network import GuidedNetwork
from diffast.executors.parallel.methods import METHODS, Method
from diffast.executors.parallel.rounds import ParallelRun, Round
from diffast.executors.parallel.windows import Windows
from diffast.executors.results import Progress, Result
from diffast.executors.ruled import ruled
from diffast.lowering.sweep_tables import Tables, tables_of
from diffast.model.denoiser import Denoiser
from diffast.ops.schema import MAX_ENTRIES
from diffast.plans import Plan

_WHO = "sample_parallel"
_ONE_KERNEL = "a stage's noise is drawn within one kernel, in every round anew: "

# Why a source of noise cannot be had here.
_SOURCES = {
    "path": _ONE_KERNEL + "use 'counter', or df.sample",
    "callable": _ONE_KERNEL + "use 'counter', or df.sample",
    "bridge": "nothing is rejected on a fixed grid, which a bridge is for: use 'counter'",
    "redraw": "nothing is rejected on a fixed grid: use 'counter'",
}
_NO_HOOK = "the x0 estimates live within one kernel: use clamp, or df.sample"


@dataclass(frozen=True)
class ParallelSamples(Result):
    """What `df.sample_parallel` returns: a `Result`.

    After an interruption x holds the states that are settled, each at a time of its own. `nfe` does
    not count rows that only fill up a batch.

    Attributes:
        rounds: network rounds, one after another.
        rows: rows that the network was called on in all rounds, those that fill up included.
        history: what each round did, see `Round`.
        batch_difference: by how much the network's answers to one input differed between two
            places of its batch, relative to the largest number; None: not compared, since no row
            was free. Where it is not 0, the result with tol=0 differs from the sequential one by
            about as much.
        acceptance: of "speculative": share of the steps whose guess was taken as it was.
    """

    rounds: int
    rows: int
    history: tuple[Round, ...]
    batch_difference: float | None
    acceptance: float | None = None


def sample_parallel(
    denoiser: Denoiser,
    plan: Plan | None = None,
    shape: Sequence[int] | None = None,
    *,
    calls: int | None = None,
    method: str = "secant",
    window: int | None = None,
    tol: float = 1e-2,
    memory_limit: int | None = None,
    batch_size: int | None = None,
    static: bool = False,
    sweeps: int | None = None,
    ranks: Any = False,
    x: torch.Tensor | None = None,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    noise: str = "counter",
    device: torch.device | str | None = None,
    clamp: context.Clamp | None = None,
    on_x0: None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
    throw: bool = True,
    executor: str = "sequential",
) -> ParallelSamples:
    """Returns what `sample` returns for the same arguments, up to `tol`, in fewer network rounds.

    Each round calls the network on many stages of every sample at once, first at guessed points,
    and then sweeps through the plan with its outputs (Picard iteration; Shih et al. 2023, Chen et
    al. 2024). That pays where one large batch costs the network less than many small ones.

    Guidance terms (`Denoiser(guides=)`) are added to the network's outputs: their samples are those
    of `sample` up to rounding, also with tol=0.

    Args:
        denoiser: the network and what it predicts.
        plan: any plan of `df.solvers`, for the denoiser's schedule; None: that of `calls`.
        shape: [B, ...] of the state; not needed with `x`.
        calls: network calls, in place of a plan: the plan is `df.plan(denoiser, calls)`.
        method: "secant" (slopes of the network measured from the last two rounds), "prior" (those
            it would have for N(0, 1) data), "anderson" (three rounds of "prior" mixed), "paradigms"
            (ParaDiGMS: its slope, its stop rule, all samples together), "piadm" (noise held; block
            by block, for plans with blocks) or "speculative" (for one-step stochastic plans:
            guesses are taken or reflected so that samples have the plan's law exactly. They are
            other samples than the sequential ones, and tol is not used).
        window: stages of a sample at a time, at most; None: all.
        tol: error of a sample, relative to its root mean square and to the sequential result. For
            "paradigms": change of a point relative to the noise that DDPM adds there. 0: exactly
            the sequential result, to the bit if the network's answer does not depend on the batch.
        memory_limit: bytes that the run's own tensors may take, with the network's outputs and
            without what the network needs inside. Rows are as many as fit.
        batch_size: rows of one network call; a round is then as many calls as it takes. None: one.
        static: keeps the number of rows. Otherwise it is halved whenever half is enough.
        sweeps: most rounds of a block ("piadm").
        ranks: True or a process group of torch.distributed: every rank makes the same call, the
            network runs on its share of the rows, and all get all samples. With a `batch_size` the
            network's calls have the shapes they have in one process, and the samples its bits.
        x: the initial state, as for `sample`. Not written to.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        noise: "counter", see `sample`; other sources cannot be had here.
        device: where to run; default: that of `x`, else the network's.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: cannot be had here.
        callback: called after every round with a `Progress`: `stage` is the number of the round,
            `x` the settled states and `time` [B] their model times. A true answer stops the run.
        progress: whether to show a bar of settled stages on stderr.
        throw: whether failed samples raise; otherwise `status` says which failed.
        executor: "sequential": kernel by kernel. "graph", on CUDA devices: the network's calls are
            replays of CUDA graphs, captured in every run after the first rounds, with the same
            bits; the number of rows is kept, as by `static`. Where the network cannot be captured,
            a warning says why.

    Raises:
        TypeError: for a plan and calls together, or neither.
        ValueError: for arguments that disagree; the message names the two facts.
        NonFiniteError: at the end of the run, if settled states are not finite for some samples;
            its `result` holds the others.
        RuntimeError: if a rank dies, on every other one, within its group's timeout.
    """
    plan = context.plan_of(_WHO, denoiser, plan, calls)
    context.check_own_times(_WHO, denoiser)
    denoiser = ruled(_WHO, denoiser)
    context.check_noise(_WHO, noise, _SOURCES)
    context.refuse(_WHO, on_x0=(on_x0, _NO_HOOK))
    context.check_flags(_WHO, callback=callback, progress=progress, static=static, throw=throw)
    context.check_executor(_WHO, executor)
    if executor == "graph" and ranks is not False:
        raise ValueError(
            f"{_WHO}: executor is 'graph' and ranks are given, but processes talk to one another "
            "within a call, and a graph cannot"
        )
    chosen = _method(method)
    tol = arguments.number(
        _WHO, "tol", tol, "be finite and not negative", lambda n: 0 <= n < math.inf
    )
    window = _count("window", window, plan.nfe, f"{plan.name} has {plan.nfe} stages")
    memory_limit, batch_size, sweeps = (
        _count(*pair)
        for pair in (
            ("memory_limit", memory_limit),
            ("batch_size", batch_size),
            ("sweeps", sweeps),
        )
    )
    _check_blocks(method, plan, window, sweeps)
    place = context.place_of(_WHO, denoiser, shape, x, device, seed, ids, clamp)
    context.warn_of_spread(_WHO, plan.schedule, plan.start, x, plan.initial)
    samples = place.shape[0]
    tables = tables_of(plan, denoiser, bool(place.limits))
    if tables.entries > MAX_ENTRIES:
        raise ValueError(
            f"{_WHO}: plan {plan.name} weighs the estimates of {tables.entries} calls before, but "
            f"a sweep carries those of {MAX_ENTRIES}"
        )
    if chosen.exact:
        check_plan(plan, tables, place.limits)
    chunks = None if ranks is False else DistributedChunks(None if ranks is True else ranks)
    network = _network(denoiser, plan, tables, place, batch_size, chunks)
    graphs = executor == "graph"
    run = ParallelRun(chosen, plan, tables, network, place, static or graphs, graphs)
    convergence = convergence_of(chosen, plan, tables.gains, tol, sweeps)
    size = _pool_size(run, window, memory_limit, batch_size)
    windows = Windows(samples, plan.nfe, window or plan.nfe, size, convergence.ends)
    rule = ByCoupling(run, size) if chosen.exact else ByChange(run, convergence, size)
    total = samples * plan.nfe
    with torch.inference_mode(), context.progress_bar(total, plan.name, "stage", progress) as bar:
        _start(run, x, origin_of(plan, denoiser.conditions))
        run.open(windows, rule)
        while windows.running.size and run.numel:
            bar.update(run.round())
            if callback is not None and callback(run.progress()):
                break
    acceptance = rule.accepted / max(rule.tested, 1) if isinstance(rule, ByCoupling) else None
    return _result(run, acceptance, throw, x)


def _network(
    denoiser: Denoiser, plan: Plan, tables: Tables, place: context.Place, batch_size, chunks
) -> BatchedNetwork:
    """Returns the network on rows, with the gradients of guidance terms if there are any."""
    if not denoiser.guides:
        return BatchedNetwork(denoiser, plan.call_times, tables.outputs, place, batch_size, chunks)
    if place.limits:
        raise ValueError(
            f"{_WHO}: clamp is given and the denoiser has guidance terms, whose gradients are "
            "added to the clamped estimate, but a sweep clamps the whole: use df.sample"
        )
    return GuidedNetwork(denoiser, plan.call_times, tables, place, batch_size, chunks)


def _method(name: str) -> Method:
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"{_WHO}: method is {arguments.shown(name)} but the known methods are "
            f"{', '.join(METHODS)}"
        )
    return METHODS[name]


def _count(name: str, value: Any, most: int | None = None, why: str = "") -> int | None:
    """Returns a number of things, or None where it is not given."""
    if value is None:
        return None
    count = arguments.whole(_WHO, name, value, 1 if most is None else -(1 << 62))
    if most is not None and not 1 <= count <= most:
        raise ValueError(f"{_WHO}: {name} is {count} but plan {why}")
    return count


def _check_blocks(method: str, plan: Plan, window: int | None, sweeps: int | None) -> None:
    if not METHODS[method].blocks:
        if sweeps is not None:
            raise ValueError(
                f"sample_parallel: sweeps is {sweeps} but method {method!r} has no blocks to sweep"
            )
        return
    if plan.blocks is None:
        raise ValueError(
            f"sample_parallel: method {method!r} sweeps block by block, but plan {plan.name} "
            "has no blocks"
        )
    longest = int(np.diff([*plan.blocks, plan.nfe]).max())
    if window is not None and window < longest:
        raise ValueError(
            f"sample_parallel: window is {window} but the longest block of plan {plan.name} "
            f"has {longest} stages"
        )


def _pool_size(
    run: ParallelRun, window: int | None, memory_limit: int | None, batch_size: int | None
) -> int:
    """Returns how many rows the run has; raises ValueError if the memory limit is below one."""
    size = max(1, (window or run.plan.nfe) * run.samples)
    if memory_limit is not None:
        row = run.numel * run.states.element_size() * run.planes
        left = memory_limit - run.states.numel() * run.states.element_size()
        if row and left < row:
            raise ValueError(
                f"sample_parallel: memory_limit is {memory_limit} bytes, but the states of "
                f"{run.samples} samples and one row take {memory_limit - left + row}"
            )
        size = min(size, left // row) if row else size
        if run.method.together:  # all windows have one length
            size = max(1, size // run.samples) * run.samples
    if batch_size is not None:
        size = max(1, size // batch_size) * batch_size if memory_limit else size
        size = -(-size // batch_size) * batch_size
    return size


def _start(run: ParallelRun, x: torch.Tensor | None, origin: Origin) -> None:
    """Puts the initial states where the samples' windows start."""
    state = run.place.empty()
    put_start(_WHO, state, x, origin, run.place)
    context.put_opening(state, run.tables.opening, run.place)
    run.states[: run.samples, :2] = state[:, None]


def _result(
    run: ParallelRun, acceptance: float | None, throw: bool, x: torch.Tensor | None
) -> ParallelSamples:
    calls, status = sent(run.device, run.calls, run.status)
    result = ParallelSamples(
        run.settled_states(),
        calls,
        status,
        not run.numel or not run.windows.running.size,
        len(run.rounds),
        run.network.rows_called,
        tuple(run.rounds),
        run.batch_difference,
        acceptance,
        network_rows=calls
        * len(run.tables.outputs)
        * getattr(run.network.denoiser.network, "branches", 1),
    )

    def what(b: int, stage: int) -> str:
        time = run.plan.call_times[stage]
        return f"{run.reasons[b]} is not finite at stage {stage} (t = {time:g})"

    return result.or_raise(_WHO, run.ids, throw, what, initial=x, status=run.status)
