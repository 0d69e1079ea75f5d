"""The model times that a stepper tells: of each row of its table, in the dtype of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffast.lowering.program import Program
from diffast.model.times import time_dtype, told_times
from diffast.plans import Plan


class StepTimes:
    """The times of every stage of every plan, each plan's last one twice: at its end.

    Attributes:
        exact: float64 numbers.
        single: the same, such that the nearest float32 lies in the plan's schedule's domain.

    Args:
        programs: the lowered plans.
        plans: the plans.
        put: puts a tensor of the host on the device.
    """

    def __init__(self, programs: Sequence[Program], plans: Sequence[Plan], put: Callable):
        """Rounds the times."""
        self.exact: list[float] = []
        self.single: list[float] = []
        for program, plan in zip(programs, plans, strict=True):
            told = [stage.time for stage in program.stages]
            told.append(told[-1])  # a sample at its end repeats its last time, which is known
            self.exact += told
            self.single += told_times(plan.schedule, told, torch.float32)
        moved = self.single != self.exact
        told = torch.tensor(self.single, dtype=torch.float32, device="cpu")
        self._there = put(told) if moved else None  # else the stepper's table will do

    def of(self, row: Any, x: torch.Tensor, table: Callable[[], Any]) -> torch.Tensor:
        """Returns the times [B] of samples x [B, ...] at a row, or each at a row of its own.

        Args:
            row: an int, or [B].
            x: whose dtype the times go with.
            table: returns the stepper's table, whose times are float64.
        """
        dtype = time_dtype(x.dtype)
        if isinstance(row, int):
            told = self.exact if dtype == torch.float64 else self.single
            return torch.full((len(x),), told[row], dtype=dtype, device=x.device)
        if self._there is not None and dtype == torch.float32:
            return self._there[row]
        return table().times[row].to(dtype)
