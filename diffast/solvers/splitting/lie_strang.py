"""Lie-Trotter and Strang splitting: sub-steps by the network and by the guidance in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import splitting_builder
from diffast.solvers.core.integrals import levels_at
from diffast.solvers.core.multistep import build, check_choice, check_order
from diffast.solvers.ode.adams import mean_of_slopes
from diffast.solvers.splitting.inner import inner_plan, steps_of
from diffast.solvers.splitting.substeps import Pull, Substep, full_length
from diffast.solvers.splitting.weave import Weave

Inner = str | Callable[..., Plan]
Guidance = Literal["euler", "rk2", "heavy_ball", "ghvb"]
Compat = Literal["released"] | None


@splitting_builder
def ltsp(
    schedule: Schedule,
    grid: ArrayLike,
    inner: Inner | None = None,
    order: int | None = None,
    guidance: Guidance = "euler",
    damping: float = 0.8,
    guidance_order: int = 2,
    first: Literal["diffusion", "guidance"] = "diffusion",
    compat: Compat = None,
) -> Plan:
    """Returns Lie-Trotter splitting for guided sampling. Order 1; 1 call and 1 gradient a step.

    Wizadwongsa & Suwajanakorn 2023, algorithm 1. With y = x/alpha, rho = sigma/alpha and
    f = scale sigma grad log p(condition | x), a step from s to t is, for first="diffusion",

        z    = the inner solver's step of dy/drho = eps from y_s
        y_t  = z + (rho_s - rho_t) f(z, t)

    and for first="guidance" (the order of the released program) the second comes before the first,
    at s. The inner solver remembers eps where the network is called. The gradient is a stage of its
    own, at one noise level: the network's clamp and hook act on the unguided x0 estimate. Where
    sigma = 0, f is 0 and takes no gradient. Out of alpha_s = 0 rho is infinite; the guidance of
    that step is taken at its end, in the time variable sigma/(alpha + sigma).

    compat="released": first="guidance", constant-step weights of the inner solver, whose full order
    goes into sigma = 0 too.

    Args:
        inner: None: "lms", with compat="released" "plms". Else the solver of the network's part:
            see `additive_multistep`, and "heun" and "rk4".
        first: which sub-step comes first, "diffusion" or "guidance".
    """
    who = "ltsp"
    if check_compat(who, compat):
        inner, first = released(who, inner, order, guidance), "guidance"
        order = None
    inner = "lms" if inner is None else inner
    check_choice(who, "first", first, ("diffusion", "guidance"))
    grid = check_grid(schedule, grid)
    levels = levels_at(schedule, grid)
    substeps: list[list[Substep]] = [[] for _ in grid]
    for n, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        before = first == "guidance" and s.alpha > 0.0
        at, k = (s, n) if before else (t, n + 1)
        if at.sigma > 0.0:
            substeps[k].append(Substep(grid[k], at.sigma, full_length(s, t, at)))
    pull = Pull(who, guidance, damping, guidance_order)
    label = compat or f"{first} first"
    return _alternating(who, schedule, grid, (inner, order), pull, substeps, label)


@splitting_builder
def stsp(
    schedule: Schedule,
    grid: ArrayLike,
    inner: Inner | None = None,
    order: int | None = None,
    guidance: Guidance = "euler",
    damping: float = 0.8,
    guidance_order: int = 2,
    merged: bool = False,
    compat: Compat = None,
) -> Plan:
    """Returns Strang splitting for guided sampling. Order 1; 1 call and 2 gradients a step.

    Wizadwongsa & Suwajanakorn 2023, algorithm 2. Half of the guidance comes before the inner
    solver's step from s to t, half after it (names as for `ltsp`):

        z    = y_s + (rho_s - rho_t)/2 f(y_s, s)
        z'   = the inner solver's step from z
        y_t  = z' + (rho_s - rho_t)/2 f(z', t)

    With one-step methods of order 2 for both parts (inner="heun", guidance="rk2") the order is 2.
    A multistep inner solver remembers eps on the guided trajectory, which leaves order 1 with a
    small constant. Ends as for `ltsp`.

    merged: the two halves at one time are one sub-step, which takes N + 1 gradients in place of 2 N
    (N and 2 N - 1 where the grid ends at sigma = 0).

    compat="released": the second half weighs f by the sigma where rho is the mean of rho_s and
    rho_t; into sigma = 0 it is told the time of s. The inner solver is that of `ltsp`'s.

    Args:
        inner: None: "adams", of order 2, whose estimates the guidance disturbs least; with
            compat="released" "plms". Others as for `ltsp`.
        merged: whether the halves at one time are one sub-step.
    """
    who = "stsp"
    old = check_compat(who, compat)
    if old:
        if merged:
            raise ValueError(f"{who}: merged = True, but it must be False with compat = {compat!r}")
        inner, order = released(who, inner, order, guidance), None
    inner = "adams" if inner is None else inner
    if guidance == "ghvb" and not merged:
        raise ValueError(
            f"{who}: guidance = 'ghvb' joins sub-steps at different times, but with merged = False "
            "two are at each time"
        )
    grid = check_grid(schedule, grid)
    levels = levels_at(schedule, grid)
    substeps: list[list[Substep]] = [[] for _ in grid]
    for n, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        ends = ((n, s), (n + 1, t)) if s.alpha > 0.0 else ((n + 1, t),)
        for k, at in ends:
            length = full_length(s, t, at) / len(ends)
            made = Substep(grid[k], at.sigma, length)
            if old and k > n and s.alpha > 0.0:
                middle = 0.5 * (s.sigma / s.alpha + t.sigma / t.alpha)
                noise = float(schedule.sigma(schedule.time(-np.log(middle))))
                made = Substep(grid[k if t.sigma > 0.0 else n], noise, length)
            if made.sigma > 0.0:
                substeps[k].append(made)
    if merged:
        substeps = [_joined(made) for made in substeps]
    pull = Pull(who, guidance, damping, guidance_order)
    label = "released" if old else "merged" if merged else "halves"
    return _alternating(who, schedule, grid, (inner, order), pull, substeps, label)


def check_compat(who: str, compat: Any) -> bool:
    """Returns whether the released program's numbers are asked for; ValueError for others."""
    if compat is None:
        return False
    return check_choice(who, "compat", compat, ("released",)) == "released"


