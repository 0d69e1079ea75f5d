"""Checks of a plan: shapes, bounds of numbers, and consistency of the matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffast.plans.registers import (
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
from diffast.plans.unroll import noise_of

if TYPE_CHECKING:
    from diffast.plans.plan import Plan

# Largest allowed gap between what a row holds of x0 and alpha, over the sum of |weight * input| of
# the row. Checked row by row, so no rounding adds up: all solvers stay below 2.3e-16.
TOLERANCE_X0 = 5e-14

# The same for noise level and sigma. Row by row all solvers stay below 4.5e-16; over the whole run,
# for plans that draw noise, all stay below 9e-15 at 1,000 stages.
TOLERANCE_NOISE = 2e-12

# A noise weight below this share of the row's noise changes the variance by 1e-10 or less. No
# solver needs such a weight, and the tolerance would hide it, so it is refused. Entries may hold no
# other noise: there it is the share of all that the row weighs.
LEAST_NOISE = 1e-5

CHECKS = ("full", "x0", "finite")

# Columns of entries up to this age may stand in a plan of any length, weighed by nobody.
LEAST_AGE = 64


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
        "guidance": plan.times.shape,
        "gradients": (stages,),
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
    _check_ages(plan)
    keys = [column_key(name) for name in plan.columns]
    if keys != sorted(set(keys)):
        raise ValueError(f"Plan {plan.name}: columns = {plan.columns}, but they must be in order")
    inputs = _inputs(plan)
    for name in (*inputs, Y, V):
        if (name in plan.rows) != (name in plan.columns):
            where = "a row" if name in plan.rows else "a column"
            raise ValueError(f"Plan {plan.name}: {name} is {where} alone, but it must be both")
    for name in inputs:
        if name not in plan.rows:
            raise ValueError(f"Plan {plan.name}: the network is called on {name}, but no row is")


def _check_ages(plan: Plan) -> None:
    """Refuses columns of entries that are older than any run, for a run holds a place for each."""
    most = max(LEAST_AGE, len(plan.times) + _given(plan))
    for name in plan.columns:
        age = name[1:]
        if name[:1] == "h" and age.isdecimal() and (len(age) > 9 or int(age) > most):
            raise ValueError(
                f"Plan {plan.name}: a column is {name[:20]}, but with {len(plan.times)} stages "
                f"entries are at most {most} stages old"
            )


def _check_calls(plan: Plan) -> None:
    if not plan.nfe or (plan.called[:, 1:] > plan.called[:, :1]).any():
        raise ValueError(
            f"Plan {plan.name}: the stages call the network on {plan.called.sum(0).tolist()} of "
            f"{_inputs(plan)}, but one must call it, and on x before any other"
        )
    if not 1 <= plan.steps <= plan.nfe:
        raise ValueError(f"Plan {plan.name}: {plan.steps} steps, but {plan.nfe} network calls")


def _inputs(plan: Plan) -> list[str]:
    """Returns the registers that the network is called on: x, x2 .."""
    return [input_register(e) for e in range(plan.called.shape[1])]


def check_numbers(plan: Plan) -> None:
    """Raises ValueError for a number that is not finite, or a time or index out of bounds."""
    _check_times(plan)
    if plan.blocks is not None:
        _check_blocks(plan)
    if plan.guidance is not None:
        _check_guidance(plan)
    if plan.gradients is not None:
        _check_gradients(plan)
    for field, array in (("matrix", plan.matrix), ("spans", np.asarray(plan.spans))):
        if np.isfinite(array).all():
            continue
        i, *k = (int(n) for n in np.argwhere(~np.isfinite(array))[0])
        where = f"{field}{k}"
        if field == "matrix":
            where = f"weight of {plan.columns[k[1]]} in {plan.rows[k[0]]}"
        raise ValueError(f"Plan {plan.name}: stage {i}: {where} = {array[(i, *k)]}")
    _check_levels(plan)
    _check_inputs(plan)
    _check_unwritten(plan)


def _check_times(plan: Plan) -> None:
    low, high = getattr(plan.schedule, "domain", (-np.inf, np.inf))
    inputs = plan.called.shape[1]
    times = np.append(plan.times, (plan.end, plan.start))
    fine = np.isfinite(times) & (low <= times) & (times <= high)
    fine[:-2] |= np.isnan(times[:-2])  # no call
    if not fine.all():
        k = int(np.argmin(fine))
        where = f"stage {k // inputs}" if k < len(times) - 2 else ("end", "start")[k - len(times)]
        raise ValueError(
            f"Plan {plan.name}: {where}: t = {times[k]}, but the schedule holds for {low} to {high}"
        )


def _check_levels(plan):
    told = [r for r, name in enumerate(plan.rows) if name != H]
    bad = ~np.isfinite(plan.levels[:, told]).all(axis=2)
    bad &= plan.matrix[:, told].any(axis=2) | (np.array(plan.rows)[told] == X)
    if bad.any():
        k = int(np.argmax(bad.any(axis=0)))
        i = int(np.argmax(bad[:, k]))
        alpha, sigma = plan.levels[i, told[k]].tolist()
        raise ValueError(
            f"Plan {plan.name}: stage {i}: alpha = {alpha}, sigma = {sigma} for "
            f"{plan.rows[told[k]]}, but they must be finite"
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


def _check_guidance(plan: Plan) -> None:
    """Refuses a scale that is not finite, or one where no call is made."""
    scales = plan.guidance.reshape(plan.stages, -1)
    wrong = np.argwhere(np.where(plan.called, ~np.isfinite(scales), ~np.isnan(scales)))
    if len(wrong):
        i, e = (int(n) for n in wrong[0])
        reason = "it must be finite" if plan.called[i, e] else "the stage does not call the network"
        raise ValueError(
            f"Plan {plan.name}: stage {i}: guidance = {scales[i, e]} for {_inputs(plan)[e]}, but "
            f"{reason}"
        )


def _check_gradients(plan: Plan) -> None:
    """Refuses a told time of a gradient that is infinite, or outside the schedule."""
    low, high = getattr(plan.schedule, "domain", (-np.inf, np.inf))
    told = plan.gradients
    wrong = ~np.isnan(told) & ~(np.isfinite(told) & (low <= told) & (told <= high))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"Plan {plan.name}: stage {i}: the gradients are told t = {told[i]}, but the schedule "
            f"holds for {low} to {high}"
        )


def _check_inputs(plan: Plan) -> None:
    """Refuses calls on what holds nothing."""
    for e, name in enumerate(_inputs(plan)):
        wrong = plan.called[:, e] & ~_holds(plan, name)
        if wrong.any():
            raise ValueError(
                f"Plan {plan.name}: stage {int(np.argmax(wrong))}: the network is called on "
                f"{name}, but it holds nothing"
            )


def _check_unwritten(plan: Plan) -> None:
    """Refuses weights on what holds nothing: early entries, estimates without a call, old v."""
    weighed = plan.matrix.any(axis=1)
    entry = _makes_entry(plan)
    made = np.cumsum(entry) - entry + _given(plan)
    wrong = weighed & ~np.stack([_readable(plan, c, entry, made) for c in plan.columns], axis=1)
    if not wrong.any():
        return
    i, c = (int(n) for n in np.argwhere(wrong)[0])
    r, column = int(np.argmax(plan.matrix[i, :, c] != 0.0)), plan.columns[c]
    reason = "it holds nothing"
    if column[0] == "d":
        needed = input_register(input_number(column))
        reason = "the stage calls no network" + (f" on {needed}" if needed != X else "")
    elif column[0] == "g":
        reason = "the stage evaluates no gradient"
    elif column == NEW:
        reason = "an entry is not made of itself" if entry[i] else "the stage makes no entry"
    elif column[0] == "h":
        reason = f"{made[i]} exist before it"
    raise ValueError(
        f"Plan {plan.name}: stage {i}: {plan.rows[r]} has weight {plan.matrix[i, r, c]} on "
        f"{column}, but {reason}"
    )


def _given(plan: Plan) -> int:
    """Returns how many entries there are before the first stage."""
    return 0 if plan.initial is None else plan.initial.entries


def _makes_entry(plan: Plan) -> np.ndarray:
    """Returns whether each stage makes an entry, [S]."""
    return plan.matrix[:, 0].any(axis=1) & (H in plan.rows)


def _holds(plan: Plan, register: str) -> np.ndarray:
    """Returns whether a register holds something when each stage begins, [S]."""
    written = plan.matrix[:-1, plan.rows.index(register)].any(axis=1) | (register == X)
    return np.append(register in (X, Y), written)


def _readable(plan: Plan, column: str, entry: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Returns whether each stage may weigh a column, [S].

    `entry` is whether each stage makes an entry, `made` how many there are before it, [S].
    """
    if column[0] == "d":
        return plan.called[:, input_number(column)]
    if column[0] == "g":
        return ~np.isnan(plan.gradients)
    if column == NEW:
        return entry & (plan.matrix[:, 0, plan.columns.index(NEW)] == 0.0)
    if column[0] == "h":
        return made >= int(column[1:])
    return _holds(plan, column) if column[0] in "xyv" else np.ones(plan.stages, dtype=bool)


