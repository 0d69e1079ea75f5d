"""A plan's stages as prepared `combine` calls, one by one and as one table on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from diffast.lowering import program
from diffast.lowering.program import ANCHOR, COND, INPUT, NOISE, UNCOND, X0, Row, flatten
from diffast.plan import Plan

# Tensors that a call weighs, before the slots. X0 is the estimate after a hook.
FIXED = (ANCHOR, INPUT, COND, UNCOND, NOISE, X0)
AT_ANCHOR, AT_INPUT, AT_COND, AT_UNCOND, AT_NOISE, AT_X0 = range(len(FIXED))


@dataclass(frozen=True)
class Call:
    """One stage as a `combine` call over `FIXED` and the slots.

    Args:
        columns: indices into that list of tensors.
        weights: [rows, columns] flattened: with a clamp the x0 estimate's row first (and one more
            column, the clamped row); the entry's row if there is one; the anchor's if it moves
            away from the point; the point's.
        noise: [rows, M] flattened, weights of the M fresh normals; empty if there are none.
        slot: where the entry goes; -1: there is none.
        held: the slots that hold entries when the stage begins, oldest entry first.
        parts: whether the anchor has a row of its own.
        keeps: whether the anchor stays what it was.
        x0_columns: as `columns`, for the x0 estimate alone.
        x0_weights: [columns] of the x0 estimate.
        rows: how many rows the call makes.
    """

    columns: tuple[int, ...]
    weights: list[float]
    noise: list[float]
    slot: int
    held: tuple[int, ...]
    parts: bool
    keeps: bool
    x0_columns: tuple[int, ...]
    x0_weights: list[float]
    rows: int


def calls_of(
    plan: Plan, denoiser, *, given_noise: bool = False, clamp: bool = False, hook: bool = False
) -> tuple[tuple[Call, ...], int]:
    """Returns the plan's stages as calls, [S], and the number of slots that they need.

    Args:
        plan: a solver's tables.
        denoiser: gives `affine(times)` and `scales(times)`: what the network's output says of x0.
        given_noise: the fresh normals come as a tensor, in place of the kernel's own.
        clamp: the call clamps the x0 estimate, its row 0.
        hook: the x0 estimate comes as a tensor, after something was done to it.

    Raises:
        ValueError: given noise for a plan that draws two normals a stage; what `denoiser.affine`
            and `denoiser.scales` raise.
    """
    if given_noise:
        program.check_one_noise(plan, "given noise")
    holds: dict[int, int] = {}  # stage -> slot of its entry, oldest first
    free: list[int] = []
    size = 0
    calls = []
    joined = True
    for i, stage in enumerate(program.build(plan, denoiser, fold=not (clamp or hook))):
        # In the order of the sums: slots come before a given x0 estimate and a given noise.
        index = {name: k for k, name in enumerate(FIXED[:AT_NOISE])}
        index |= {("history", j): len(FIXED) + slot for j, slot in holds.items()}
        index |= {X0: AT_X0, NOISE: AT_NOISE}
        held = tuple(holds.values())
        free += [holds.pop(j) for j in stage.forget]
        slot = -1
        rows = []
        if stage.entry is not None:
            slot = free.pop() if free else size
            size = max(size, slot + 1)
            holds[i] = slot
            rows.append(stage.entry)
        together, joined = joined, i + 1 == plan.stages or stage.anchor == stage.point
        parts = not joined and stage.anchor is not None
        rows += [stage.anchor] if parts else []
        rows.append(stage.point)
        rows = [stage.x0, *rows] if clamp else rows
        x0 = stage.x0
        if together:  # what the caller hands in is both
            rows, x0 = [_of_input(row) for row in rows], _of_input(x0)
        columns, weights, noise = flatten(rows, index, given_noise, clamp)
        x0_columns, x0_weights, _ = flatten([x0], index)
        keeps = not joined and not parts
        estimate = x0_columns, x0_weights
        calls.append(
            Call(columns, weights, noise, slot, held, parts, keeps, *estimate, rows=len(rows))
        )
    return tuple(calls), size


def _of_input(row: Row) -> Row:
    weights = {INPUT if name == ANCHOR else name: w for name, w in row.weights.items()}
    return replace(row, weights=weights)


class Table(NamedTuple):
    """Every stage of every plan, then its end, as one table on the device; R rows in all.

    Attributes:
        columns: indices of the tensors that any stage weighs.
        weights: [R, rows, columns] float64: the clamped estimate if any, slots, the anchor where
            any differs, the point; with a clamp one more column.
        noise: [R, rows, M] float64, the most that any stage draws; or None.
        x0_columns, x0: the same for the x0 estimate alone, [R, 1, columns].
        words: [R] int64, the stage in its plan: the noise's counter word.
        following: [R] int64, the next row; an end follows itself.
        times: [R] float64.
        ended: [R] bool.
    """

    columns: tuple[int, ...]
    weights: torch.Tensor
    noise: torch.Tensor | None
    x0_columns: tuple[int, ...]
    x0: torch.Tensor
    words: torch.Tensor
    following: torch.Tensor
    times: torch.Tensor
    ended: torch.Tensor


def _noise_rows(call: Call) -> np.ndarray:
    """Returns [rows, M] of a call's noise, zeros [rows, 1] where it has none."""
    return np.reshape(call.noise or [0.0] * call.rows, (call.rows, -1))


