"""What a Plan refuses: wrong shapes, numbers out of bounds, matrices that contradict themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffast.plan.registers import (
    ERROR,
    NEW,
    ROWS,
    Z1,
    Z2,
    H,
    V,
    X,
    Y,
    column_key,
    input_number,
    input_register,
    levels_of,
)
from diffast.plan.unroll import propagate

if TYPE_CHECKING:
    from diffast.plan.plan import Plan

# Largest allowed gap between what a row holds of x0 and alpha, over the sum of |weight * input| of
# the row. Checked row by row, so no rounding adds up: all solvers stay below 2.3e-16.
TOLERANCE_X0 = 5e-14

# The same for noise level and sigma, over the whole run: all stay below 9e-15 at 1,000 stages.
TOLERANCE_NOISE = 2e-12

# A noise weight below this share of the row's noise shows in its variance only as 1e-10 and less:
# no solver means that, so it is refused as a slip rather than drowned in the tolerance. An entry
# may hold no other noise: there it is the share of all that its row weighs.
LEAST_NOISE = 1e-5

CHECKS = ("full", "x0", "finite")


def check_shapes(plan: Plan) -> None:
    """Raises ValueError if an array has the wrong shape, or an option or a name is unknown."""

    def refuse(field, array, want):
        raise ValueError(
            f"Plan {plan.name}: {field} has shape {list(array.shape)}, but it must be {want}"
        )

    if plan.check not in CHECKS:
        raise ValueError(
            f"Plan {plan.name}: check = {plan.check!r}, but it must be one of {', '.join(CHECKS)}"
        )
    if plan.times.ndim not in (1, 2) or not plan.times.size:
        refuse("times", plan.times, "[S] or [S, E], S >= 1")
    _check_names(plan)
    stages, names = len(plan.times), len(plan.rows)
    wanted = {
        "matrix": (stages, names, len(plan.columns)),
        "levels": (stages, names, 2),
        "spans": (stages, 2),
    }
    for field, want in wanted.items():
        array = getattr(plan, field)
        if array is not None and array.shape != want:
            refuse(field, array, list(want))
    if plan.blocks is not None and plan.blocks.ndim != 1:
        refuse("blocks", plan.blocks, "[B]")
    _check_calls(plan)


def _check_names(plan: Plan) -> None:
    if plan.rows != tuple(name for name in ROWS if name in plan.rows) or X not in plan.rows:
        raise ValueError(
            f"Plan {plan.name}: rows = {plan.rows}, but they must be x and others of {ROWS}, in "
            "this order"
        )
    keys = [column_key(name) for name in plan.columns]
    if keys != sorted(set(keys)):
        raise ValueError(f"Plan {plan.name}: columns = {plan.columns}, but they must be in order")
    inputs = [input_register(e) for e in range(plan.called.shape[1])]
    for name in (*inputs, Y, V):
        if (name in plan.rows) != (name in plan.columns):
            where = "a row" if name in plan.rows else "a column"
            raise ValueError(f"Plan {plan.name}: {name} is {where} alone, but it must be both")
    for name in inputs:
        if name not in plan.rows:
            raise ValueError(f"Plan {plan.name}: the network is called on {name}, but no row is")


def _check_calls(plan: Plan) -> None:
    if not plan.nfe or (plan.called[:, 1:] > plan.called[:, :1]).any():
        inputs = [input_register(e) for e in range(plan.called.shape[1])]
        raise ValueError(
            f"Plan {plan.name}: the stages call the network on {plan.called.sum(0).tolist()} of "
            f"{inputs}, but one must call it, and on x before any other"
        )
    if not 1 <= plan.steps <= plan.nfe:
        raise ValueError(f"Plan {plan.name}: {plan.steps} steps, but {plan.nfe} network calls")


def check_numbers(plan: Plan) -> None:
    """Raises ValueError for a number that is not finite, or a time or index out of bounds."""
    stages = plan.stages
    low, high = getattr(plan.schedule, "domain", (-np.inf, np.inf))
    calls = enumerate(plan.times.reshape(stages, -1).tolist())
    told = [(f"stage {i}", t) for i, times in calls for t in times]
    for where, t in [*told, ("end", plan.end), ("start", plan.start)]:
        calls_nothing = where.startswith("stage") and np.isnan(t)
        if not calls_nothing and not (np.isfinite(t) and low <= t <= high):
            raise ValueError(
                f"Plan {plan.name}: {where}: t = {t}, but the schedule holds for {low} to {high}"
            )
    if plan.blocks is not None:
        _check_blocks(plan)
    for field, array in (("matrix", plan.matrix), ("spans", np.asarray(plan.spans))):
        bad = ~np.isfinite(array)
        if bad.any():
            i, *k = (int(n) for n in np.argwhere(bad)[0])
            where = f"{field}{k}"
            if field == "matrix":
                where = f"weight of {plan.columns[k[1]]} in {plan.rows[k[0]]}"
            raise ValueError(f"Plan {plan.name}: stage {i}: {where} = {array[(i, *k)]}")
    _check_levels(plan)
    _check_unwritten(plan)


def _check_levels(plan):
    for r, name in enumerate(plan.rows):
        if name == H:
            continue
        bad = ~np.isfinite(plan.levels[:, r]).all(1) & (plan.matrix[:, r].any(1) | (name == X))
        if bad.any():
            i = int(np.argmax(bad))
            alpha, sigma = plan.levels[i, r]
            raise ValueError(
                f"Plan {plan.name}: stage {i}: alpha = {alpha}, sigma = {sigma} for {name}, but "
                "they must be finite"
            )


def _check_blocks(plan):
    blocks = plan.blocks
    if not (blocks.size and blocks[0] == 0 and (np.diff(blocks) > 0).all()):
        raise ValueError(
            f"Plan {plan.name}: blocks = {blocks.tolist()}, but they must start with 0 and rise"
        )
    if blocks[-1] >= plan.nfe:
        raise ValueError(
            f"Plan {plan.name}: a block begins at call {blocks[-1]}, but there are {plan.nfe}"
        )


def _check_unwritten(plan: Plan) -> None:
    """Refuses weights on what holds nothing: early entries, estimates without a call, old v."""
    made = 0
    holds = {X, Y}
    used = plan.matrix != 0.0
    for i in range(plan.stages):
        inputs = [input_register(e) for e in np.flatnonzero(plan.called[i]).tolist()]
        for name in inputs:
            if name not in holds:
                raise ValueError(
                    f"Plan {plan.name}: stage {i}: the network is called on {name}, but it holds "
                    "nothing"
                )
        entry = H in plan.rows and bool(used[i, 0].any())
        for c in np.flatnonzero(used[i].any(0)).tolist():
            r, column = int(np.argmax(used[i, :, c])), plan.columns[c]
            reason = _unwritten(column, inputs, holds, made, entry, plan.rows[r] == H)
            if reason:
                raise ValueError(
                    f"Plan {plan.name}: stage {i}: {plan.rows[r]} has weight "
                    f"{plan.matrix[i, r, c]} on {column}, but {reason}"
                )
        made += entry
        for r, name in enumerate(plan.rows):
            if name not in (H, X, ERROR):
                (holds.add if used[i, r].any() else holds.discard)(name)


def _unwritten(column: str, inputs, holds, made: int, entry: bool, own: bool) -> str | None:
    """Returns why a column holds nothing; None: it does.

    Args:
        column: its name.
        inputs: what the stage calls the network on.
        holds: the registers that hold something.
        made: how many entries there are.
        entry: whether the stage makes one.
        own: whether the row that weighs the column is that of the entry.
    """
    kind = column[0]
    if kind in "dg":
        needed = input_register(input_number(column) if kind == "d" else 0)
        on = "" if needed == X else f" on {needed}"
        return None if needed in inputs else f"the stage calls no network{on}"
    if column == NEW:
        if not entry:
            return "the stage makes no entry"
        return "an entry is not made of itself" if own else None
    if kind == "h":
        return None if int(column[1:]) <= made else f"{made} exist before it"
    return "it holds nothing" if kind in "xyv" and column not in holds else None


def check_consistent(plan: Plan) -> None:
    """Raises ValueError for a row that would not reproduce a known x0 and its noise level.

    x0 is checked row by row from what each input ought to hold: so it gathers no rounding from the
    rows before. Noise is propagated through the whole run: two registers may share some of it.
    """
    if plan.check == "finite":
        return
    _check_end(plan)
    holds = _Held(plan)
    _check_x0(plan, holds)
    if plan.check == "full":
        _check_noise(plan, holds)


def _check_end(plan: Plan) -> None:
    """Refuses a last x that stands elsewhere than at the plan's end."""
    wanted, stands = levels_of(plan.schedule, plan.end), plan.levels[-1, plan.rows.index(X)]
    wrong = ~(np.abs(stands - wanted) <= TOLERANCE_NOISE * np.abs(wanted))
    for k, name in enumerate(("alpha", "sigma")[: 2 if plan.check == "full" else 1]):
        if wrong[k]:
            raise ValueError(
                f"Plan {plan.name}: end: the last x has {name} = {float(stands[k])!r}, but at t = "
                f"{plan.end} it is {float(wanted[k])!r}"
            )


