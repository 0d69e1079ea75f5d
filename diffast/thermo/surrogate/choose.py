"""`plan_of_profile`, `plans_of_profile`: plans that a profile alone asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from diffast.model.denoiser import Denoiser
from diffast.planning.choose import plan as start_plan
from diffast.planning.choose import whole_calls
from diffast.plans import Plan
from diffast.plans.overshoot import is_unstable
from diffast.solvers.core.stability import unchecked
from diffast.thermo.surrogate.curve import Curve
from diffast.thermo.surrogate.surrogate import Surrogate
from diffast.tuning.candidates import SOLVERS, plans_for, starts_late
from diffast.tuning.grids import densities
from diffast.tuning.grids.levels import Levels, levels_by_density
from diffast.tuning.tune import tune

HOWS = {
    "gaussian": "the best of the standard plans on Gaussian data with the profile's spectrum",
    "standard": "the best of the standard plans on the surrogate",
    "density": "the best solver on grids of the profile's densities, on the surrogate",
    "surrogate": "the best of both on the surrogate",
    "learned": "levels and weights that `df.tune` learns on the surrogate, where they are better",
}
"""The ways to choose a plan."""

# The densities of `df.tuning.grids` that a loss curve alone settles, without those about the SDE.
DENSITIES = ("arctan", "rescaled_entropic", "equal_ep")

# Learning on the surrogate: noises of each part, those of one iteration, iterations.
_NOISES, _BATCH, _ITERATIONS = 512, 128, 10


def plan_of_profile(
    profile: Any,
    denoiser: Any,
    calls: int,
    *,
    how: str = "surrogate",
    late: bool = False,
    surrogate: Surrogate | None = None,
) -> Plan:
    """Returns the plan of so many calls that fits a network's profile; the network is not called.

    A `Surrogate` is fitted to the profile's loss curve and plans are compared on it. docs/
    thermodynamics.md shows what this was worth on trained networks.

    Args:
        profile: a `df.thermo.Profile`, anything with `rho`, `mmse` and `d`, or a tuple
            (rho, mmse, d) or (rho, mmse, d, spectrum).
        denoiser: the network's `df.Denoiser`, or its schedule. Of a denoiser the schedule and the
            kind of times that the network takes are read.
        calls: network calls of the plan, at most.
        how: one of `HOWS`.
        late: whether plans that start below the schedule's highest level are tried. The surrogate
            has the mean 0, so what such a start loses on a large mean is not seen.
        surrogate: one that was fitted before; None: one is fitted.

    Raises:
        TypeError, ValueError: as `Surrogate.fit`; an unknown `how`; "gaussian" without a spectrum;
            calls that no plan has; a guided denoiser.
    """
    ranked, stand_in, surrogate = _ranked(
        "plan_of_profile", profile, denoiser, calls, how, late, surrogate
    )
    error, name, chosen = ranked[0]
    if how == "learned":
        learned = _learned(surrogate, stand_in, calls, chosen)
        if surrogate.error(learned) < error:
            name, chosen = "levels and weights", learned
    return _named(name, chosen)


def plans_of_profile(
    profile: Any,
    denoiser: Any,
    calls: int,
    first: int = 5,
    *,
    late: bool = False,
    surrogate: Surrogate | None = None,
) -> list[tuple[float, Plan]]:
    """Returns (predicted error, plan) of the first few plans by a network's profile, best first.

    The list is for trying the few on the network: on the networks of docs/thermodynamics.md the
    best of the first five has at most 1.1 times the least error of all hundred. Grids of two names
    that are the same on a schedule give one plan.

    Args:
        profile: as for `plan_of_profile`.
        denoiser: the network's `df.Denoiser`, or its schedule.
        calls: network calls of a plan, at most.
        first: how many plans.
        late: whether plans that start below the schedule's highest level are tried.
        surrogate: one that was fitted before; None: one is fitted.

    Raises:
        TypeError, ValueError: as `plan_of_profile`; first < 1.
    """
    if first < 1:
        raise ValueError(f"plans_of_profile: first = {first}, but at least 1 is needed")
    ranked, *_ = _ranked("plans_of_profile", profile, denoiser, calls, "surrogate", late, surrogate)
    few: list[tuple[float, Plan]] = []
    for error, name, plan in ranked:
        if not any(_same(plan, other) for _, other in few):
            few.append((error, _named(name, plan)))
        if len(few) == first:
            break
    return few


def _same(plan: Plan, other: Plan) -> bool:
    """Returns whether two plans of one schedule have the same times and weights to rounding."""
    if (plan.rows, plan.columns) != (other.rows, other.columns) or plan.stages != other.stages:
        return False
    return all(
        np.allclose(one, two, rtol=1e-7, atol=1e-12)
        for one, two in ((plan.times, other.times), (plan.matrix, other.matrix))
    )


def _ranked(
    who: str,
    profile: Any,
    denoiser: Any,
    calls: int,
    how: str,
    late: bool,
    surrogate: Surrogate | None,
) -> tuple[list[tuple[float, str, Plan]], Denoiser, Surrogate]:
    """Returns (error, name, plan) of what is compared, best first, and what it was run on."""
    calls = whole_calls(who, calls)
    if how not in HOWS:
        raise ValueError(f"{who}: how = {how!r}, but {', '.join(HOWS)} are known")
    _check_unguided(who, denoiser)
    curve = Curve.of(profile)
    if how == "gaussian":
        if curve.spectrum is None:
            raise ValueError(
                f"{who}: how = 'gaussian' needs the spectrum of the data, which the profile does "
                "not have"
            )
        surrogate = Surrogate.gaussian(curve.spectrum)
    elif surrogate is None:
        surrogate = Surrogate.fit(profile)
    stand_in = _stand_in(surrogate, denoiser)
    found = [
        (surrogate.error(plan), name, plan)
        for name, plan in candidates(curve, stand_in, calls, how, late)
    ]
    if not found:
        raise ValueError(f"{who}: no plan of {calls} calls can be made on {stand_in.schedule}")
    return sorted(found, key=lambda line: line[:2]), stand_in, surrogate


def _check_unguided(who: str, denoiser: Any) -> None:
    """Refuses a guided denoiser: its loss is no mean square error of an x0 estimate."""
    if not isinstance(denoiser, Denoiser):
        return
    guided = denoiser.rule is not None or callable(denoiser.guidance) or denoiser.guidance != 1.0
    if guided or denoiser.guides:
        raise ValueError(
            f"{who}: the denoiser is guided, but a profile ranks plans by the loss of an unguided "
            "network: take df.plan or df.tune, or give the schedule alone"
        )


def _named(name: str, plan: Plan) -> Plan:
    return replace(plan, name=f"of_profile({name}, calls={plan.nfe})", made_for=None)


def candidates(
    curve: Curve, stand_in: Denoiser, calls: int, how: str = "surrogate", late: bool = False
) -> Iterator[tuple[str, Plan]]:
    """Yields (name, plan) of what is compared.

    Args:
        curve: of the profile.
        stand_in: the surrogate's denoiser.
        calls: of a plan, at most.
        how: see `HOWS`.
        late: see `plan_of_profile`.
    """
    if how != "density":
        for name, plan in plans_for(stand_in, calls):
            if late or not starts_late(plan):
                yield name, plan
    if how in ("density", "surrogate", "learned"):
        yield from _on_densities(curve, stand_in, calls)


def grids_of(curve: Curve, denoiser: Any, steps: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, model times [steps + 1]) of grids by the densities of a loss curve."""
    levels = Levels.of(denoiser)
    fine = np.geomspace(levels.high, levels.low, 512)
    mmse = curve.at(fine)
    made = {
        "arctan": densities.arctan(fine, curve.deviation),
        "rescaled_entropic": densities.rescaled_entropic(fine, mmse),
        "equal_ep": densities.equal_entropy_production(fine, mmse, curve.d),
    }
    for name in DENSITIES:
        try:
            rho = levels_by_density(np.log(fine), made[name], steps)
            yield name, levels.grid(rho, to_zero=True)
        except ValueError:  # so many steps cannot be had
            continue


