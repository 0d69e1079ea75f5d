"""Standard plans as candidates: solvers, orders and grids, each built for a number of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diffast import grids, solvers
from diffast.planning.choose import plan as start_plan
from diffast.plans import Plan
from diffast.plans.overshoot import is_unstable
from diffast.plans.provenance import digest
from diffast.solvers.core.stability import unchecked


class Recipe(NamedTuple):
    """A candidate: its name, and what builds its plan.

    Attributes:
        name: solver and grid.
        build: called as build(denoiser, calls); returns a plan of at most so many calls.
    """

    name: str
    build: Callable[[Any, int], Plan]


SOLVERS: dict[str, Callable[..., Plan]] = {
    "ddim": solvers.ddim,
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_3m": solvers.dpmpp_3m,
    "unipc(2)": lambda s, g: solvers.unipc(s, g, order=2),
    "unipc(3)": lambda s, g: solvers.unipc(s, g, order=3),
    "unipc(3, falling)": lambda s, g: solvers.unipc(s, g, order=3, final="falling"),
    "deis(2)": lambda s, g: solvers.deis(s, g, order=2),
    "deis(3)": lambda s, g: solvers.deis(s, g, order=3),
    "exponential_adams(3)": lambda s, g: solvers.exponential_adams(s, g, order=3),
    "adams(2)": lambda s, g: solvers.adams(s, g, order=2),
    "adams(3)": lambda s, g: solvers.adams(s, g, order=3),
    "adams(4)": lambda s, g: solvers.adams(s, g, order=4),
    "ipndm": solvers.ipndm,
    "heun": solvers.heun,
    "dpm_solver_2s": solvers.dpm_solver_2s,
}
GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "karras": grids.karras,
    "karras(rho=4)": lambda s, n: grids.karras(s, n, rho=4.0),
    "uniform_logsnr": grids.uniform_logsnr,
    "kl_optimal": grids.kl_optimal,
    "uniform_flow": grids.even,
    "uniform_time": grids.uniform_time,
}
# Levels sigma/alpha at which a run may start in place of the schedule's highest, for data of a
# deviation of about 1. Noise of this level stands for the noisy data there. A run of few calls
# loses little by this and saves a call or two; learning moves the level.
LATE = (20.0, 10.0, 5.0)
LATE_SOLVERS = ("unipc(2)", "deis(2)", "adams(3)")

STOCHASTIC: dict[str, Callable[..., Plan]] = {
    "ddpm": solvers.ddpm,
    "ddim(eta=0.5)": lambda s, g: solvers.ddim(s, g, eta=0.5),
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "er_sde": solvers.er_sde,
    "sa_solver": solvers.sa_solver,
    "seeds_1": solvers.seeds_1,
}


def recipes(stochastic: bool = False) -> Iterator[Recipe]:
    """Yields the standard candidates, deterministic or stochastic ones."""
    for solver, build in (STOCHASTIC if stochastic else SOLVERS).items():
        for grid, times in GRIDS.items():
            yield Recipe(f"{solver}, {grid}", _builder(build, times))


def late_recipes() -> Iterator[Recipe]:
    """Yields candidates that start at a lower level than the schedule's highest."""
    for name in [name for name in SOLVERS if name in LATE_SOLVERS]:
        for level in LATE:
            for grid, times in (("karras", grids.karras), ("even arctan", _even_arctan)):
                yield Recipe(
                    f"{name}, {grid} from {level:g}",
                    _builder(SOLVERS[name], partial(_late, times, level)),
                )


def _even_arctan(schedule: Any, steps: int, sigma_max: float) -> np.ndarray:
    return grids.even(schedule, steps, clock="arctan", sigma_max=sigma_max)


def _late(times: Callable[..., np.ndarray], level: float, schedule: Any, steps: int) -> np.ndarray:
    if not _is_late(schedule, level):
        raise ValueError(f"sigma/alpha = {level:g} is no late start of {schedule}")
    return times(schedule, steps, sigma_max=level)


def _is_late(schedule: Any, level: float) -> bool:
    return level < 0.8 * np.exp(-float(schedule.lam(schedule.t_start)))


def starts_late(plan: Plan) -> bool:
    """Returns whether a plan starts as low as the late recipes do."""
    level = np.exp(-float(plan.schedule.lam(plan.start)))
    return bool(level < 1.01 * max(LATE) and _is_late(plan.schedule, level))


def _builder(build: Callable[..., Plan], times: Callable[..., np.ndarray]) -> Callable:
    def built(denoiser: Any, calls: int) -> Plan:
        schedule, best = denoiser.schedule, None
        # A method of several calls a step has fewer steps; the last step may take one call.
        for steps in range(calls, 0, -1):
            plan = build(schedule, whole_grid(denoiser, times(schedule, steps)))
            if plan.nfe <= calls:
                best = plan
                break
        if best is None:
            raise ValueError(f"no plan of at most {calls} calls")
        return best

    return built


def whole_grid(denoiser: Any, grid: np.ndarray) -> np.ndarray:
    """Returns the grid, with whole times where the network wants integers.

    Times that fall together are one call. The clean end stays as it is: the network is not called
    there, so that a time which falls on the end is left out.
    """
    if not denoiser.whole_times:
        return grid
    rounded = np.append(np.round(grid[:-1]), grid[-1])
    return np.append(rounded[:-1][np.diff(rounded) != 0], grid[-1])


def plans_for(denoiser: Any, calls: int, stochastic: bool = False) -> Iterator[tuple[str, Plan]]:
    """Yields (name, plan) of all candidates that can be built for so many calls, each once."""
    seen = set()
    for name, plan in _all_plans(denoiser, calls, stochastic):
        if plan.nfe > calls or plan.stochastic != stochastic or not _can_be_told(denoiser, plan):
            continue
        if digest(plan) not in seen:
            seen.add(digest(plan))
            yield name, plan


def _can_be_told(denoiser: Any, plan: Plan) -> bool:
    """Returns whether the network takes the plan's times: some want whole ones alone."""
    if not denoiser.whole_times:
        return True
    told = plan.times[~np.isnan(plan.times)]
    return bool((told == np.round(told)).all())


def _all_plans(denoiser: Any, calls: int, stochastic: bool) -> Iterator[tuple[str, Plan]]:
    for recipe in (*recipes(stochastic), *(() if stochastic else late_recipes())):
        try:
            with unchecked():
                plan = recipe.build(denoiser, calls)
        except ValueError:  # not for this schedule
            continue
        if not is_unstable(plan):
            yield recipe.name, plan
    with suppress(ValueError):  # more calls than a network of whole times has levels
        yield "df.plan", start_plan(denoiser, calls, stochastic=stochastic)
