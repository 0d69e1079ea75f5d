"""The teacher: a fine plan whose samples stand for the exact solution, with its own accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast import grids, solvers
from diffast.plans import Plan
from diffast.tuning.candidates import whole_grid
from diffast.tuning.judge import Judge, samples_of
from diffast.tuning.memo import Memo
from diffast.tuning.pilots import Pilots, ids_of

# On so many pilots the teacher is compared with one of half its steps.
_TRIED = 8
_LEAST, _MOST = 32, 512


def teacher_plan(denoiser: Any, steps: int) -> Plan:
    """Returns a fine deterministic plan, one call a step.

    It is of third order in the log-SNR. Where the log-SNR is infinite at the start it goes evenly
    in sigma / (alpha + sigma), with Adams' method of third order in that variable.
    """
    schedule = denoiser.schedule
    with np.errstate(divide="ignore"):
        finite = np.isfinite(schedule.lam(schedule.t_start))
    if finite:
        grid = whole_grid(denoiser, grids.karras(schedule, steps))
        return solvers.dpmpp_3m(schedule, grid)
    grid = whole_grid(denoiser, grids.uniform_flow(schedule, steps))
    return solvers.adams(schedule, grid, order=3, final="falling")


def find_teacher(
    denoiser: Any, pilots: Pilots, rows: int, tolerance: float, memo: Memo, say: Callable
) -> tuple[Plan, float]:
    """Returns the teacher and its accuracy: the distance to one of half its steps, over the spread.

    Steps are doubled until that is below the tolerance, from 32 to 512 at most.
    """
    ids = ids_of(_TRIED)
    steps = _LEAST
    coarse = _samples(denoiser, pilots, ids, rows, steps // 2, memo)
    while True:
        fine = _samples(denoiser, pilots, ids, rows, steps, memo)
        accuracy = Judge(fine).error(coarse)
        if accuracy <= tolerance or steps >= _MOST:
            break
        steps, coarse = 2 * steps, fine
    if not accuracy <= tolerance:
        say(
            f"the teacher of {steps} steps is {accuracy:.2g} of the spread from one of half as "
            f"many: errors below that mean nothing"
        )
    return teacher_plan(denoiser, steps), accuracy


def _samples(denoiser, pilots, ids, rows, steps, memo):
    plan = teacher_plan(denoiser, steps)
    made = memo.tensor(f"teacher of {steps}", lambda: samples_of(plan, pilots, ids, rows))
    check_finite(made, plan)
    memo(f"calls of the teacher of {steps}", lambda: {"calls": plan.nfe * len(ids)})
    return made


def check_finite(samples: torch.Tensor, plan: Plan) -> None:
    """Raises ValueError if samples [B, ...] of a teacher are not finite."""
    bad = int((~samples.isfinite().reshape(len(samples), -1).all(1)).sum())
    if bad:
        raise ValueError(
            f"tune: {bad} of the teacher's {len(samples)} samples are not finite: the network "
            f"returns no finite numbers along {plan.name} of {plan.nfe} calls"
        )
