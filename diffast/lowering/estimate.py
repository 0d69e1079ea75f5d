"""The x0 estimate as a row over the network's input and outputs."""

from __future__ import annotations

from typing import Any

# Names of the network's outputs, and of the x0 estimate where it is a tensor of its own.
COND, UNCOND, EXTRA, X0 = "cond", "uncond", "extra", "x0"


def estimate_row(a: Any, b: Any, scale: Any, x: str = "x") -> dict[str, Any]:
    """Returns the row of d = a x + b (scale cond + (1 - scale) uncond).

    Numbers may be arrays of any module. An output whose weight is 0, by a float scale of 0.0 or
    1.0, has no column: the network is not called for it.
    """
    row = {x: a}
    if not isinstance(scale, float) or scale != 0.0:
        row[COND] = b * scale
    if not isinstance(scale, float) or scale != 1.0:
        row[UNCOND] = b * (1.0 - scale)
    return row


def written_out(row: dict[str, Any], estimate: dict[str, Any], d: str = "d") -> dict[str, Any]:
    """Returns a row in which the estimate d is replaced by the row that makes it.

    That is an `estimate_row`, or {X0: 1.0} where the estimate is a tensor of its own, or the
    clamped row of the same call.
    """
    if d not in row:
        return row
    row = dict(row)
    weight = row.pop(d)
    for name, part in estimate.items():
        row[name] = row.get(name, 0.0) + weight * part
    return row