def make_table(calls, first, times, slots: int, parts: bool, clamp: bool, device) -> Table:
    """Returns the table of all calls; None among them is a plan's end.

    Its slots hold the oldest entry first, at every stage: so the sums of samples at different
    stages, which all run over the slots in order, add up as those of a call of its own do.

    Args:
        calls: every plan's calls, each plan's followed by None.
        first: each plan's first row.
        times: [R] model times.
        slots: how many slots the calls need.
        parts: whether any anchor differs from its point.
        clamp: whether the x0 estimate's row comes first.
        device: where the samples are.
    """
    real = [call for call in calls if call is not None]
    hidden, parts = int(clamp), int(parts)
    used = {AT_ANCHOR, AT_INPUT, *(k for call in real for k in call.columns)}
    used |= {len(FIXED) + slot for slot in range(slots)}
    late = (AT_X0, AT_NOISE)  # in the order of the sums, see `calls_of`
    columns = (*sorted(used - {*late}), *(k for k in late if k in used))
    x0_columns = tuple(sorted({k for call in real for k in call.x0_columns}))
    at = {k: n for n, k in enumerate(columns)}
    count, rows = len(calls), hidden + slots + parts + 1
    weights = np.zeros((count, rows, len(columns) + hidden))
    drawn = {id(call): _noise_rows(call) for call in real}
    noise = np.zeros((count, rows, max((n.shape[1] for n in drawn.values()), default=1)))
    x0 = np.zeros((count, 1, len(x0_columns)))
    words, following = np.zeros(count, dtype=np.int64), np.arange(count)
    for row, call in enumerate(calls):
        words[row] = row - max(begin for begin in first if begin <= row)
        if call is None:
            for age in range(slots):
                weights[row, hidden + age, at[len(FIXED) + age]] = 1.0
            weights[row, -1, at[AT_INPUT]] = 1.0
            if parts:
                weights[row, -2, at[AT_ANCHOR]] = 1.0
            continue
        following[row] += 1
        ages = {len(FIXED) + slot: len(FIXED) + age for age, slot in enumerate(call.held)}
        after = () if calls[row + 1] is None else calls[row + 1].held
        for age, slot in enumerate(after):
            if slot != call.slot:
                weights[row, hidden + age, at[ages[len(FIXED) + slot]]] = 1.0
        for k, weight in zip(call.x0_columns, call.x0_weights, strict=True):
            x0[row, 0, x0_columns.index(k)] = weight
        targets = [0] * hidden + ([hidden + len(after) - 1] if call.slot >= 0 else [])
        targets += ([rows - 2] if call.parts else []) + [rows - 1]
        places = [at[ages.get(k, k)] for k in call.columns] + [len(columns)] * hidden
        fresh = drawn[id(call)]
        for n, target in enumerate(targets):
            weights[row, target] = 0.0
            weights[row, target, places] = call.weights[n * len(places) : (n + 1) * len(places)]
            noise[row, target, : fresh.shape[1]] = fresh[n]
        if parts and call.keeps:
            weights[row, -2, at[AT_ANCHOR]] = 1.0
        elif parts and not call.parts:
            weights[row, -2], noise[row, -2] = weights[row, -1], noise[row, -1]

    def put(array):
        return torch.from_numpy(array).to(device)

    return Table(
        columns,
        put(weights),
        put(noise) if noise.any() else None,
        x0_columns,
        put(x0),
        put(words),
        put(following),
        put(np.array(times, dtype=np.float64)),
        put(np.array([call is None for call in calls])),
    )
