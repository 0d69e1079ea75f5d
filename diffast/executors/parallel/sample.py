"""Parallel in time: all stages of a plan at once, in a few rounds of one network call each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import (
    check_schedules,
    ids_of,
    limits_of,
    progress_bar,
    put_initial,
    put_opening,
    state_like,
)
from diffast.executors.parallel.batched_network import RowNetwork
from diffast.executors.parallel.convergence import Barriers, FinalError, PerStep
from diffast.executors.parallel.distributed import Ranks
from diffast.executors.parallel.methods import METHODS
from diffast.executors.parallel.rounds import Round, Run
from diffast.executors.parallel.speculative import SpeculativeRun, check_plan
from diffast.executors.parallel.windows import Windows
from diffast.lowering.sweep_tables import Tables, tables_of
from diffast.model.denoiser import Denoiser
from diffast.plan import Plan


@dataclass(frozen=True)
class ParallelSamples:
    """What a parallel run returns.

    Attributes:
        x: the samples [B, ...], of the state's dtype.
        nfe: network evaluations of each sample, [B] int64. Those of rows that only fill up a batch
            are not counted; a guided call of 2 rows counts once.
        rounds: network rounds, one after another.
        rows: rows that the network was called on in all rounds, those that fill up included.
        history: what each round came to, see `Round`.
        batch_difference: by how much the network's answer to one and the same input differed
            between two places of its batch, relative to the largest number; None: not looked at,
            since no row was free. Where it is not 0, tol=0 is the sequential result no closer than
            that.
        acceptance: of "speculative": share of the steps whose guess was taken as it was.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    rounds: int
    rows: int
    history: tuple[Round, ...]
    batch_difference: float | None
    acceptance: float | None = None


def sample_parallel(
    denoiser: Denoiser,
    plan: Plan,
    shape: Sequence[int] | None = None,
    *,
    method: str = "secant",
    window: int | None = None,
    tol: float = 1e-2,
    memory_limit: int | None = None,
    batch_size: int | None = None,
    static: bool = False,
    sweeps: int | None = None,
    chunk: int = 0,
    ranks: bool | object = False,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    x: torch.Tensor | None = None,
    device: torch.device | str | None = None,
    clamp: tuple[float, float] | None = None,
    progress: bool = False,
) -> ParallelSamples:
    """Returns what `sample` returns for the same arguments, up to `tol`, in fewer network rounds.

    Each round calls the network on many stages of every sample at once, at points that are guesses
    first, and walks the plan through the answers (Picard iteration; Shih et al. 2023, Chen et al.
    2024). It pays where a large batch costs the network less than as many small ones.

    Args:
        denoiser: the network and what it predicts.
        plan: any plan of `df.solvers`.
        shape: [B, ...] of the state; not needed with `x`.
        method: "secant" (slopes of the network measured from the last two rounds), "prior" (those
            it would have for N(0, 1) data), "anderson" (three rounds of "prior" mixed), "paradigms"
            (ParaDiGMS: its slope, its stop rule, its stride), "piadm" (noise held; swept block by
            block, for plans with blocks) or "speculative" (for one-step stochastic plans: guesses
            are taken or reflected so that samples have the plan's law exactly, though they are
            other samples than the sequential ones; tol has no say).
        window: stages of a sample at a time, at most; None: all.
        tol: error of a sample, relative to its root mean square and to the sequential result. For
            "paradigms" its own: change per step relative to the noise DDPM adds there. 0: exactly
            the sequential result, to the bit if the network's answer does not depend on the batch.
        memory_limit: bytes that the run's own tensors may take, its network's outputs included and
            its inner ones not; rows are as many as fit.
        batch_size: rows of one network call; a round then is as many calls as it takes. None: one.
        static: keeps the number of rows, where otherwise it is halved whenever half is enough.
        sweeps: rounds that a block gets at most ("piadm").
        chunk: stages that a thread of a GPU walks in one go, other threads the others ("sweep").
            0: all. For few and small samples; changes the last bits.
        ranks: True or a process group of torch.distributed: every rank makes the same call, the
            network runs on its share of the rows and all get all samples. With a `batch_size` the
            network's calls have the shapes they have in one process, and the samples its bits.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        x: the initial state, as for `sample`.
        device: where to run; default: that of `x`, else the network's.
        clamp: (low, high) for the x0 estimate.
        progress: whether to show a bar of settled stages on stderr.

    Raises:
        ValueError: for arguments that disagree; the message names the two facts.
        FloatingPointError: if what follows from settled points alone is not finite.
        RuntimeError: if a rank dies, on every other one, within its group's timeout.
    """
    check_schedules("sample_parallel", plan, denoiser)
    _check_numbers(method, plan, window, tol, memory_limit, batch_size, sweeps)
    shape, device, dtype = state_like("sample_parallel", denoiser, shape, x, device)
    ids = ids_of("sample_parallel", ids, shape[0], device)
    limits = limits_of("sample_parallel", clamp)
    tables = tables_of(plan, denoiser, bool(limits))
    share = None if ranks is False else Ranks(None if ranks is True else ranks)
    network = RowNetwork(
        denoiser, plan.call_times, tables.outputs, shape[0], device, dtype, batch_size, share
    )
    chosen = METHODS[method]
    seed = ops.fold_seed(seed)
    if chosen.exact:
        check_plan(plan, tables, limits)
    kind = SpeculativeRun if chosen.exact else Run
    run = kind(chosen, plan, tables, network, ids, seed, shape, dtype, device, limits)
    run.static, run.chunk = static, chunk if tables.simple and not limits else 0
    rule = _rule(method, plan, tables, tol, sweeps)
    windows = _windows(run, window, memory_limit, batch_size)
    total = shape[0] * plan.nfe
    with torch.inference_mode(), progress_bar(total, plan.name, "stage", progress) as bar:
        _start(run, plan, x)
        run.open(windows)
        run.begin(rule)
        while windows.running.size and run.numel:
            bar.update(int(run.round(rule).sum()))
    made = run.states[: shape[0], 0] if not run.numel else run.states[shape[0] :, 0]
    return ParallelSamples(
        made.clone(),
        torch.from_numpy(run.calls).to(device),
        len(run.rounds),
        network.rows_called,
        tuple(run.rounds),
        run.batch_difference,
        run.accepted / max(run.tested, 1) if chosen.exact else None,
    )