class _Held:
    """What the columns of each stage ought to hold of x0, and how much noise: [S, C] each.

    Entries hold what their row makes of the levels. `size` sums magnitudes for an entry: what its
    rounding is relative to.
    """

    def __init__(self, plan: Plan):
        stages, names = plan.stages, plan.columns
        self.x0, self.size = np.zeros((stages, len(names))), np.zeros((stages, len(names)))
        self.noise = np.zeros((stages, len(names)))
        start = levels_of(plan.schedule, plan.start)
        if not np.isfinite(start).all():
            raise ValueError(
                f"Plan {plan.name}: start: alpha = {start[0]}, sigma = {start[1]} at t = "
                f"{plan.start}"
            )
        self.start = start
        for c, name in enumerate(names):
            if name[0] in "xyv":
                before = np.vstack([start, plan.levels[:-1, plan.rows.index(name)]])
                before = np.nan_to_num(before)
                self.x0[:, c], self.noise[:, c] = before[:, 0], np.abs(before[:, 1])
            elif name[0] == "d":
                self.x0[:, c] = plan.called[:, input_number(name)]
            elif name in (Z1, Z2):
                self.noise[:, c] = 1.0
            self.size[:, c] = np.abs(self.x0[:, c])
        if H in plan.rows:
            self._fill_entries(plan)

    def _fill_entries(self, plan: Plan) -> None:
        row = plan.matrix[:, 0]
        old = {c: int(n[1:]) for c, n in enumerate(plan.columns) if n[0] == "h"}
        made: list[np.ndarray] = []  # (x0, size, noise) of entries, newest first
        for i in range(plan.stages):
            for c, age in old.items():
                if 0 < age <= len(made):
                    self.x0[i, c], self.size[i, c], self.noise[i, c] = made[age - 1]
            if not row[i].any():
                continue
            weights = np.abs(row[i])
            entry = np.array([row[i] @ self.x0[i], weights @ self.size[i], weights @ self.noise[i]])
            for c, age in old.items():
                if age == 0:
                    self.x0[i, c], self.size[i, c], self.noise[i, c] = entry
            made.insert(0, entry)
            del made[max(old.values(), default=0) :]


