"""Attempts of adaptive samples as tables of weights: every sample's own, for one call of an op.

A pair's rows (diffast/solvers/pairs) name what they weigh. Here the x0 estimate d is written out as
what the network was given and what it answered, the noise z as what is known of the path, and rows
of samples at different stages are put into one table [B, rows, columns].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.solvers.embedded import Nodes, Pair
from diffast.solvers.embedded.bridge import HELD, NEW, bridge, increment

# Tensors that rows weigh, in the order of the sums; entries and slots are numbered.
COND, UNCOND, X0, NOISE = "cond", "uncond", "x0", "noise"
SLOT = "slot"


class Table(NamedTuple):
    """A table for `combine` or `combine_error`.

    Attributes:
        columns: names of the tensors it weighs.
        weights: [B, rows, columns] float64.
        noise: [B, rows, 1] float64 weights of fresh normals, or None.
    """

    columns: tuple[str, ...]
    weights: torch.Tensor
    noise: torch.Tensor | None


def order_of(pair: Pair, slots: int) -> tuple[str, ...]:
    """Returns the names of all tensors that a pair's rows may weigh, in the order of the sums."""
    held = ("x", *pair.keeps, *pair.entries)
    return (*held, "point", COND, UNCOND, X0, HELD, NEW, *slot_names(slots), NOISE)


def slot_names(slots: int) -> tuple[str, ...]:
    """Returns the names of the remembered points."""
    return tuple(f"{SLOT}{k}" for k in range(slots))


def move_rows(pair: Pair, xp, stage: int, nodes: Nodes) -> dict[str, dict]:
    """Returns the rows of what is changed after a stage's call, by name.

    Stage 0 is the call at the state itself, the last one the one that the decision follows.
    """
    if stage == pair.calls:
        return pair.states(xp, nodes)
    return {f"e{stage}": pair.entry(xp, nodes.call)}


def is_copy(row: dict) -> bool:
    """Returns whether the row is the model input itself."""
    return set(row) == {"point"} and isinstance(row["point"], float) and row["point"] == 1.0


class Layout(NamedTuple):
    """What is written where.

    Attributes:
        proposals: number of tensors that hold what may be moved.
        moves: (stage, source name, target name); sources are "point" or "proposal0", ...
    """

    proposals: int
    moves: tuple[tuple[int, str, str], ...]


def layout_of(pair: Pair, nodes: Nodes) -> Layout:
    """Returns the layout of a pair; the nodes are an example."""
    moves, most = [], 0
    for stage in range(pair.calls + 1):
        used = 0
        for name, row in move_rows(pair, np, stage, nodes).items():
            if is_copy(row):
                moves.append((stage, "point", name))
                continue
            moves.append((stage, f"proposal{used}", name))
            used += 1
        most = max(most, used)
    return Layout(most, tuple(moves))


class Estimate(NamedTuple):
    """What the network's answer says of x0, in arrays [B]: d = a point + b (w cond + (1-w) uncond).

    `kept`: the estimate comes as a tensor (a hook) or as the clamped column, under the name X0.
    """

    a: Any
    b: Any
    scale: Any
    kept: bool

    def rows(self) -> dict:
        """Returns the row of d over the network's input and answers."""
        row = {"point": self.a}
        if isinstance(self.scale, float):
            if self.scale != 0.0:
                row[COND] = self.b * self.scale
            if self.scale != 1.0:
                row[UNCOND] = self.b * (1.0 - self.scale)
            return row
        return row | {COND: self.b * self.scale, UNCOND: self.b * (1.0 - self.scale)}

    def written_out(self, row: dict) -> dict:
        """Returns the row without "d"."""
        if "d" not in row:
            return row
        row = dict(row)
        weight = row.pop("d")
        for name, part in ({X0: 1.0} if self.kept else self.rows()).items():
            row[name] = row.get(name, 0.0) + weight * part
        return row


class Noise(NamedTuple):
    """Where the noise of attempts comes from.

    Attributes:
        kind: "fresh", "bridge", "path" or "none".
        slots: number of remembered points (of "bridge").
    """

    kind: str
    slots: int

    @property
    def holds(self) -> bool:
        """Returns whether the path's value is held from attempt to attempt."""
        return self.kind in ("bridge", "path")