def _check_numbers(method, plan, window, tol, memory_limit, batch_size, sweeps) -> None:
    if method not in METHODS:
        raise ValueError(
            f"sample_parallel: method is {method!r} but the known methods are {', '.join(METHODS)}"
        )
    if window is not None and not 1 <= window <= plan.nfe:
        raise ValueError(
            f"sample_parallel: window is {window} but plan {plan.name} has {plan.nfe} stages"
        )
    if not (math.isfinite(tol) and tol >= 0.0):
        raise ValueError(f"sample_parallel: tol is {tol} but must be finite and not negative")
    for name, value in (
        ("memory_limit", memory_limit),
        ("batch_size", batch_size),
        ("sweeps", sweeps),
    ):
        if value is not None and value < 1:
            raise ValueError(f"sample_parallel: {name} is {value} but must be positive")
    if METHODS[method].barrier:
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
    elif sweeps is not None:
        raise ValueError(
            f"sample_parallel: sweeps is {sweeps} but method {method!r} has no blocks to sweep"
        )


def _windows(run: Run, window, memory_limit, batch_size) -> Windows:
    stages = run.plan.nfe
    window = stages if window is None else window
    size = max(1, window * run.samples)
    if memory_limit is not None:
        row = run.numel * run.states.element_size() * run.planes
        left = memory_limit - run.states.numel() * run.states.element_size()
        if row and left < row:
            raise ValueError(
                f"sample_parallel: memory_limit is {memory_limit} bytes, but the states of "
                f"{run.samples} samples and one row take {memory_limit - left + row}"
            )
        size = min(size, left // row) if row else size
        if run.method.together:  # one window for all
            size = max(1, size // run.samples) * run.samples
    if batch_size is not None:
        size = max(1, size // batch_size) * batch_size if memory_limit else size
        size = -(-size // batch_size) * batch_size
    return Windows(run.samples, stages, window, size)


def _rule(method: str, plan: Plan, tables: Tables, tol: float, sweeps: int | None):
    if METHODS[method].together:
        return PerStep(tol, tables.gains, _step_noise(plan))
    if METHODS[method].barrier:
        return Barriers(tol, tables.gains, plan.blocks, sweeps)
    return FinalError(tol, tables.gains)


def _step_noise(plan: Plan) -> np.ndarray:
    """Returns the deviation of DDPM's posterior at the step that begins at each point, [S + 1]."""
    times = np.append(plan.call_times, plan.end)
    alpha, sigma = plan.schedule.alpha(times), plan.schedule.sigma(times)
    with np.errstate(divide="ignore", invalid="ignore"):
        fresh = 1.0 - (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** 2
    fresh = sigma[1:] * np.sqrt(np.maximum(fresh, 0.0))
    return np.append(np.where(np.isfinite(fresh), fresh, 0.0), 0.0)


def _start(run: Run, plan: Plan, x: torch.Tensor | None) -> None:
    """Puts the initial states where the samples' windows start."""
    state = torch.empty((run.samples, *run.elements), dtype=run.dtype, device=run.device)
    put_initial(state, x, float(plan.schedule.sigma(plan.start)), run.seed, run.ids)
    put_opening(state, run.tables.opening, run.seed, run.ids)
    run.states[: run.samples, 0] = state
    run.states[: run.samples, 1] = state
