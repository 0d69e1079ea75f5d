"""What a pair means, in plain numpy: the steps of its rows over given positions, all accepted."""

from typing import NamedTuple

import numpy as np

from diffast.executors.adaptive.time_variable import Clock
from diffast.solvers.embedded import Nodes


class Walk(NamedTuple):
    """States after each attempt [N+1, ...], error rows [N, ...], network calls of the walk."""

    states: np.ndarray
    errors: np.ndarray
    calls: int


def clock_of(pair, schedule, until=None):
    """Returns the pair's clock with all that its nodes can have."""
    return Clock(schedule, pair.clock, schedule.t_min if until is None else until, slopes=True)


def positions_of(pair, schedule, times):
    """Returns the positions of model times, of finite log-SNR or on the clock "flow"."""
    clock = clock_of(pair, schedule)
    if pair.clock == "flow":
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        return -sigma / (alpha + sigma)
    return clock.positions(schedule.lam(times))


def apply(row, held):
    """Returns the row over what is held by name [B, ...]."""
    total = 0.0
    for name, weight in row.items():
        weight = np.asarray(weight, dtype=np.float64)
        total = (
            total
            + weight.reshape(weight.shape + (1,) * (held["x"].ndim - weight.ndim)) * (held[name])
        )
    return total


def walk(pair, schedule, positions, denoise, x, noise=None):
    """Returns the walk of a pair over positions [N+1] from a state x [B, ...].

    Args:
        pair: any pair.
        schedule: any schedule.
        positions: of the pair's clock, the same for all samples.
        denoise: (x, t) -> x0 estimate, t a number.
        x: state at the first position.
        noise: number of the attempt -> N(0, 1) numbers shaped as x; None: no noise.
    """
    clock, held, calls = clock_of(pair, schedule), {"x": np.asarray(x, np.float64)}, 1

    def node(position):
        with np.errstate(divide="ignore"):
            return clock.nodes(np.full(len(x), position))

    def asked(point, where):
        with np.errstate(all="ignore"):  # the entry of a clock "flow" at alpha = 0 needs no alpha
            row = pair.entry(np, where)
        d = denoise(point, float(where.time[0]))
        return apply(row, held | {"point": point, "d": d}), d

    held["e0"], _ = asked(held["x"], node(positions[0]))
    held |= {name: held["x"] for name in pair.keeps}
    states, errors = [held["x"]], []
    for n, (at, to) in enumerate(zip(positions, positions[1:], strict=False)):
        reach = float(pair.reach(np, np.array([at]), np.array([to]))[0])
        z = np.zeros_like(held["x"]) if noise is None else noise(n)
        for call, part in enumerate(pair.fractions, start=1):
            where = reach if part == 1.0 else at + part * (reach - at)
            nodes = Nodes(node(at), node(to), node(where))
            point = apply(pair.point(np, call, nodes), held | {"z": z})
            if call < pair.calls:
                held[f"e{call}"], d = asked(point, nodes.call)
        d = denoise(point, float(nodes.call.time[0]))
        calls += pair.calls
        given = held | {"point": point, "d": d, "z": z}
        errors.append(apply(pair.judge(np, nodes).error, given))
        held |= {name: apply(row, given) for name, row in pair.states(np, nodes).items()}
        states.append(held["x"])
        if not pair.reuses:
            held["e0"], _ = asked(held["x"], nodes.to)
            calls += 1
    return Walk(np.stack(states), np.stack(errors), calls)
