"""Parallel in time: all stages of a plan at once, in a few rounds of one network call each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffast import ops
from diffast.denoiser import Denoiser
from diffast.parallel_run import Round, Run
from diffast.picard import METHODS
from diffast.plan import Plan
from diffast.row_network import RowNetwork
from diffast.sampler import ids_of, limits_of, progress_bar, state_like
from diffast.strides import Barriers, FinalError, PerStep
from diffast.walks import tables_of
from diffast.windows import Windows


@dataclass(frozen=True)
class ParallelSamples:
    """What a parallel run returns."""

    x: torch.Tensor
    nfe: torch.Tensor
    rounds: int
    history: tuple[Round, ...] = ()
    rows: int = 0
    batch_difference: float = 0.0


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
    sweeps: int | None = None,
    static: bool = False,
    seed: int = 0,
    ids=None,
    noise: torch.Tensor | None = None,
    device=None,
    clamp=None,
    progress: bool = False,
) -> ParallelSamples:
    """Returns samples."""
    shape, device, dtype = state_like(denoiser, shape, noise, device)
    seed = ops.fold_seed(seed)
    ids = ids_of(ids, shape[0], device)
    limits = limits_of(clamp)
    tables = tables_of(plan, denoiser, bool(limits))
    network = RowNetwork(
        denoiser, plan.times, tables.outputs, shape[0], device, dtype, batch_size, None
    )
    window = plan.stages if window is None else window
    run = Run(METHODS[method], plan, tables, network, ids, seed, shape, dtype, device, limits)
    run.static = static
    with (
        torch.inference_mode(),
        progress_bar(shape[0] * plan.stages, plan.name, "stage", progress) as bar,
    ):
        _start(run, plan, noise)
        windows = Windows(shape[0], plan.stages, window, window * shape[0])
        rule = _rule(method, plan, tables, tol, sweeps)
        run.open(windows)
        run.fill(rule.limits(windows.start), None, None)
        run.x, run.other = run.other, run.x
        while windows.running.size:
            bar.update(int(run.round(rule).sum()))
    x = run.states[shape[0] :, 0].clone()
    return ParallelSamples(
        x,
        torch.from_numpy(run.calls),
        len(run.rounds),
        tuple(run.rounds),
        network.rows_called,
        run.batch_difference,
    )


def _rule(method, plan, tables, tol, sweeps):
    if method == "paradigms":
        sigma = plan.schedule.sigma(np.append(plan.times, plan.end))
        alpha = plan.schedule.alpha(np.append(plan.times, plan.end))
        kept = (alpha[:-1] / alpha[1:]) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = (sigma[1:] / sigma[:-1]) ** 2 * (1 - kept)
        noise = np.append(np.sqrt(np.maximum(variance, 0)), 0.0)
        return PerStep(tol, tables.gains, noise)
    if method == "piadm":
        return Barriers(tol, tables.gains, plan.blocks, sweeps)
    return FinalError(tol, tables.gains)


def _start(run, plan, noise) -> None:
    """Puts the initial states where the samples' windows start."""
    state = torch.empty((run.samples, *run.elements), dtype=run.dtype, device=run.device)
    if noise is None:
        scale = float(plan.schedule.sigma(plan.start))
        ops.normal_out(run.ids, run.seed, ops.INITIAL_NOISE, scale, state)
    else:
        state.copy_(noise)
    keep, fresh = plan.opening.tolist()
    if (keep, fresh) != (1.0, 0.0):
        ops.combine_out(
            [state],
            [keep],
            [state],
            None,
            ops.OPENING_NOISE,
            [fresh] if fresh else [],
            run.seed,
            run.ids,
        )
    run.states[: run.samples, 0] = state
    run.states[: run.samples, 1] = state