def released(
    who: str, inner: Inner | None, order: int | None, guidance: str
) -> Callable[..., Plan]:
    """Returns the inner solver of the released program: PLMS, of its order into sigma = 0 too."""
    if inner not in ("plms", None) or guidance != "euler":
        raise ValueError(
            f"{who}: inner = {inner!r}, guidance = {guidance!r}, but the released program has "
            "'plms' and 'euler'"
        )
    order = check_order(who, 4 if order is None else order, 4)

    def plms(schedule: Schedule, grid: ArrayLike) -> Plan:
        # Into sigma = 0 the noise cancels but for rounding, where it is to be 0.
        own = {"predict": mean_of_slopes(), "final": "full", "check": "x0"}
        return build(schedule, grid, f"plms {order}", order, "noise", "rho", **own)

    return plms


def _joined(substeps: list[Substep]) -> list[Substep]:
    """Returns the sub-steps at one time as one."""
    if len(substeps) < 2:
        return substeps
    return [substeps[0]._replace(length=sum(made.length for made in substeps))]


def _alternating(who, schedule, grid, inner: tuple, pull: Pull, substeps, label) -> Plan:
    """Returns the plan of the inner solver's steps with guidance before, between and after."""
    named, plan = inner_plan(who, inner[0], inner[1], schedule, grid)
    weave = Weave(who, plan)
    for step, before in zip(steps_of(plan), substeps, strict=False):
        for substep in before:
            pull.add(weave, substep)
        for i in step:
            weave.take(i)
    for substep in substeps[-1]:
        pull.add(weave, substep)
    return weave.plan(f"{who}({named}, {pull.label}, {label})")