def check_consistent(plan: Plan) -> None:
    """Raises ValueError for a row that would not reproduce a known x0 and its noise level.

    x0 is checked row by row from what each input ought to hold: so it gathers no rounding from the
    rows before. So is the noise of a plan that draws none: every register then holds its level of
    one and the same noise, that of the initial state. Where a plan draws noise two registers may
    share some of it, and noise is propagated through the whole run.
    """
    if plan.check == "finite":
        return
    start, end = levels_of(plan.schedule, (plan.start, plan.end))
    if not np.isfinite(start).all():
        raise ValueError(
            f"Plan {plan.name}: start: alpha = {start[0]}, sigma = {start[1]} at t = {plan.start}"
        )
    _check_end(plan, end)
    holds = _Held(plan, start)
    _check_x0(plan, holds)
    if plan.check == "full":
        _check_noise(plan, holds)


def _check_end(plan: Plan, wanted: np.ndarray) -> None:
    """Refuses a last x that stands elsewhere than at the plan's end, whose level is wanted."""
    stands = plan.levels[-1, plan.rows.index(X)]
    wrong = ~(np.abs(stands - wanted) <= TOLERANCE_NOISE * np.abs(wanted))
    for k, name in enumerate(("alpha", "sigma")[: 2 if plan.check == "full" else 1]):
        if wrong[k]:
            raise ValueError(
                f"Plan {plan.name}: end: the last x has {name} = {float(stands[k])!r}, but at t = "
                f"{plan.end} it is {float(wanted[k])!r}"
            )


