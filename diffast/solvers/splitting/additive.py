"""Additive multistep: the network's slope and the guidance's, added along one trajectory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from numpy.typing import ArrayLike

from diffast.grids import check_grid
from diffast.plans import Plan
from diffast.plans.registers import ERROR_LEVEL
from diffast.schedules import Schedule
from diffast.solvers.core.docs import splitting_builder
from diffast.solvers.core.integrals import Level, adams, levels_at, moments
from diffast.solvers.core.multistep import check_choice
from diffast.solvers.splitting.heavy_ball import check_one_call
from diffast.solvers.splitting.inner import inner_plan
from diffast.solvers.splitting.momentum import check_damping
from diffast.solvers.splitting.substeps import full_length
from diffast.solvers.splitting.weave import Weave, Weights, summed

Inner = str | Callable[..., Plan]

METHODS = ("pec", "adams", "euler", "heavy_ball")


@splitting_builder
def additive_multistep(
    schedule: Schedule,
    grid: ArrayLike,
    inner: Inner = "lms",
    order: int | None = None,
    guidance: Literal["pec", "adams", "euler", "heavy_ball"] | None = None,
    damping: float = 0.8,
    guided: Literal["gradient", "cfg"] = "gradient",
) -> Plan:
    """Returns a multistep method for the network's slope plus one for the guidance's.

    Order 2 with an inner solver of order 2 and up; 1 call and 1 gradient a step. Both slopes are
    those of the one trajectory (names as for `ltsp`, F the inner solver's step):

        pec:         p    = F(y_s) - sum of Adams-Bashforth weights of order 2 times f_s, f_r
                     y_t  = F(y_s) + (rho_s - rho_t)/2 (f_s + f(p, t))
        adams:       y_t  = p; the gradient is taken where the network is called
        euler:       order 1 in f alone
        heavy_ball:  v = (1 - b) v + b f_s in place of f_s; order 1

    Into sigma = 0, f is 0. Out of alpha_s = 0 "pec" takes the guidance as `ltsp` does and the
    others none, which leaves them order 1 there.

    guided="cfg" splits classifier-free guidance of scale w: the inner solver has eps of the
    unconditional branch, and -f is w (eps_cond - eps_uncond) of the same call (Wizadwongsa et al.,
    arXiv 2307.11118, eq. 5 and 6). The denoiser has the scale; it may be a function of time.

    Args:
        inner: as for `ltsp`, but a multistep method of one call a step.
        guidance: "pec" (not with "cfg"), "adams", "euler" or "heavy_ball"; None: "pec", and "adams"
            with "cfg".
        guided: what guides: "gradient" (the denoiser's guidance terms) or "cfg".
    """
    who = "additive_multistep"
    check_choice(who, "guided", guided, ("gradient", "cfg"))
    if guidance is None:
        guidance = "adams" if guided == "cfg" else "pec"
    check_choice(who, "guidance", guidance, METHODS)
    if guided == "cfg" and guidance == "pec":
        raise ValueError(
            f"{who}: guided = 'cfg' has its guidance from the network call, but guidance = 'pec' "
            "takes it at a predicted point too: take 'adams', 'euler' or 'heavy_ball'"
        )
    b = check_damping(who, damping)
    grid = check_grid(schedule, grid)
    named, plan = inner_plan(who, inner, order, schedule, grid)
    check_one_call(who, plan)
    levels = levels_at(schedule, grid)
    weave = Weave(who, plan)
    if guidance == "pec":
        _pec(weave, grid, levels)
    else:
        _explicit(weave, levels, guidance, b, guided == "cfg")
    label = f"heavy_ball {b:g}" if guidance == "heavy_ball" else guidance
    return weave.plan(f"{who}({named}, {label}{', cfg' if guided == 'cfg' else ''})")


def _pec(weave: Weave, grid, levels: list[Level]) -> None:
    """Adds all stages with the guidance predicted, evaluated and corrected."""
    known: list[int] = []  # the times at which slopes of the guidance are remembered, newest first
    if levels[0].alpha > 0.0:
        entry = {"g1": levels[0].sigma}
        weave.guide(grid[0], {"x": 1.0}, h=entry, entry=("pull", 0))
        known = [0]
    for n, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        own = weave.row_of(n, "x")
        if s.alpha == 0.0:
            weave.take(n)
            if t.sigma > 0.0:
                x = {"x": 1.0, ("pull", n + 1): full_length(s, t, t)}
                weave.guide(grid[n + 1], x, h={"g1": t.sigma}, entry=("pull", n + 1))
                known = [n + 1]
            continue
        half = 0.5 * moments("noise", "rho", s, t, 0)[0]
        if t.sigma == 0.0:  # no guidance there: the corrected state at once
            weave.take(n, {"x": own | {("pull", n): -half}})
            continue
        weights = adams("noise", "rho", s, [levels[k] for k in known[1:2]], t)
        predicted = {("pull", k): w for k, w in zip(known, weights, strict=False)}
        weave.take(n, {"x": own | {key: -w for key, w in predicted.items()}})
        corrected: Weights = {"x": 1.0, ("pull", n + 1): -half}
        corrected |= {key: w - half * (key == ("pull", n)) for key, w in predicted.items()}
        weave.guide(grid[n + 1], corrected, h={"g1": t.sigma}, entry=("pull", n + 1))
        known = [n + 1, *known][:2]


def _explicit(weave: Weave, levels: list[Level], method: str, b: float, cfg: bool) -> None:
    """Adds all stages with a guidance slope of the same point as the network call."""
    before = None  # the level of the slope that v holds
    for n, (s, t) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        rows = {name: weave.row_of(n, name) for name in weave.source.rows}
        if cfg:
            rows = {
                name: {"d_uncond" if key == "d" else key: w for key, w in row.items()}
                for name, row in rows.items()
            }
        if s.alpha == 0.0:
            if cfg:
                rows["x"] = summed(rows["x"], {"d": t.alpha, "d_uncond": -t.alpha}, 1.0)
            weave.take(n, rows)
            continue
        slope = {"g1": s.sigma}
        if cfg:
            slope = {"d": s.alpha / s.sigma, "d_uncond": -s.alpha / s.sigma}
        whole = moments("noise", "rho", s, t, 0)[0]
        held: Weights = slope
        if method == "euler":
            rows["x"] = summed(rows["x"], slope, -whole)
            weave.take(n, rows)
            continue
        if method == "adams":
            weights = adams("noise", "rho", s, [] if before is None else [before], t)
            rows["x"] = summed(rows["x"], slope, -weights[0])
            if before is not None:
                rows["x"] = summed(rows["x"], {"v": 1.0}, -weights[1])
        else:
            if before is not None:
                held = summed({"v": 1.0 - b}, slope, b)
            rows["x"] = summed(rows["x"], held, -whole)
        before = s
        rows["v"] = held if n + 1 < len(levels) - 1 else {}
        weave.take(n, rows, ERROR_LEVEL)
