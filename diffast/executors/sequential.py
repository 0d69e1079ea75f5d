"""`df.sample`: one network call and one fused `combine` a stage, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffast.executors import context
from diffast.executors.bound_run import BoundRun
from diffast.executors.graph_cache import graph_cache
from diffast.executors.results import Progress, Samples
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan


def sample(
    denoiser: Denoiser,
    plan: Plan | None = None,
    shape: Sequence[int] | None = None,
    *,
    calls: int | None = None,
    x: torch.Tensor | None = None,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    noise: str | Callable[[int], torch.Tensor] = "counter",
    device: torch.device | str | None = None,
    clamp: context.Clamp | None = None,
    on_x0: context.OnX0 | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
    throw: bool = True,
    executor: str = "sequential",
    check: bool = True,
) -> Samples:
    """Returns samples of the denoiser's distribution by running the plan.

    Sample b's noise depends on (seed, ids[b]) and the stage alone: it is the same picture in a
    batch of 1 or 1,000, in any order, on any device. The state is float32, float64 if `x` is.

    Args:
        denoiser: the network and what it predicts.
        plan: a solver's matrices, for the denoiser's schedule; None: that of `calls`.
        shape: [B, ...] of the state; not needed with `x`.
        calls: network calls, in place of a plan: the plan is `df.plan(denoiser, calls)`.
        x: the initial state, alpha x0 + sigma eps at the plan's start, [B, ...]; None: the
            package's noise, scaled by sigma. Not written to.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        noise: where fresh noise comes from. "counter": a normal for each (seed, id, stage,
            element). "path": one Brownian path a sample, in the log-SNR, so that pictures change
            little with the number of steps; up to 12 normals for one. A callable is called as
            `noise(stage)` at every stage that draws (-1: before the first call) and returns
            normals [B, ...]: for noise that has to equal another program's.
        device: where to run; default: that of `x`, else the network's.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, info)` with the estimate [B, ...] (after the clamp, if any) and
            an `Info`; what it returns is used instead. Costs one more kernel a stage.
        callback: called after every stage with a `Progress`; a true answer stops the run.
        progress: whether to show a progress bar on stderr.
        throw: whether failed samples raise; otherwise `status` says which failed.
        executor: "sequential": stage by stage. "graph", on CUDA devices: the whole run, network
            included, is one CUDA graph, captured by the first such call and replayed by later ones
            (`df.graph_cache` keeps the graphs). The samples have the same bits. Where the network
            cannot be captured, a warning says why, and the run is sequential.
        check: False: the status is not looked at, so that nothing waits for the device. Failed
            samples then raise no error and hold what was computed; `status` names them. On a
            device, with "counter" noise and ids and conditions that are there, such a call can be
            captured by a CUDA graph of the caller's, after one call outside of it. That graph
            always draws the noise of the seed that it was captured with.

    Raises:
        TypeError: for a plan and calls together, or neither.
        ValueError: for arguments that disagree; the message names the two facts. With "path" also
            for plans that put noise back (churn, restart), and with "path" or a callable for plans
            that draw two normals a stage (Langevin correctors).
        NonFiniteError: at the end of the run, if samples are not finite; its `result` holds the
            others.
    """
    plan = context.plan_of("sample", denoiser, plan, calls)
    context.check_noise("sample", noise, context.FIXED_GRID)
    context.check_executor("sample", executor)
    usual = progress is False and throw is True and check is True
    if not usual or on_x0 is not None or callback is not None:
        context.check_flags(
            "sample", on_x0=on_x0, callback=callback, progress=progress, throw=throw, check=check
        )
    place = context.place_of("sample", denoiser, shape, x, device, seed, ids, clamp, check)
    if check:
        context.warn_of_spread("sample", plan.schedule, plan.start, x, plan.initial)
    if executor == "graph":
        why = "a graph is replayed without Python: leave executor out"
        context.refuse("sample", callback=(callback, why), progress=(progress, why))
        made = graph_cache.sample(denoiser, plan, place, x, noise, on_x0, throw, check)
        if made is not None:
            return made
    run = BoundRun(denoiser, plan, place, on_x0, noise, callback is not None, check)
    done, total = 0, len(run.stages)
    with torch.inference_mode(), context.progress_bar(total, plan.name, "call", progress) as bar:
        run.start(x)
        while done < total and run.batch and not run.lost:
            run.stage(done)
            done += 1
            bar.update()
            if callback is not None and callback(run.progress(done - 1)):
                break
    completed = done == total or not run.batch or run.lost
    evaluations = run.evaluations(done)
    nfe = torch.full((run.batch,), evaluations, dtype=torch.int64, device=run.device)
    found = run.rows(done)
    rows = nfe if found == evaluations else torch.full_like(nfe, found)  # one launch less
    result = Samples(run.made(done, completed), nfe, run.status, completed, network_rows=rows)
    if not check:
        return result
    return result.or_raise("sample", run.ids, throw, run.what_failed, initial=x)
