"""What an embedded solver means, in plain numpy: its steps over given positions, all accepted.

Beside it what the plans of the same methods mean, as far as these methods need it.
"""

from typing import NamedTuple

import numpy as np

from diffast.executors.adaptive.time_variable import TimeInterval
from diffast.solvers.embedded import Step


class Walk(NamedTuple):
    """States after each step [N+1, ...], error rows [N, ...], network calls of the walk."""

    states: np.ndarray
    errors: np.ndarray
    calls: int


def interval_of(solver, schedule, until=None):
    """Returns the solver's time variable with all that its nodes can have."""
    until = schedule.t_min if until is None else until
    return TimeInterval(schedule, solver.time_variable, until, slopes=True)


def positions_of(solver, schedule, times):
    """Returns the positions of model times, of finite log-SNR or of the time variable "flow"."""
    if solver.time_variable == "flow":
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        return -sigma / (alpha + sigma)
    return interval_of(solver, schedule).positions(schedule.lam(times))


def apply(row, held):
    """Returns the row over registers by name [B, ...]."""
    total = 0.0
    for name, weight in row.items():
        weight = np.asarray(weight, dtype=np.float64)
        shape = weight.shape + (1,) * (held["y"].ndim - weight.ndim)
        total = total + weight.reshape(shape) * held[name]
    return total


def walk(solver, schedule, positions, denoise, x, noise=None):
    """Returns the walk of a solver over positions [N+1] from a state x [B, ...].

    Args:
        solver: any embedded solver.
        schedule: any schedule.
        positions: of its time variable, the same for all samples.
        denoise: (x, t) -> x0 estimate, t a number.
        x: state at the first position.
        noise: number of the step -> N(0, 1) numbers shaped as x; None: no noise.
    """
    interval, count = interval_of(solver, schedule), 0
    held = {"y": np.asarray(x, np.float64)}
    held |= {name: held["y"] for name in solver.carried}

    def node(position):
        with np.errstate(divide="ignore"):
            return interval.nodes(np.full(len(x), position))

    def called(step, call, held):
        """Returns the rows after a call, applied, and what those of the judgement are made of."""
        nonlocal count
        count += 1
        point = apply(solver.rows_before(step, call)["x"], held)
        given = held | {"x": point, "d": denoise(point, float(step.call.time[0]))}
        with np.errstate(all="ignore"):  # "flow" at alpha = 0 needs no alpha
            rows = solver.rows_after(step, call)
        return {name: apply(row, given) for name, row in rows.items()}

    states, errors, fresh = [held["y"]], [], True
    for n, (start, end) in enumerate(zip(positions, positions[1:], strict=False)):
        reach = float(solver.reach(np, np.array([start]), np.array([end]))[0])
        z = {"z1": np.zeros_like(held["y"]) if noise is None else noise(n)}
        for call, part in enumerate((0.0, *solver.fractions)):
            where = reach if part == 1.0 else start + part * (reach - start)
            if call or fresh:
                step = Step(np, node(start), node(end), node(where))
                found = called(step, call, held | z)
                errors += [found.pop("error")] if "error" in found else []
                held |= {k: v for k, v in found.items() if k in held or k.startswith("h")}
        states.append(held["y"])
        fresh = not solver.reuses_last_call
    if fresh:  # the call at the last state, which an adaptive run makes
        called(Step(np, node(positions[-1]), None, node(positions[-1])), 0, held)
    return Walk(np.stack(states), np.stack(errors), count)


def run_plan(plan, denoise, x, noise=None):
    """Returns x at every stage and at the end, [S+1, ...] float64, of a plan with one call a stage.

    Args:
        plan: any plan without a momentum.
        denoise: (x, t) -> x0 estimate.
        x: initial state.
        noise: number of the stage -> N(0, 1) numbers shaped as x; None: no noise.
    """
    held, entries, points = dict.fromkeys("xy", np.asarray(x, np.float64)), [], []
    for i, matrix in enumerate(plan.matrix):
        points.append(held["x"])
        d = denoise(held["x"], plan.times[i])
        held |= {"d": d, "d_raw": d, "z1": 0.0 if noise is None else noise(i)}
        held |= {f"h{age}": entry for age, entry in enumerate(reversed(entries), 1)}
        written = {}
        for name, row in zip(plan.rows, matrix, strict=True):
            if row.any():
                weights = zip(plan.columns, row, strict=True)
                written[name] = sum(w * held[column] for column, w in weights if w)
            if name == "h" and name in written:
                held["h0"] = written["h"]
                entries.append(written.pop("h"))
        held |= written
    return np.stack([*points, held["x"]])
