"""The engine of multistep methods: remembered estimates, orders, the start, a corrector.

A step takes the state x_s to keep * x_s + a weighted sum of remembered estimates. Each family has
its weights. This module decides which estimates a step uses, and makes the rows.
"""

from __future__ import annotations

import operator

import numpy as np

from diffast.grids import check_grid
from diffast.plans import Plan, Stages
from diffast.schedules.clocks import time_on
from diffast.solvers.core.integrals import adams, keep, levels_at, moments

FINALS = ("clean", "falling", "full")

X = "x"  # the column of the step's state; estimates are named by the stage that made them

# In noise form, a slope from inside a step that is weighed from the step's start multiplies
# rounding (and any other error). With q the ratio of rho over the step, the factor is q (q - 1) / 2
# for a corrector (the parasitic root of PEC), and up to (q - 1)^2 and ^3 with further calls. Steps
# with a q above this number use no such slope, unless a caller needs another program's pictures.
WIDEST = 30.0

# Above this product of such factors rounding changes the noise level, which is then not checked.
LARGEST_GROWTH = 1e2

# How large weights are beside their sum: 23 for order 6 and even steps, more where steps grow fast
# and extrapolate far. Above the first number the noise level is not checked, either; above the
# second nothing but rounding is left.
CHECKED_REACH, LARGEST_REACH = 30.0, 1e10


def build(
    schedule,
    grid,
    name,
    order,
    form,
    clock,
    *,
    predict=adams,
    correct=None,
    corrected=None,
    orders=None,
    start="rise",
    final="clean",
    farthest=None,
    widest=WIDEST,
    opening=None,
    check="full",
) -> Plan:
    """Returns the plan of a multistep method: 1 call a step, and what the start adds.

    A step from s to t uses the newest orders[i] estimates, fewer where fewer are remembered or
    where the time variable of one is infinite. The step into sigma_t = 0 is the last x0 estimate
    (order 1), unless `orders` is higher there, or final="full", and the polynomial has a value
    there: data in lam or "snr" has none, nor has any form in "snr". Out of alpha_s = 0 the noise
    form has no slope: the step is Euler's of x0, and is not remembered.

    start="rise": the first steps have the orders 1, 2, 3 ... start="single": they are single steps
    of 2 or 3 calls where the full order needs that. From alpha = 0 to alpha = sigma such a run uses
    x0 as a polynomial in alpha/sigma, which is smooth there.

    Args:
        name: the plan's name, and the builder's in errors.
        order: most estimates a step uses.
        form: what is remembered, one of `integrals.FORMS`.
        clock: the time variable in which that is a polynomial, one of `integrals.CLOCKS`.
        predict: (form, clock, s, others, t) -> weights of the estimates at (s, *others).
        correct: the same for a corrector, which has t as the last of others; None: there is none.
        corrected: [N] bools, whether the state after each step is corrected.
        orders: [N] orders of the steps; None: as many as are remembered.
        final: "clean", "falling" or "full", see `check_orders`.
        farthest: how large the weights of a step may be beside their sum; where they are larger
            its order is lowered. A number above 1; None: never.
        widest: over a step that divides rho (or tau) by more than this no slope from inside of it
            is used: no corrector, no single step, no opening.
        opening: (rows, schedule, n, grid, s, t) -> whether it has added the rows of step n itself,
            after the call at s. It is called for steps that could be of `form`, without corrector.
        check: how the plan checks itself.

    Raises:
        ValueError: orders or start that do not fit; a grid that `check_grid` refuses.
    """
    grid = check_grid(schedule, grid)
    short = name.partition("(")[0]
    wanted = check_orders(short, orders, order, len(grid) - 1, final)
    single = check_choice(short, "start", start, ("rise", "single")) == "single"
    if single and orders is not None:
        raise ValueError(f"{short}: start = 'single', but it must be 'rise' where orders are given")
    walk = _Walk(schedule, grid, form, clock, single)
    walk.name, walk.order = short, order
    walk.farthest = np.inf if farthest is None else farthest
    walk.widest = widest
    steps = len(wanted)
    walk.caps = [min(order, steps - n) if final == "falling" else order for n in range(steps)]
    walk.rules = {"predict": predict, "correct": correct}
    walk.single_calls = (order - 1 if correct is None else order) if single else 0
    walk.corrected = np.zeros(len(grid), dtype=bool) if corrected is None else corrected
    for n, most in enumerate(wanted):
        walk.add_step(n, most, most == 1 or (orders is None and final != "full"), opening)
    if check == "full" and (walk.growth > LARGEST_GROWTH or walk.reach > CHECKED_REACH):
        check = "x0"
    return walk.rows.plan(schedule, grid, name, check)


