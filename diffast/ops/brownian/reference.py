"""The specification of `brownian`: one Brownian path for each sample.

The path's time is lam = log(alpha / sigma). With W a Brownian motion in tau = exp(2 lam), the path
is kept as V = W / sqrt(tau), a stationary Ornstein-Uhlenbeck process: V ~ N(0, 1) at every lam,
correlation exp(-|lam - lam'|). V is a function of (seed, id, element, lam) alone. It has values at
the nodes

    lam = -8 + 16 n / 2^depth,    n = 0 .. 2^depth

and a deeper tree has the same values at the nodes of a shallower one. Let z_k be the normals of the
counter word BROWNIAN_NOISE + k. V at the middle node is z_1. V at an end is
exp(-8) V_middle + sqrt(1 - exp(-16)) z_k, with k = 0 at the lower end and k = 2^26 - 1 at the upper
one. V in the middle of two known nodes, 2 h apart in lam, is

    V = (V_left + V_right) / (2 cosh h) + sqrt(tanh h) z_k

with k = 2^(level - 1) + p for the node n = (2 p + 1) 2^(depth - level) of a level. Numbers are
float32 (float64 for float64 tensors, from the same float32 normals), each product and sum rounded
on its own; the constants are rounded once from float64.

The op writes  increment = weights[:, 0] V(nodes[:, 1]) + weights[:, 1] V(nodes[:, 0]),  which with
weights (1, -exp(-h)) / sqrt(1 - exp(-2 h)) is the N(0, 1) of the increment of W between two nodes h
apart. A node below 0 stands for lam = -inf, where V is taken as 0. A node above 2^depth is taken as
2^depth. `last` is V(nodes[:, 0]) if it is known; it may be an output itself. `value` receives
V(nodes[:, 1]).
"""

import math

import torch

from diffast.ops.brownian.checks import check_brownian_out
from diffast.ops.normal.reference import draw
from diffast.ops.streams import BROWNIAN_NOISE

LAST_WORD = (1 << 26) - 1

# To an end: exp(-8), sqrt(1 - exp(-16)).
END = (0.00033546262790251185, 0.9999999437324111)
# For levels 2, 3, ...: 1 / (2 cosh h), sqrt(tanh h), h = 16 / 2^level. They are written out because
# math libraries differ in the last bit of tanh. csrc/ops/brownian/tree.h has the same numbers.
LEVELS = (
    (0.018309496736843265, 0.999664593620814),
    (0.13290111441703983, 0.9818490617583829),
    (0.3240271368319427, 0.8726936208978296),
    (0.44340944198503696, 0.6797919955839505),
    (0.4847718145701073, 0.49489257663023106),
    (0.49611902073756287, 0.35263720985113894),
    (0.4990250244362676, 0.24983744064393654),
    (0.49975595867663836, 0.17674793194272814),
    (0.4999389710519508, 0.12499491413017118),
    (0.49998474159897893, 0.0883874485329281),
    (0.4999961853269874, 0.06249984105504861),
    (0.49999904632719944, 0.044194145726294154),
    (0.49999976158151566, 0.03124999503294777),
    (0.49999994039536116, 0.022097086034020334),
    (0.4999999850988392, 0.015624999844779573),
    (0.4999999962747097, 0.011048543428600451),
    (0.4999999990686774, 0.007812499995149362),
    (0.49999999976716936, 0.005524271727162423),
    (0.49999999994179234, 0.0039062499998484177),
    (0.4999999999854481, 0.002762135863983155),
    (0.499999999996362, 0.0019531249999952631),
    (0.4999999999990905, 0.0013810679320041383),
    (0.4999999999997726, 0.000976562499999852),
)


def brownian_out(streams, nodes, weights, depth, last, increment, value=None):
    """Writes the increments, and V(nodes[:, 1]) into `value` if it is given."""
    check_brownian_out(streams, nodes, weights, depth, last, increment, value)
    samples, elements = increment.shape[0], math.prod(increment.shape[1:])
    for b in range(samples):
        stream, (start, end) = streams[b : b + 1], nodes[b].tolist()
        here = _value(stream, end, depth, elements, increment)
        if last is not None and start >= 0:
            before = last[b].reshape(1, elements)
        else:
            before = _value(stream, start, depth, elements, increment)
        to, of_start = weights[b].to(increment.dtype)
        increment[b] = (here * to + before * of_start).reshape(increment.shape[1:])
        if value is not None:
            value[b] = here.reshape(increment.shape[1:])


def _value(stream, node, depth, elements, like):
    """Returns V [1, elements] at a node."""
    last = 1 << depth
    node = min(node, last)

    def z(k):
        word = stream[:, 1] * 0 + BROWNIAN_NOISE + k
        return draw(stream[:, 0], stream[:, 1], word, elements).to(like.dtype)

    def rounded(numbers):
        return torch.tensor(numbers, dtype=torch.float64, device="cpu").to(like.dtype).tolist()

    if node < 0:
        return torch.zeros([1, elements], dtype=like.dtype, device=like.device)
    value = z(1)
    if node == last // 2:
        return value
    above = node > last // 2
    keep, fresh = rounded(END)
    end = value * keep + z(LAST_WORD if above else 0) * fresh
    if node in (0, last):
        return end
    left, right = (value, end) if above else (end, value)
    for level in range(2, depth + 1):
        half = depth - level  # nodes from the middle to either side, as a power of two
        keep, fresh = rounded(LEVELS[level - 2])
        value = (left + right) * keep + z((1 << (level - 1)) + (node >> (half + 1))) * fresh
        if node % (1 << (half + 1)) == 1 << half:
            break
        left, right = (value, right) if node >> half & 1 else (left, value)
    return value


IMPLEMENTATIONS = {"brownian.out": brownian_out}
