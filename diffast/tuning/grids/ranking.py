"""`rank`: solvers and grids compared on a network; `polish`; and `candidates` for a tuner."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffast import grids as standard_grids
from diffast import solvers as known_solvers
from diffast.grids.given import AYS
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.overshoot import PlanWarning
from diffast.tuning.grids.levels import Levels
from diffast.tuning.grids.pilot import NAMES, Pilot
from diffast.tuning.grids.simplex import polished_levels
from diffast.tuning.judge import Judge, samples_of
from diffast.tuning.memo import Memo
from diffast.tuning.pilots import HELD_OUT, Pilots, ids_of
from diffast.tuning.teacher import find_teacher

Builder = Callable[..., Plan]
Solvers = Sequence[str] | Mapping[str, Builder] | None

SOLVERS: dict[str, Builder] = {
    "ddim": known_solvers.ddim,
    "dpmpp_2m": known_solvers.dpmpp_2m,
    "unipc(3)": lambda s, g: known_solvers.unipc(s, g, order=3),
    "deis(2)": lambda s, g: known_solvers.deis(s, g, order=2),
    "adams(2)": lambda s, g: known_solvers.adams(s, g, order=2),
    "adams(3)": lambda s, g: known_solvers.adams(s, g, order=3),
    "heun": known_solvers.heun,
}
"""The solvers that are compared unless others are named."""

STANDARD = ("karras", "uniform_logsnr", "kl_optimal", "uniform_time", "uniform_flow")
STANDARD += tuple(f"ays({model})" for model in AYS)
"""The grids of `df.grids` that measured ones are compared with.

Published tables, `ays`, are compared on schedules that start where the table does.
"""

# Which kernel stands for a solver; kernel_2 for those that are not named.
_KERNELS = {"ddim": "kernel_1", "euler": "kernel_1", "heun": "kernel_heun"}
# What a tuner tries: entropic and klub, which ask about the SDE, lost in every measurement.
_TRIED = ("arctan", "rescaled_entropic", "equal_ep", "score_optimal", "accel", "gits")
_TRIED += ("kernel_2", "kernel_2_cautious")
_TRIED_SOLVERS = ("dpmpp_2m", "unipc(3)", "deis(2)", "adams(2)", "adams(3)")
_LEAST_ROWS, _MOST_ROWS, _MOST_ELEMENTS = 16, 64, 4096


@dataclass(frozen=True)
class Ranked:
    """One line of a comparison.

    Attributes:
        error: rms distance of the samples to the teacher's, over the spread of those.
        solver, grid: names.
        plan: the plan that was run.
        times: its grid, model times [N+1].
    """

    error: float
    solver: str
    grid: str
    plan: Plan
    times: np.ndarray

    @property
    def name(self) -> str:
        """Returns "solver, grid"."""
        return f"{self.solver}, {self.grid}"

    def __str__(self) -> str:
        """Returns a line of a table."""
        return f"{self.error:10.4g}  {self.plan.nfe:3d} calls  {self.name}"


class HeldOut:
    """Noises that no pilot has seen, and the teacher's samples for them.

    Args:
        denoiser: the network.
        shape: [B, ...] of the comparison.
        seed: of the noises.
        rows: samples of one network call, at most.
        tolerance: how near the teacher has to be to one of half its steps, over the spread.
        held_out: whether the noises are other ones than those of `df.sample` for ids 0 .. B-1.

    Attributes:
        accuracy: distance of the teacher to one of half its steps, over the spread.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        seed: int = 0,
        rows: int = 4096,
        tolerance: float = 1e-3,
        held_out: bool = True,
    ):
        """Runs the teacher."""
        self.rows, self.ids = rows, ids_of(shape[0], HELD_OUT if held_out else 0)
        self.pilots = Pilots(denoiser, shape[1:], seed, denoiser.device())
        memo, say = Memo(None, {}), lambda message: None
        plan, self.accuracy = find_teacher(denoiser, self.pilots, rows, tolerance, memo, say)
        self.judge = Judge(samples_of(plan, self.pilots, self.ids, rows))

    def error(self, plan: Plan) -> float:
        """Returns the rms distance of a plan's samples to the teacher's, over their spread."""
        return self.judge.error(samples_of(plan, self.pilots, self.ids, self.rows))


