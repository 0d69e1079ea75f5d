"""`Chain`: a plan as a Markov chain with densities, whatever its solver remembers.

A run of a plan is a sequence of states. Where a stage draws noise, the next state is Gaussian given
all states before it: its mean is the stage's row over the registers, its deviation the row's noise.
Where a stage draws none, the next state is a function of those before. A chain walks through the
stages along given states: at each noisy stage it hands out (mean, deviation) and is told the state.
The noise that led there, z = (state - mean) / deviation, then goes into the other registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from diffast import ops
from diffast.executors.initial import entries_of, origin_of
from diffast.lowering.silent import without_silent_stages
from diffast.plans import Plan
from diffast.plans.registers import D_RAW, NEW, Z1, Z2, D, H, V, X, Y, levels_of
from diffast.thermo.fluctuation.densities import log_gaussian, log_normal

# estimate(evaluation, x) -> x0 [B, ...]; choose(evaluation, mean, deviation) -> state [B, ...].
Estimate = Callable[[int, torch.Tensor], torch.Tensor]
Choose = Callable[[int, torch.Tensor, float], torch.Tensor]


class Link(NamedTuple):
    """One evaluation of the network and the state after it.

    Attributes:
        time: model time of the call.
        rows: weights {register: {column: weight}} without the normals.
        deviation: of the fresh noise of x; 0: x is a function of the states before.
        share: noise weight of each other register over that of x.
        level: (alpha, sigma) of x after the evaluation.
    """

    time: float
    rows: dict[str, dict[str, float]]
    deviation: float
    share: dict[str, float]
    level: tuple[float, float]


class Chain:
    """The links of a plan.

    Attributes:
        links: one an evaluation.
        start: (alpha, sigma) of the state at the first evaluation.
        spread: deviation of that state in a run that starts at noise alone.
        noisy: the evaluations after which x holds fresh noise, in order.

    Args:
        who: the public function, which messages begin with.
        plan: any plan whose stages call the network on one input.

    Raises:
        ValueError: a plan whose states have no density: it draws no noise; it draws two normals a
            step for several registers; noise reaches a register that x does not tell; it calls the
            network on several inputs, or weighs gradients or single branches.
    """

    def __init__(self, who: str, plan: Plan):
        """Multiplies silent stages out and splits noise from means."""
        _check(who, plan)
        self.who, self.plan, self.origin = who, plan, origin_of(plan, {})
        opening, rows = without_silent_stages(plan)
        ends = np.append(plan.evaluations[1:], plan.stages) - 1
        levels = plan.levels[ends, plan.rows.index(X)]
        self.links = [
            _link(who, plan, i, float(time), row, (float(level[0]), float(level[1])))
            for i, (time, row, level) in enumerate(zip(plan.call_times, rows, levels, strict=True))
        ]
        first = int(plan.evaluations[0])
        at = levels_of(plan.schedule, plan.start)
        at = plan.levels[first - 1, plan.rows.index(X)] if first else at
        self.start = float(at[0]), float(at[1])
        keep, fresh = opening or (1.0, 0.0)
        self.spread = float(np.hypot(keep * plan.initial_scale, fresh))
        self.noisy = [i for i, link in enumerate(self.links) if link.deviation > 0.0]
        if not self.noisy:
            raise ValueError(
                f"{who}: {plan.name} draws no noise, so its steps are functions and its paths have "
                "no density: take a plan with noise, such as df.solvers.ddpm or ddim(eta=1)"
            )

    def log_start(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the log-density of initial states [B, ...], [B] float64."""
        initial = self.plan.initial
        if initial is None:
            return log_normal(x, 0.0, self.spread)
        return log_gaussian(x, initial.law.laws[0], *self.start)

    def walk(
        self, x: torch.Tensor, estimate: Estimate, choose: Choose, count: int | None = None
    ) -> torch.Tensor:
        """Returns the state after the last evaluation that is walked.

        Args:
            x: [B, ...] state at the first evaluation.
            estimate: the x0 estimate at an evaluation.
            choose: the state after a noisy one.
            count: how many evaluations are walked; None: all.
        """
        held: dict[str, torch.Tensor] = {X: x, Y: x}
        entries = entries_of(self.who, x, self.origin)[::-1]  # the newest first
        for i, link in enumerate(self.links[:count]):
            estimated = estimate(i, held[X])
            columns = {**held, D: estimated, D_RAW: estimated}
            columns |= {f"h{k}": entry for k, entry in enumerate(entries, 1)}
            made: dict[str, torch.Tensor] = {}
            for name in (H, *(n for n in link.rows if n not in (H, X)), X):
                row = link.rows.get(name)
                if row or name == X:
                    made[name] = _sum(row or {}, columns, x)
                if name == H and row:
                    columns[NEW] = made[H]
            mean = made[X]
            if link.deviation > 0.0:
                made[X] = choose(i, mean, link.deviation)
                for name, share in link.share.items():
                    weights = [1.0, share, -share]
                    (made[name],) = ops.combine([made[name], made[X], mean], weights)
            if H in made:
                entries.insert(0, made[H])
                del entries[max(self.plan.history, 1) :]
            joined = Y not in link.rows or not link.rows[Y] or _same(link)
            held = {name: made[name] for name in made if name not in (H,)}
            if joined:
                held[Y] = held[X]
        return held[X]