class _Walk:
    """A multistep method on its way along the grid: its rows, and what it remembers."""

    def __init__(self, schedule, grid, form, clock, single):
        self.schedule, self.grid, self.clock = schedule, grid, clock
        self.levels = levels_at(schedule, grid)
        self.ways = [_way(self.levels, n, form, clock, single) for n in range(len(grid) - 1)]
        self.rows = Rows()
        self.remembered = []  # (stage, level), newest first
        self.growth = self.reach = 1.0
        self.pending = None  # the step whose end waits for its own estimate to be corrected

    def rule(self, name, ticks):
        """Returns the method's rule for weights; on another clock than its own the plain one."""
        return self.rules[name] if ticks == self.clock else adams

    def add_step(self, n, most, ends_at_x0, opening):
        """Adds the rows of step n, which uses at most so many estimates."""
        s, t, (kind, ticks) = self.levels[n], self.levels[n + 1], self.ways[n]
        if n and kind != self.ways[n - 1][0]:
            self.remembered = []
        no_value = ticks == "snr" or (kind == "data" and not np.isfinite(t.on(ticks)))
        clean = t.sigma == 0.0 and (ends_at_x0 or no_value)
        no_slope = kind == "noise" and s.alpha == 0.0
        by_x0 = kind == "data" or clean or no_slope
        i = self.rows.call(self.grid[n], s, "data" if by_x0 else kind)
        state = self._state(i, s)
        used = [(j, node) for j, node in self.remembered if np.isfinite(node.on(ticks))]
        kept = kind == "data" or not by_x0
        self.remembered = [(i, s), *self.remembered][: self.order - 1] if kept else []
        fall = _fall(kind, s, t)
        first_order = clean or no_slope or not np.isfinite(s.on(ticks))
        free = not first_order and fall <= self.widest
        calls = self._single_calls(n, len(used))
        if free and calls > 1:
            step = kind, ticks, s, t
            _single_step(self.rows, self.schedule, state, step, i, calls)
            self.growth *= max(1.0, (fall - 1.0) ** 2)
        elif free and opening and opening(self.rows, self.schedule, n, self.grid, s, t):
            self.growth *= max(1.0, (fall - 1.0) ** 3)
        elif first_order:
            form = "data" if by_x0 else kind
            rule = keep(form, s, t), moments(form, ticks, s, t, 0)
            self._add_regular(n, i, state, [], rule)
        else:
            used, predict = used[: most - 1], self.rule("predict", ticks)
            weights = predict(kind, ticks, s, [node for _, node in used], t)
            size, whole = sum(map(abs, weights)), abs(sum(weights))
            while size > self.farthest * whole:
                used = used[:-1]
                weights = predict(kind, ticks, s, [node for _, node in used], t)
                size, whole = sum(map(abs, weights)), abs(sum(weights))
            if size > LARGEST_REACH * whole:
                raise ValueError(
                    f"{self.name}: step {n}: the weights of {len(weights)} estimates in the clock "
                    f"{ticks!r} add up to {size:.1g}, but their sum is {whole:.1g}: rounding is "
                    "all that is left; take a lower order, another clock or a smoother grid"
                )
            if kind != "data":  # x0 estimates hold no noise
                self.reach = max(self.reach, size / whole)
                self.growth *= size / whole if ticks == "snr" else 1.0
            self._add_regular(n, i, state, used, (keep(kind, s, t), weights))

    def _single_calls(self, n, remembered):
        """Returns the calls of step n where it is a single step; 0 or 1: it is none."""
        if not self.single_calls or remembered + 1 >= self.order - 1:
            return 0
        return self.single_calls - (self.order - self.caps[n])

    def _state(self, i, s):
        """Returns the state at s: as it is, or corrected by its own estimate, that of stage i."""
        if self.pending is None:
            return {X: 1.0}
        kind, ticks, before, used = self.pending
        self.pending = None
        stages, nodes = zip(*used, strict=True)
        state = {X: keep(kind, before, s)}
        weights = self.rule("correct", ticks)(kind, ticks, before, [*nodes[1:], s], s)
        add_to(state, [*stages, i], weights)
        return state

    def _add_regular(self, n, i, state, used, rule):
        """Adds the one call of step n: factor times the state, weights on stages i and used."""
        s, t, (kind, ticks) = self.levels[n], self.levels[n + 1], self.ways[n]
        factor, weights = rule
        x = {key: factor * weight for key, weight in state.items()}
        add_to(x, [i, *(j for j, _ in used)], weights)
        fall = _fall(kind, s, t)
        last = n + 1 == len(self.ways)
        more = self.corrected[n] and not last and self.ways[n + 1][0] == kind
        if more and fall <= self.widest:
            self.pending = (kind, ticks, s, [(i, s), *used])
            self.growth *= max(1.0, 0.5 * fall * (fall - 1.0))
            self.rows.add(x, state, i)
        else:
            self.rows.add(x, x, i + 1)