def _on_densities(curve: Curve, denoiser: Denoiser, calls: int) -> Iterator[tuple[str, Plan]]:
    for steps in range(calls, 0, -1):
        for grid, times in grids_of(curve, denoiser, steps):
            for solver, build in SOLVERS.items():
                try:
                    with unchecked():
                        plan = build(denoiser.schedule, times)
                except ValueError:  # not for this schedule
                    continue
                # Methods of several calls a step have the most steps that the calls allow.
                if plan.nfe <= calls < plan.nfe * (1 + 1 / steps) and not is_unstable(plan):
                    yield f"{solver}, {grid}", plan
        if steps <= calls // 2:
            return


def _stand_in(surrogate: Surrogate, denoiser: Any) -> Denoiser:
    """Returns the surrogate's denoiser with the schedule and the times of a network."""
    if isinstance(denoiser, Denoiser):
        return surrogate.denoiser(denoiser.schedule, denoiser.time_dtype, denoiser.round_times)
    start_plan(denoiser, 1)  # refuses what is no schedule
    return surrogate.denoiser(denoiser)


def _learned(surrogate: Surrogate, stand_in: Denoiser, calls: int, start: Plan) -> Plan:
    """Returns the plan that `df.tune` learns on the surrogate, from its best candidate on."""
    result = tune(
        stand_in,
        calls,
        (_NOISES, len(surrogate.laws)),
        freedom=("levels", "weights"),
        batch=_BATCH,
        rows=_NOISES,
        iterations=_ITERATIONS,
        features=surrogate.features,
        measured_grids=False,
        compare=(),
        start=start,
        progress=False,
    )
    return result.plan
