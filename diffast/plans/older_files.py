"""Plan files of versions 1 and 2 in today's form.

Those versions held, for S stages of one network call each and H remembered entries,

    read      [S, 2]       weights of (model input, x0 estimate) in the new entry
    point     [S, 2+H]     weights of (anchor, noise, entries newest first) in the next model input
    anchor    [S, 2+H]     the same for the step's state
    anchor_at [S]          the time at which that state stands: an index into (times..., end), -1
                           for an x0 estimate, -2 for a momentum
    error     [S, 2+H]     an error estimate, or none
    direct    [S, 2, 2]    weights of the stage's own (model input, unclamped estimate) in both rows
    opening   (2,)         weights of (initial state, noise) in the state at times[0]
    spans     [S, 2]       Brownian increments
    second    [S, 2]       weights of a second normal in both rows (version 2)
    blocks    [B]          first stages of blocks (version 2)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffast.plans.registers import (
    D_RAW,
    ERROR,
    ERROR_LEVEL,
    MOMENTUM_LEVEL,
    X0_LEVEL,
    Z1,
    Z2,
    D,
    H,
    X,
    Y,
    entry_column,
    levels_of,
    pack,
)

_ARRAYS = ("times", "read", "point", "anchor", "anchor_at", "error", "direct", "opening", "spans")
_NUMBERS = ("end", "start", "steps", "name", "check")
FIELDS = {1: (_ARRAYS, _NUMBERS), 2: ((*_ARRAYS, "second", "blocks"), _NUMBERS)}
OPTIONAL = ("error", "direct", "second", "blocks")


def convert(schedule: Any, old: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `Plan` that says what an older file's fields say.

    Raises:
        ValueError, IndexError: arrays whose shapes do not fit together.
    """
    times, read, point, anchor = old["times"], old["read"], old["point"], old["anchor"]
    stages = len(times)
    direct = np.zeros((stages, 2, 2)) if old["direct"] is None else old["direct"]
    second = np.zeros((stages, 2)) if old.get("second") is None else old["second"]
    _check_shapes(old | {"direct": direct, "second": second})
    stands = levels_of(schedule, np.append(times, old["end"]))
    # Behind them what -2 and -1 mean.
    anchored = np.concatenate([stands, [MOMENTUM_LEVEL, X0_LEVEL]])[old["anchor_at"]]
    pairs = ((anchored, stands[1:]), (point, anchor), direct.swapaxes(0, 1), second.T)
    joined = all(np.array_equal(a, b) for a, b in pairs)
    state = X if joined else Y

    def row(table, beside, other):
        weights = {state: table[:, 0], Z1: table[:, 1]}
        weights[X] = weights.get(X, 0.0) + beside[:, 0]
        weights |= {entry_column(k): table[:, 2 + k] for k in range(table.shape[1] - 2)}
        weights |= {D_RAW: beside[:, 1], Z2: other}
        return {name: w for name, w in weights.items() if np.any(w)}

    rows = {X: row(point, direct[:, 0], second[:, 0])}
    if not joined:
        rows[Y] = row(anchor, direct[:, 1], second[:, 1])
    if old["error"] is not None:
        rows[ERROR] = row(old["error"], np.zeros((stages, 2)), np.zeros(stages))
    rows[H] = {name: w for name, w in zip((X, D), read.T, strict=True) if np.any(w)}
    names, columns, matrix = pack(rows, stages)
    levels = np.full((stages, len(names), 2), np.nan)
    levels[:, names.index(X)] = stands[1:]
    if not joined:
        levels[:, names.index(Y)] = anchored
    if old["error"] is not None:
        levels[:, names.index(ERROR)] = ERROR_LEVEL
    kept = {name: old[name] for name in ("end", "steps", "name", "check")}
    start = float(times[0]) if old["start"] is None else float(old["start"])
    fields = kept | {
        "times": times,
        "start": start,
        "rows": names,
        "columns": columns,
        "matrix": matrix,
        "levels": levels,
        "spans": old["spans"],
        "blocks": old.get("blocks"),
    }
    return _opened(schedule, fields, old["opening"].tolist())


def _check_shapes(old: dict[str, Any]) -> None:
    """Refuses arrays that do not fit together."""
    stages, point, at = len(old["times"]), old["point"], old["anchor_at"]
    shapes = {
        "read": (stages, 2),
        "anchor": point.shape,
        "anchor_at": (stages,),
        "direct": (stages, 2, 2),
        "second": (stages, 2),
        "opening": (2,),
        "point": (stages, *point.shape[1:]),
    }
    for field, want in shapes.items():
        if (found := old[field].shape) != want:
            raise ValueError(f"{field} has shape {list(found)}, but it must be {list(want)}")
    if at.dtype.kind != "i":
        raise ValueError("anchor_at must hold whole numbers")
    for i, index in enumerate(at.tolist()):
        if not -2 <= index <= stages:
            raise ValueError(f"stage {i}: anchor_at = {index}, but -2 to {stages}")


def _opened(schedule: Any, fields: dict[str, Any], opening: list[float]) -> dict[str, Any]:
    """Returns the fields with an opening as a first stage that calls no network."""
    if opening == [1.0, 0.0]:
        return fields
    names, columns = fields["rows"], list(fields["columns"])
    matrix = fields["matrix"]
    if Z1 not in columns:
        place = columns.index(Z2) if Z2 in columns else len(columns)
        columns.insert(place, Z1)
        matrix = np.insert(matrix, place, 0.0, axis=2)
    first = np.zeros((1, *matrix.shape[1:]))
    level = np.full((1, len(names), 2), np.nan)
    for r in [names.index(name) for name in (X, Y) if name in names]:
        first[0, r, columns.index(X)], first[0, r, columns.index(Z1)] = opening
        level[0, r] = levels_of(schedule, fields["times"][0])
    if ERROR in names:
        level[0, names.index(ERROR)] = ERROR_LEVEL
    span = [[fields["start"], fields["times"][0]]]
    return fields | {
        "times": np.append(np.nan, fields["times"]),
        "columns": tuple(columns),
        "matrix": np.concatenate([first, matrix]),
        "levels": np.concatenate([level, fields["levels"]]),
        "spans": np.concatenate([span, fields["spans"]]),
    }