def check_orders(name, orders, most, steps, final="clean") -> list:
    """Returns the order of each step, [steps] ints.

    Args:
        orders: [steps] ints, or None for as many as are remembered.
        most: the method's order.
        final: how a run without `orders` ends. "clean": with the full order, and with the x0
            estimate into sigma = 0. "falling": the last steps have the orders ... 3, 2, 1. "full":
            with the full order into sigma = 0 too, where the method has one there.

    Raises:
        ValueError: another count, or an order that is not a whole number from 1 to the least of
            `most` and the number of estimates remembered; another `final`, or one besides `orders`.
    """
    check_choice(name, "final", final, FINALS)
    if orders is None:
        ends = range(steps, 0, -1) if final == "falling" else [most] * steps
        return [min(most, n + 1, end) for n, end in enumerate(ends)]
    if final != "clean":
        raise ValueError(
            f"{name}: final = {final!r}, but it must be 'clean' where orders are given"
        )
    found = np.asarray(orders)
    if found.shape != (steps,):
        raise ValueError(
            f"{name}: orders has shape {list(found.shape)}, but it must be [{steps}], one a step"
        )
    for n, asked in enumerate(found.tolist()):
        if asked not in range(1, min(most, n + 1) + 1):
            raise ValueError(
                f"{name}: orders[{n}] = {asked!r}, but it must be 1 to {min(most, n + 1)}"
            )
    return [int(asked) for asked in found.tolist()]


def check_order(name, order, most) -> int:
    """Returns the order as an int; ValueError unless it is a whole number from 1 to most."""
    try:
        whole = operator.index(order)
    except TypeError:
        whole = 0
    if isinstance(order, bool) or not 1 <= whole <= most:
        raise ValueError(f"{name}: order = {order!r}, but it must be 1 to {most}")
    return whole


def check_choice(name, option, value, choices) -> str:
    """Returns the value; ValueError unless it is one of the choices."""
    if value not in choices:
        known = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: {option} = {value!r}, but it must be {known}")
    return value