class _Held:
    """What the columns of each stage ought to hold of x0 and of noise, [S, C] each.

    Entries hold what their row makes of the levels. `size` and `loud` are the same with magnitudes
    of weights and levels: what rounding is relative to.
    """

    def __init__(self, plan: Plan, start: np.ndarray):
        self.start = start
        self.x0, self.noise = np.zeros((2, plan.stages, len(plan.columns)))
        for c, name in enumerate(plan.columns):
            if name[0] in "xyv":
                before = plan.levels[:-1, plan.rows.index(name)]
                self.x0[:, c], self.noise[:, c] = np.vstack([start, before]).T
            elif name[0] == "d":
                self.x0[:, c] = plan.called[:, input_number(name)]
            elif name in (Z1, Z2):
                self.noise[:, c] = 1.0
        np.nan_to_num(self.x0, copy=False)  # of registers that hold nothing
        np.nan_to_num(self.noise, copy=False)
        self.size, self.loud = np.abs(self.x0), np.abs(self.noise)
        if H in plan.rows:
            self._fill_entries(plan)

    def _fill_entries(self, plan: Plan) -> None:
        ages = {int(name[1:]): c for c, name in enumerate(plan.columns) if name[0] == "h"}
        new = ages.pop(0, None)
        made = np.flatnonzero(_makes_entry(plan))
        before = np.searchsorted(made, np.arange(plan.stages)) + _given(plan)  # how many there are
        row = plan.matrix[made, 0]
        # Entries that weigh others come one after another, all others at once.
        one_by_one = row[:, [*ages.values()]].any()
        x0, noise = np.zeros((2, 0)) if plan.initial is None else plan.initial.known()
        for held, weights, given in (
            (self.x0, row, x0),
            (self.size, np.abs(row), np.abs(x0)),
            (self.noise, row, noise),
            (self.loud, np.abs(row), np.abs(noise)),
        ):
            entries = np.append(given, np.zeros(len(made)))
            if one_by_one:
                for n, i in enumerate(made.tolist(), len(given)):
                    for age, c in ages.items():
                        held[i, c] = entries[n - age] if age <= n else 0.0
                    entries[n] = weights[n - len(given)] @ held[i]
            else:
                entries[len(given) :] = _dot(weights, held[made])
            for age, c in ages.items():
                known = np.flatnonzero(before >= age)
                held[known, c] = entries[before[known] - age]
            if new is not None:
                held[made, new] = entries[len(given) :]