def _checked_rows(plan):
    """Yields (register, its rows [S, C], whether it holds something [S], its levels [S, 2])."""
    for r, name in enumerate(plan.rows):
        if name == H:
            continue
        rows = plan.matrix[:, r]
        levels = plan.levels[:, r]
        written = rows.any(1) if name != X else np.ones(plan.stages, dtype=bool)
        yield name, rows, written, levels


def _check_x0(plan, holds):
    for name, rows, written, levels in _checked_rows(plan):
        has, scale = _dot(rows, holds.x0), _dot(np.abs(rows), holds.size)
        want = levels[:, 0]
        wrong = written & ~(np.abs(has - want) <= TOLERANCE_X0 * scale)
        if wrong.any():
            _refuse(plan, name, wrong, "x0 with weight", has, "alpha", want)


def _check_noise(plan, holds):
    unrolled = propagate(plan, estimates=False)
    for name, rows, written, levels in _checked_rows(plan):
        made = unrolled[name]
        has = np.sqrt((holds.start[1] * made[:, 0]) ** 2 + _dot(made[:, 1:], made[:, 1:]))
        scale, want = _dot(np.abs(rows), holds.noise), levels[:, 1]
        wrong = written & ~(np.abs(has - want) <= TOLERANCE_NOISE * scale)
        if wrong.any():
            _refuse(plan, name, wrong, "noise of level", has, "sigma", want)
        _check_least(plan, name, rows, scale)
    if H in plan.rows:
        rows = np.abs(plan.matrix[:, 0])
        _check_least(plan, H, rows, _dot(rows, holds.size + holds.noise))


def _check_least(plan, name, rows, scale):
    """Refuses fresh noise so small beside the scale [S] of its row that it must be a slip."""
    for z in (Z1, Z2):
        if z not in plan.columns:
            continue
        fresh, least = np.abs(rows[:, plan.columns.index(z)]), LEAST_NOISE * scale
        wrong = (fresh > 0) & (fresh < least)
        if wrong.any():
            _refuse(plan, name, wrong, "fresh noise of weight", fresh, "0 or at least", least)


def _refuse(plan: Plan, name: str, wrong: np.ndarray, what: str, has: Any, other: str, want: Any):
    i = int(np.argmax(wrong))
    raise ValueError(
        f"Plan {plan.name}: stage {i}: {name} holds {what} {float(has[i])!r}, but it must be "
        f"{other} = {float(want[i])!r}"
    )


def _dot(a, b):
    return np.einsum("ij,ij->i", a, b)
