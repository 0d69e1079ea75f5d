"""`rank`: solvers and grids compared on a network, and `candidates` for a tuner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffast import grids as known_grids
from diffast import solvers as known_solvers
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.tuning.grids.pilot import NAMES, Pilot
from diffast.tuning.grids.polish import polished_levels
from diffast.tuning.grids.reference import Reference

SOLVERS: dict[str, Callable[..., Plan]] = {
    "ddim": known_solvers.ddim,
    "dpmpp_2m": known_solvers.dpmpp_2m,
    "dpmpp_3m": known_solvers.dpmpp_3m,
    "unipc": known_solvers.unipc,
    "deis": known_solvers.deis,
    "heun": known_solvers.heun,
}
"""The solvers that are compared unless others are named."""

STANDARD = ("karras", "uniform_logsnr", "kl_optimal", "uniform_time")
"""The grids of `df.grids` that measured ones are compared with."""

# Which kernel stands for a solver; kernel_2 for those that are not named.
KERNELS = {"ddim": "kernel_1", "euler": "kernel_1", "heun": "kernel_heun"}


@dataclass(frozen=True)
class Ranked:
    """One line of a comparison.

    Attributes:
        error: rms distance of the samples to the flow's end points, over their spread.
        solver, grid: names.
        plan: the plan that was run.
    """

    error: float
    solver: str
    grid: str
    plan: Plan

    @property
    def name(self) -> str:
        """Returns "solver, grid"."""
        return f"{self.solver}, {self.grid}"

    def __str__(self) -> str:
        """Returns a line of a table."""
        return f"{self.error:10.4g}  {self.plan.nfe:3d} calls  {self.name}"


def candidates(
    denoiser: Denoiser,
    pilot: Pilot,
    calls: int,
    *,
    solvers: Sequence[str] | Mapping[str, Callable[..., Plan]] | None = None,
    grids: Sequence[str] | None = None,
) -> list[tuple[str, Plan]]:
    """Returns (name, plan) for solvers on measured grids, each of at most `calls` network calls.

    A grid that cannot be made with so many steps is left out, and a kernel of another solver. What
    is measured is measured once a pilot.

    Args:
        denoiser: the network; the pilot's, or one that differs in its conditions' rows alone.
        pilot: measurements.
        calls: network calls of a sample.
        solvers: names in `df.solvers`, or builders (schedule, grid) -> plan by name.
        grids: names in `diffast.tuning.grids.pilot.NAMES`; None: all of them.

    Raises:
        ValueError: calls < 1; an unknown name; a solver that needs more calls for one step.
    """
    made = []
    for solver, build in _builders(solvers).items():
        kernel = KERNELS.get(solver, "kernel_2")
        for grid in NAMES if grids is None else grids:
            if grids is None and grid.startswith("kernel") and not grid.startswith(kernel):
                continue
            plan = _within(denoiser.schedule, build, lambda n, g=grid: pilot.grid(g, n), calls)
            if plan is not None:
                made.append((f"{solver}, {grid}", plan))
    return made


def rank(
    denoiser: Denoiser,
    pilot: Pilot,
    calls: int,
    *,
    solvers: Sequence[str] | Mapping[str, Callable[..., Plan]] | None = None,
    grids: Sequence[str] | None = None,
    standard: Sequence[str] = STANDARD,
    reference: Reference | None = None,
) -> list[Ranked]:
    """Returns solvers on measured and on standard grids, best first.

    The error of each is measured on noises that the pilot has not seen: rms distance to the flow's
    end points, over their spread.

    Args:
        denoiser: the network.
        pilot: measurements.
        calls: most network calls of a sample.
        solvers: as for `candidates`.
        grids: as for `candidates`.
        standard: names in `df.grids`; those that a schedule cannot have are left out.
        reference: end points to compare with; None: of seed `pilot.seed + 1`, as many as the pilot
            has.

    Raises:
        ValueError: as `candidates`; no plan at all.
    """
    if reference is None:
        reference = Reference(denoiser, pilot.shape, seed=pilot.seed + 1, dtype=pilot.flow.dtype)
    lines = candidates(denoiser, pilot, calls, solvers=solvers, grids=grids)
    for solver, build in _builders(solvers).items():
        for grid in standard:
            made = getattr(known_grids, grid)
            plan = _within(
                denoiser.schedule, build, lambda n, g=made: _whole(denoiser, pilot, g, n), calls
            )
            if plan is not None:
                lines.append((f"{solver}, {grid}", plan))
    if not lines:
        raise ValueError(f"rank: no solver can be run with {calls} calls on any of the grids")
    ranked = [Ranked(reference.error(plan), *name.split(", "), plan) for name, plan in lines]
    return sorted(ranked, key=lambda line: (line.error, line.name))


def polish(
    denoiser: Denoiser,
    pilot: Pilot,
    line: Ranked,
    *,
    solver: Callable[..., Plan] | None = None,
    evaluations: int = 300,
) -> Ranked:
    """Returns the line with its grid refined on the pilot's own noises; costs runs of the plan.

    Args:
        denoiser: the network.
        pilot: gives the noises and the end points.
        line: what is refined; its error is that on the pilot's noises afterwards.
        solver: the builder, where the line's solver is none of `df.solvers`.
        evaluations: most runs.
    """
    build = solver or known_solvers.get(line.solver)
    levels, end = pilot.flow.levels, line.plan.end
    to_zero = end == float(denoiser.schedule.t_end)
    rho = levels.at(np.append(_grid_of(line.plan), end)[: line.plan.steps + 1])
    rho[0], rho[-1] = levels.high, levels.low
    noise = Reference.of(denoiser, pilot)

    def error(rho: np.ndarray) -> float:
        return noise.error(build(denoiser.schedule, levels.grid(rho, to_zero)))

    better, value = polished_levels(error, rho, evaluations)
    plan = build(denoiser.schedule, levels.grid(better, to_zero))
    return Ranked(value, line.solver, f"{line.grid} polished", plan)