def _checked_rows(plan):
    """Yields (register, its rows [S, C], whether it holds something [S], its levels [S, 2])."""
    for r, name in enumerate(plan.rows):
        if name != H:
            rows = plan.matrix[:, r]
            yield name, rows, rows.any(1) | (name == X), plan.levels[:, r]


def _check_x0(plan, holds):
    for name, rows, written, levels in _checked_rows(plan):
        has, scale = _dot(rows, holds.x0), _dot(np.abs(rows), holds.size)
        want = levels[:, 0]
        wrong = written & ~(np.abs(has - want) <= TOLERANCE_X0 * scale)
        _refuse(plan, name, wrong, "x0 with weight", has, "alpha", want)


def _check_noise(plan, holds):
    scales = _noise_scales(plan, holds)
    if not _keeps_noise(plan, holds, scales):
        _check_unrolled_noise(plan, holds, scales)
    for name, rows, _, _ in _checked_rows(plan):
        _check_least(plan, name, rows, scales[name])
    if H in plan.rows:
        rows = np.abs(plan.matrix[:, 0])
        _check_least(plan, H, rows, _dot(rows, holds.size + holds.loud))


def _keeps_noise(plan: Plan, holds: _Held, scales: dict[str, np.ndarray]) -> bool:
    """Returns whether no stage draws noise and each row turns the levels it weighs into its own.

    By induction every register then holds its level times the noise of the initial state, whatever
    the rows' condition: methods on slopes that extrapolate far multiply each other's rounding by
    up to 1e6 in a few large steps, and are right nevertheless.
    """
    if plan.stochastic:
        return False
    for name, rows, written, levels in _checked_rows(plan):
        gap = np.abs(_dot(rows, holds.noise) - levels[:, 1])
        if (written & ~((gap <= TOLERANCE_NOISE * scales[name]) & (levels[:, 1] >= 0.0))).any():
            return False
    return True


def _check_unrolled_noise(plan: Plan, holds: _Held, scales: dict[str, np.ndarray]) -> None:
    """Refuses a row whose noise, of all sources of the run before it, is not that of its level."""
    unrolled = noise_of(plan)
    for name, _, written, levels in _checked_rows(plan):
        has = np.hypot(holds.start[1] * unrolled[name][:, 0], unrolled[name][:, 1])
        scale, want = scales[name], levels[:, 1]
        wrong = written & ~(np.abs(has - want) <= TOLERANCE_NOISE * scale)
        _refuse(plan, name, wrong, "noise of level", has, "sigma", want)


def _noise_scales(plan: Plan, holds: _Held) -> dict[str, np.ndarray]:
    """Returns for each register the noise that the terms of its row hold, [S].

    A stage of gradients alone that keeps a state, or takes a mean of states at one level, holds
    their rounding too: it has the scale of the stage before it.
    """
    found = {name: _dot(np.abs(rows), holds.loud) for name, rows, _, _ in _checked_rows(plan)}
    if plan.gradients is None:
        return found
    content = np.stack([holds.x0, holds.noise], axis=-1)
    alone = ~plan.called.any(axis=1) & ~np.isnan(plan.gradients)
    checked = list(_checked_rows(plan))
    alone[0] = False  # there is no stage before it
    for i in np.flatnonzero(alone).tolist():
        before = max(scale[i - 1] for scale in found.values())
        for name, rows, _, levels in checked:
            weighed = (rows[i] != 0.0) & content[i].any(axis=1)
            same = (content[i, weighed] == levels[i]).all() and (rows[i, weighed] > 0.0).all()
            if same and rows[i, weighed].sum() == 1.0:
                found[name][i] = max(found[name][i], before)
    return found


def _check_least(plan, name, rows, scale):
    """Refuses fresh noise so small beside the scale [S] of its row that it must be a slip."""
    for z in (Z1, Z2):
        if z in plan.columns:
            fresh, least = np.abs(rows[:, plan.columns.index(z)]), LEAST_NOISE * scale
            wrong = (fresh > 0) & (fresh < least)
            _refuse(plan, name, wrong, "fresh noise of weight", fresh, "0 or at least", least)


def _refuse(plan: Plan, name: str, wrong: np.ndarray, what: str, has: Any, other: str, want: Any):
    """Refuses the first stage that is wrong, if any."""
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"Plan {plan.name}: stage {i}: {name} holds {what} {float(has[i])!r}, but it must be "
            f"{other} = {float(want[i])!r}"
        )


def _dot(a, b):
    return np.einsum("ij,ij->i", a, b)
