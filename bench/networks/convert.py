"""A plan of one call a stage as levels and weights of velocities, see `learn`."""

from __future__ import annotations

import numpy as np

from bench.networks.learn import Row
from bench.networks.problems import tau_of
from diffast.plans import Plan


def row_of(plan: Plan) -> Row:
    """Returns the row that makes the plan's samples.

    Every register is followed as a combination of the initial state and of the x0 estimates; then
    x0 = y - tau v turns estimates into velocities.

    Raises:
        ValueError: for a plan with noise, silent stages, several inputs, or a state that is
            not scaled as the schedule says.
    """
    calls = len(plan.times)
    times = [*np.asarray(plan.times, dtype=np.float64).tolist(), plan.end]
    if np.ndim(plan.times) != 1 or not np.isfinite(times).all():
        raise ValueError("row_of: the plan has silent stages or several inputs")
    taus = np.array([tau_of(plan.schedule, t) for t in times])
    whole = [float(plan.schedule.alpha(np.float64(t)) + plan.schedule.sigma(np.float64(t)))
             for t in times]  # fmt: skip
    basis = np.eye(1 + calls)
    x = y = basis[0] * whole[0]  # the unit is y at the start
    entries: list[np.ndarray] = []
    inputs = [x]
    for n in range(calls):
        row = {name: plan.matrix[n, r] for r, name in enumerate(plan.rows)}
        held = {"x": x, "y": y, "d": basis[1 + n], "d_raw": basis[1 + n]}
        for k, column in enumerate(plan.columns):
            if column[0] == "h" and column != "h0":
                age = int(column[1:])
                held[column] = entries[-age] if age <= len(entries) else np.zeros(1 + calls)
            elif column not in held and column != "h0":
                if any(np.any(weights[k]) for weights in row.values()):
                    raise ValueError(f"row_of: the plan weighs {column}")
                held[column] = np.zeros(1 + calls)
        new = {}
        order = [name for name in ("h", "x", "y") if name in row]
        for name in order:
            held.setdefault("h0", np.zeros(1 + calls))
            new[name] = sum(w * held[c] for w, c in zip(row[name], plan.columns, strict=True))
            if name == "h":
                held["h0"] = new["h"]
        if "h" in new:
            entries.append(new["h"])
        x = new["x"]
        y = new.get("y", x)
        inputs.append(x)
    # over (y at the start, x0 estimates) -> over (y at the start, velocities)
    found = np.zeros((1 + calls, 1 + calls))
    for n, combination in enumerate(inputs):
        scaled = combination / whole[n]
        found[n, 0] += scaled[0]
        for j in range(min(n, calls)):
            found[n] += scaled[1 + j] * found[j]
            found[n, 1 + j] -= scaled[1 + j] * taus[j]
    weights = np.zeros((calls, calls))
    for n in range(calls):
        weights[n, : n + 1] = (found[n + 1] - found[n])[1 : n + 2] / (taus[n + 1] - taus[n])
    if not np.allclose(weights.sum(1), 1, atol=1e-6) or not np.allclose(found[:, 0], 1, atol=1e-6):
        raise ValueError("row_of: the plan does not hold its levels")
    if taus[-1] != 0:
        raise ValueError("row_of: the plan does not end at sigma = 0")
    return Row(taus[:-1] / taus[0], weights)