def _way(levels, n, form, clock, single):
    """Returns form and time variable of step n."""
    early = n == 0 or levels[n + 1].alpha <= levels[n + 1].sigma
    has_start = form != "noise" and np.isfinite(levels[0].on(clock))
    apart = single and early and levels[0].alpha == 0.0 and not has_start
    return ("data", "snr") if apart else (form, clock)


def _fall(form, s, t):
    """Returns the ratio of the slope's variable, rho or tau, over the step; 1 for x0.

    It is infinite into sigma_t = 0, and for rho out of alpha_s = 0.
    """
    if form == "data":
        return 1.0
    low = s.scale(form) * t.sigma
    return s.sigma * t.scale(form) / low if low else np.inf


def _single_step(rows, schedule, state, step, i, calls):
    """Adds the rows of a step of 2 or 3 calls and as high an order, of this step's estimates only.

    2: the estimate at the mean of the clock over the step. 3: Radau's two nodes (the start and one
    more, exact for quadratics), after a line through the start and half way there.
    """
    form, clock, s, t = step
    whole, *rest = moments(form, clock, s, t, 2)
    zero = s.on(clock)
    ahead = [rest[0] / whole] if calls == 2 else [0.5 * rest[1] / rest[0], rest[1] / rest[0]]
    times = [float(time_on(schedule, clock, zero + gap)) for gap in ahead]
    inner = levels_at(schedule, times)

    def ends(at, stages, weights):
        row = {key: keep(form, s, at) * weight for key, weight in state.items()}
        add_to(row, stages, weights)
        return row

    rows.add(ends(inner[0], [i], moments(form, clock, s, inner[0], 0)), state, i)
    rows.call(times[0], inner[0], form)
    # y is the state from here on
    state = {X: 1.0}
    if calls == 2:
        last = ends(t, [i + 1], [whole])
    else:
        line = adams(form, clock, s, [inner[0]], inner[1])
        rows.add(ends(inner[1], [i, i + 1], line), state, i)
        rows.call(times[1], inner[1], form)
        last = ends(t, [i, i + 2], adams(form, clock, s, [inner[1]], t))
    rows.add(last, last, i + calls)


def add_to(row, keys, weights):
    """Adds weights to a row, by stage."""
    for key, weight in zip(keys, weights, strict=True):
        row[key] = row.get(key, 0.0) + weight


class Rows:
    """Rows of a plan; estimates are named by the stages that made them."""

    def __init__(self):
        """Begins without a stage."""
        self.calls, self.added = [], []

    def call(self, time, at, form):
        """Adds a network call there, remembered in that form; returns its stage."""
        rest = at.alpha if form == "noise" else at.alpha + at.sigma
        slope = {"x": 1.0 / at.sigma, "d": -rest / at.sigma}
        self.calls.append((time, {"d": 1.0} if form == "data" else slope))
        return len(self.calls) - 1

    def add(self, x, y, at):
        """Adds the rows of the newest call: of x, and of the step's state y.

        Args:
            x: row of x, {X or stage: weight}; X is the step's state before.
            y: row of y; the same row: x and y are one.
            at: the call at whose time y then stands, or the number of all calls for the end.
        """
        self.added.append((x, y, at))

    def plan(self, schedule, grid, name, check):
        """Returns the plan."""
        times = [time for time, _ in self.calls] + [grid[-1]]
        stages = Stages(schedule, grid[0])
        for i, ((time, entry), (x, y, at)) in enumerate(zip(self.calls, self.added, strict=True)):
            rows = [
                {"y" if key == X else f"h{i - key}": weight for key, weight in row.items()}
                for row in (x, y)
            ]
            y = "x" if x == y else rows[1]
            stages.add(time, times[i + 1], rows[0], y=y, y_at=times[at], h=entry)
        return stages.plan(name, len(grid) - 1, check=check)