def candidates(
    denoiser: Denoiser,
    pilot: Pilot,
    calls: int,
    *,
    solvers: Solvers = None,
    grids: Sequence[str] | None = None,
) -> list[tuple[str, Plan]]:
    """Returns (name, plan) for solvers on measured grids, each of at most `calls` network calls.

    Left out are grids that cannot be made with so many steps, plans that amplify errors and, unless
    grids are named, kernels of other solvers. What the grids need is measured once a pilot.

    Args:
        denoiser: the network.
        pilot: measurements on it.
        calls: most network calls of a sample.
        solvers: names in `SOLVERS` or `df.solvers`, or builders (schedule, grid) -> plan by name.
        grids: names in `NAMES`; None: all of them.

    Raises:
        ValueError: calls < 1; an unknown name.
    """
    made = _on_measured(denoiser, pilot, calls, solvers, grids)
    return [(line.name, line.plan) for line in made]


def measured(
    denoiser: Denoiser,
    pilots: Pilots,
    calls: int,
    memo: Memo | None = None,
    most: int = 64,
) -> dict[str, Plan]:
    """Returns the measured candidates of a tuning run: multistep solvers on measured grids.

    Published tables (`df.grids.ays`) that start where the schedule does are among them.

    The pilot has the first noises of the run's training: 16 to 64 of them, the more the smaller a
    sample is. The grids' times are kept in the memo, so that a resumed run measures nothing again.

    Args:
        denoiser: the network.
        pilots: noises and conditions of the run.
        calls: most network calls of a sample.
        memo: of the run.
        most: how many noises the training has.
    """

    def work() -> dict:
        elements = int(np.prod(pilots.shape, dtype=np.int64))
        rows = max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_ELEMENTS // max(elements, 1)))
        rows = min(rows, most)
        shape = (rows, *pilots.shape)
        pilot = Pilot(pilots.rows(ids_of(rows)), shape, seed=pilots.seed, device=pilots.device)
        times = {}
        for name in _TRIED:
            try:
                times[name] = pilot.grid(name, calls).tolist()
            except ValueError:  # so many steps cannot be had
                continue
        return {"times": times, "calls": rows * pilot.calls}

    found = (memo or Memo(None, {}))(f"grids measured for {calls} calls", work)["times"]
    for model in AYS:
        try:
            levels, name = Levels.of(denoiser), f"ays({model})"
            found = found | {name: _standard_grid(levels, name, calls)}
        except ValueError:  # a table of another schedule
            continue
    plans = {}
    for solver in _TRIED_SOLVERS:
        for name, times in found.items():
            plan = _stable(SOLVERS[solver], denoiser.schedule, np.array(times))
            if plan is not None and plan.nfe <= calls:
                plans[f"{solver}, {name}"] = plan
    return plans


def rank(
    denoiser: Denoiser,
    pilot: Pilot,
    calls: int,
    *,
    solvers: Solvers = None,
    grids: Sequence[str] | None = None,
    standard: Sequence[str] = STANDARD,
    held_out: HeldOut | None = None,
) -> list[Ranked]:
    """Returns solvers on measured and on standard grids, best first.

    Args:
        denoiser: the network.
        pilot: measurements on it.
        calls: most network calls of a sample.
        solvers: as for `candidates`.
        grids: as for `candidates`.
        standard: names in `df.grids`, a model's as in "ays(sd15)"; those that a schedule cannot
            have are left out.
        held_out: what is compared with; None: as many noises as the pilot has, of its seed.

    Raises:
        ValueError: as `candidates`; no plan at all.
    """
    if held_out is None:
        held_out = HeldOut(denoiser, pilot.shape, seed=pilot.seed)
    lines = _on_measured(denoiser, pilot, calls, solvers, grids)
    lines += _on_standard(denoiser, pilot, calls, solvers, standard)
    if not lines:
        raise ValueError(f"rank: no solver can be run with {calls} calls on any of the grids")
    ranked = [replace(line, error=held_out.error(line.plan)) for line in lines]
    return sorted(ranked, key=lambda line: (line.error, line.name))