def _same(link: Link) -> bool:
    """Returns whether y is the same tensor as x after a link."""
    return link.rows[Y] == link.rows[X] and link.share.get(Y, 0.0) == float(link.deviation > 0.0)


def _sum(row: dict[str, float], columns: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if not row:
        return torch.zeros_like(x)
    (made,) = ops.combine([columns[name].contiguous() for name in row], [*row.values()])
    return made


def _link(who, plan, i, time, rows, level) -> Link:
    """Returns the link of an evaluation's rows."""
    own = (rows[X].get(Z1, 0.0), rows[X].get(Z2, 0.0))
    deviation = float(np.hypot(*own))
    share = {}
    for name, row in rows.items():
        other = (row.get(Z1, 0.0), row.get(Z2, 0.0))
        if name == X or not any(other):
            continue
        # x must tell the normal that the other register has.
        if 0.0 in own and deviation > 0.0 and other[own.index(0.0)] == 0.0:
            share[name] = sum(other) / sum(own)
            continue
        raise ValueError(
            f"{who}: in evaluation {i} of {plan.name} register {name} takes a normal that x does "
            "not tell, so the path of x alone has no density in closed form"
        )
    means = {
        name: {column: weight for column, weight in row.items() if column not in (Z1, Z2)}
        for name, row in rows.items()
    }
    return Link(time, means, deviation, share, level)


def _check(who: str, plan: Plan) -> None:
    """Refuses plans that a chain cannot walk through."""
    if plan.called.shape[1] > 1:
        raise ValueError(f"{who}: {plan.name} calls the network on several inputs at once")
    if not set(plan.evaluations) == set(plan.calls):
        raise ValueError(f"{who}: {plan.name} has stages that evaluate gradients alone")
    known = {X, Y, V, D, D_RAW, Z1, Z2}
    other = [name for name in plan.columns if name not in known and name[0] != "h"]
    other = [n for n in other if plan.matrix[:, :, plan.columns.index(n)].any()]
    if other:
        raise ValueError(
            f"{who}: {plan.name} weighs {', '.join(other)}, but means of a chain are sums of "
            "states and x0 estimates"
        )
    if plan.guidance is not None:
        raise ValueError(f"{who}: {plan.name} gives each call a guidance scale of its own")
    if plan.initial is not None and (plan.initial.law.by is not None or plan.evaluations[0]):
        raise ValueError(
            f"{who}: {plan.name} starts from a law that a condition picks, or adds noise before "
            "the first call, but one Gaussian law at the first call is needed"
        )