def settle_rows(pair: Pair, xp, stage: int, nodes: Nodes, estimate: Estimate, proposals: int):
    """Returns (rows of the outputs, [error, before, after, noise] rows, judgement) of one stage.

    Rows are {} where there is none, the judgement None but for the last stage.
    """
    made = [row for row in move_rows(pair, xp, stage, nodes).values() if not is_copy(row)]
    made = [estimate.written_out(row) for row in made]
    made += [{}] * (proposals - len(made))
    if stage < pair.calls:
        return made, [{}] * 4, None
    judged = pair.judge(xp, nodes)
    rows = [judged.error, judged.before or {}, judged.after or {}, judged.noise or {}]
    return made, [estimate.written_out(row) for row in rows], judged


def point_rows(
    pair: Pair, xp, stage: int, nodes: Nodes, noise: Noise, slots: dict
) -> tuple[dict, dict]:
    """Returns the rows of one stage's model input and of the path's value at the attempt's end.

    "z" in them is a fresh normal number.
    """
    if stage == 0:
        return {"x": 1.0}, {HELD: 1.0}
    row = dict(pair.point(xp, stage, nodes))
    if noise.kind not in ("bridge", "path") or "z" not in row:
        return row, {HELD: 1.0}
    weight = row.pop("z")
    if noise.kind == "path":
        return row | {NOISE: weight}, {}
    clock = "time" if pair.clock == "time" else "lam"
    drawn = bridge(xp, clock, nodes.at.position, nodes.to.position, slots)
    on_new = weight * drawn.noise[NEW]
    row |= {name: on_new * part for name, part in drawn.value.items()}
    row[HELD] = row[HELD] + weight * drawn.noise[HELD]
    return row | {"z": on_new * drawn.fresh}, drawn.value | {"z": drawn.fresh}


def assemble(xp, batch: int, parts: list, order: tuple, device, last: str | None = None) -> Table:
    """Returns the table of rows of several stages.

    Args:
        xp: array module.
        batch: number of samples.
        parts: (mask [B] or None, rows) of each stage that samples are at; as many rows each.
        order: names in the order of the sums.
        device: of the samples.
        last: a name whose column is the clamped row: the last one, and no tensor.
    """
    used = {name for _, rows in parts for row in rows for name in row}
    columns = tuple(name for name in order if name in used and name != last)
    index = {name: k for k, name in enumerate(columns)} | ({last: len(columns)} if last else {})
    height, width = len(parts[0][1]), len(columns) + (last is not None)
    cells: dict[tuple[int, int], Any] = {}
    fresh: dict[tuple[int, int], Any] = {}
    for mask, rows in parts:
        for r, row in enumerate(rows):
            for name, value in row.items():
                if name == "z":
                    _put(xp, fresh, (r, 0), mask, value)
                else:
                    _put(xp, cells, (r, index[name]), mask, value)
    weights = numbers(xp, batch, height, width, cells, device)
    noise = numbers(xp, batch, height, 1, fresh, device) if fresh else None
    return Table(columns, weights, noise)


def _put(xp, cells: dict, key, mask, value) -> None:
    if mask is not None:
        value = xp.where(mask, value, 0.0)
    cells[key] = cells[key] + value if key in cells else value


def numbers(xp, batch: int, height: int, width: int, cells: dict, device) -> torch.Tensor:
    """Returns [B, height, width] float64 numbers on the device, 0 but for the given cells."""
    if xp is np:
        table = np.zeros((batch, height, width))
        for (r, c), value in cells.items():
            table[:, r, c] = value
        return torch.from_numpy(table)
    zero = torch.zeros((), dtype=torch.float64, device=device).expand(batch)
    columns = [zero] * (height * width)
    for (r, c), value in cells.items():
        if not isinstance(value, torch.Tensor):
            value = zero + value
        columns[r * width + c] = value
    return torch.stack(columns, dim=1).reshape(batch, height, width)


def path_weights(xp, at, to, device) -> torch.Tensor:
    """Returns [B, 2] weights over (new, held) values of the N(0, 1) noise between log-SNRs."""
    row = increment(xp, "lam", at, to)
    return numbers(xp, len(at), 1, 2, {(0, 0): row[NEW], (0, 1): row[HELD]}, device)[:, 0]
