"""The specification of `brownian`: one Brownian path a sample, by counter.

The clock is lam = log(alpha / sigma). With W a Brownian motion in tau = exp(2 lam), the path is
kept as V = W / sqrt(tau), a stationary Ornstein-Uhlenbeck process: V ~ N(0, 1) at every lam,
correlation exp(-|lam - lam'|). It is a function of (seed, id, element, lam) alone, at the nodes

    lam = -8 + 16 n / 2^depth,    n = 0 .. 2^depth

a deeper tree has the same values at the nodes of a shallower one. With z_k the normals of the
counter word BROWNIAN_NOISE + k, V at the middle node is z_1; at the end on n's side it is
exp(-8) V_middle + sqrt(1 - exp(-16)) z_k, k = 0 below and 2^26 - 1 above; and between two known
nodes the middle one, h the half distance in lam, is

    V = (V_left + V_right) / (2 cosh h) + sqrt(tanh h) z_k

k = 2^(level - 1) + p for the node n = (2 p + 1) 2^(depth - level) of that level. Numbers are
float32 (float64 for float64 tensors, from the same float32 normals), each product and sum rounded
on its own; the constants are rounded once from float64.

The op writes  increment = weights[:, 0] V(nodes[:, 1]) + weights[:, 1] V(nodes[:, 0]),  which with
weights (1, -exp(-h)) / sqrt(1 - exp(-2 h)) is the N(0, 1) of the increment of W between two nodes h
apart. A node below 0 stands for lam = -inf, where V counts as 0. `last` is V(nodes[:, 0]) if it is
known; `value` receives V(nodes[:, 1]).
"""

import math

import torch

from diffast.ops.checks_brownian import check_brownian
from diffast.ops.noise import BROWNIAN_NOISE
from diffast.ops.reference import draw

HALF_RANGE = 8.0
LAST_WORD = (1 << 26) - 1


def constants(depth: int) -> list[float]:
    """Returns the 2 + 2 depth numbers of a tree: to an end (keep, fresh), then of each level.

    Level 1 is the middle node and has none of its own (zeros); level l >= 2 has 1 / (2 cosh h) and
    sqrt(tanh h) with h = 16 / 2^l.
    """
    numbers = [math.exp(-HALF_RANGE), math.sqrt(-math.expm1(-2.0 * HALF_RANGE)), 0.0, 0.0]
    for level in range(2, depth + 1):
        h = 2.0 * HALF_RANGE / 2.0**level
        numbers += [0.5 / math.cosh(h), math.sqrt(math.tanh(h))]
    return numbers


def brownian(streams, nodes, weights, depth, last, shape, dtype):
    """Returns [increment, V(nodes[:, 1])], each [B, *shape]."""
    increment = torch.empty([streams.shape[0], *shape], dtype=dtype, device=streams.device)
    value = torch.empty_like(increment)
    brownian_out(streams, nodes, weights, depth, last, increment, value)
    return [increment, value]


def brownian_out(streams, nodes, weights, depth, last, increment, value):
    """Writes the increments, and V(nodes[:, 1]) into `value` if it is given."""
    check_brownian(streams, nodes, weights, depth, last, increment, value)
    samples, elements = increment.shape[0], math.prod(increment.shape[1:])
    for b in range(samples):
        stream, pair = streams[b : b + 1], nodes[b].tolist()
        here = _value(stream, pair[1], depth, elements, increment)
        before = last[b].reshape(1, elements) if last is not None and pair[0] >= 0 else None
        if before is None:
            before = _value(stream, pair[0], depth, elements, increment)
        to, start = weights[b].to(increment.dtype)
        increment[b] = (here * to + before * start).reshape(increment.shape[1:])
        if value is not None:
            value[b] = here.reshape(increment.shape[1:])


def _value(stream, n, depth, elements, like):
    """Returns V [1, elements] at node n."""
    numbers = torch.tensor(constants(depth), dtype=torch.float64).to(like.dtype).tolist()

    def z(k):
        word = stream[:, 1] * 0 + BROWNIAN_NOISE + k
        return draw(stream[:, 0], stream[:, 1], word, elements).to(like.dtype)

    if n < 0:
        return torch.zeros([1, elements], dtype=like.dtype, device=like.device)
    low, high = 0, 1 << depth
    middle = high // 2
    value = z(1)
    if n == middle:
        return value
    end = value * numbers[0] + z(0 if n < middle else LAST_WORD) * numbers[1]
    left, right = (end, value) if n < middle else (value, end)
    low, high = (low, middle) if n < middle else (middle, high)
    level = 1
    while n not in (low, high):
        level += 1
        middle = (low + high) // 2
        k = (1 << (level - 1)) + (middle >> (depth - level + 1))
        value = (left + right) * numbers[2 * level] + z(k) * numbers[2 * level + 1]
        if n < middle:
            high, right = middle, value
        else:
            low, left = middle, value
    return left if n == low else right