def polish(
    denoiser: Denoiser,
    pilot: Pilot,
    line: Ranked,
    *,
    solver: Builder | None = None,
    evaluations: int = 300,
) -> Ranked:
    """Returns the line with its grid refined, for this solver and number of steps.

    The error that a simplex search lowers is that on the pilot's noises; it is also the result's.

    Args:
        denoiser: the network.
        pilot: gives the noises.
        line: what is refined.
        solver: the builder, where the line's solver was given as one.
        evaluations: most runs of the plan on the pilot's batch.

    Raises:
        ValueError: no plan near this one has a finite error.
    """
    build = solver or next(iter(_builders([line.solver]).values()))
    levels, schedule = pilot.flow.levels, denoiser.schedule
    to_zero = line.times[-1] == float(schedule.t_end)
    rho = np.concatenate([[levels.high], levels.at(line.times[1:-1]), [levels.low]])
    rho = np.minimum.accumulate(np.clip(rho, levels.low * 1.0001, levels.high))
    rho[-1] = levels.low
    known = HeldOut(denoiser, pilot.shape, seed=pilot.seed, held_out=False)

    def error(rho: np.ndarray) -> float:
        try:
            times = levels.grid(rho, to_zero)
        except ValueError:  # levels that fall together
            return np.inf
        plan = _stable(build, schedule, times)
        return np.inf if plan is None else known.error(plan)

    better, value = polished_levels(error, rho, evaluations)
    if not np.isfinite(value):
        raise ValueError(f"polish: no grid near that of {line.name} can be run")
    times = levels.grid(better, to_zero)
    return Ranked(value, line.solver, f"{line.grid} polished", build(schedule, times), times)


def _on_measured(denoiser, pilot, calls, solvers, grids) -> list[Ranked]:
    lines = []
    for solver, build in _builders(solvers).items():
        kernel = _KERNELS.get(solver, "kernel_2")
        for grid in NAMES if grids is None else grids:
            if grids is None and grid.startswith("kernel") and not grid.startswith(kernel):
                continue
            if grid not in NAMES:
                raise ValueError(f"grid {grid!r} is not known, but {', '.join(NAMES)} are")
            made = _within(denoiser, build, lambda n, g=grid: pilot.grid(g, n), calls)
            lines += [Ranked(np.nan, solver, grid, *found) for found in made]
    return lines


def _on_standard(denoiser, pilot, calls, solvers, standard) -> list[Ranked]:
    lines = []
    for solver, build in _builders(solvers).items():
        for grid in standard:
            made = _within(
                denoiser, build, lambda n, g=grid: _standard_grid(pilot.flow.levels, g, n), calls
            )
            lines += [Ranked(np.nan, solver, grid, *found) for found in made]
    return lines


def _standard_grid(levels: Levels, name: str, steps: int) -> np.ndarray:
    """Returns a grid of `df.grids`, of whole times where the network wants them."""
    kind, _, model = name.rstrip(")").partition("(")
    make = getattr(standard_grids, kind)
    times = make(levels.schedule, steps, model) if model else make(levels.schedule, steps)
    if model and times[0] != levels.schedule.t_start:
        raise ValueError(f"grid: the table of {name} starts at t = {times[0]:g}, another level")
    return levels.whole_grid(times)


def _within(denoiser, build, times, calls) -> Iterator[tuple[Plan, np.ndarray]]:
    """Yields (plan, grid) with the most steps that `calls` allow, if there is one."""
    if calls < 1:
        raise ValueError(f"grids: {calls} calls, but at least 1 is needed")
    for steps in range(calls, 0, -1):
        try:
            grid = times(steps)
        except ValueError:  # a grid that this schedule does not have
            continue
        plan = _stable(build, denoiser.schedule, grid)
        if plan is None:
            return
        if plan.nfe <= calls:
            yield plan, grid
            return


def _stable(build: Builder, schedule: Any, times: np.ndarray) -> Plan | None:
    """Returns the plan; None where the schedule does not allow it or it amplifies errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        try:
            return build(schedule, times)
        except (ValueError, PlanWarning):
            return None


def _builders(solvers: Solvers) -> Mapping[str, Builder]:
    if solvers is None:
        return SOLVERS
    if isinstance(solvers, Mapping):
        return solvers
    return {name: SOLVERS.get(name) or known_solvers.get(name) for name in solvers}
