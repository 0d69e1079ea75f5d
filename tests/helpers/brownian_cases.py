"""Cases of `brownian` for its tests: nodes of every kind, calls beside the reference, weights."""

import itertools

import numpy as np
import torch
from op_cases import assert_guards, assert_same_bits, guarded

from diffast.ops.brownian import reference as reference_brownian

SIZES = (0, 1, 3, 4, 7, 63, 64, 1000, 1028, 4097)
DTYPES = (torch.float32, torch.float64)
DEPTHS = (1, 2, 3, 4, 11, 16, 24)
LAST = ("no last", "last", "last is increment", "last is value")


def streams_of(samples, seed=0):
    """Returns (seed, id, a word that has no meaning here) per sample, [B, 3]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(-(2**63), 2**63, size=(samples, 3)))


def nodes_of(depth, samples, rng):
    """Returns pairs of nodes [B, 2]: ends, middles, every level, beyond both ends, at random."""
    last = 1 << depth
    special = [0, 1, last // 2, last, last - 1, last + 1, 2**62, -1, -(2**62)]
    special += [max(1, 3 << level) % last for level in range(depth)]
    pairs = rng.integers(0, last + 1, size=(samples, 2))
    chosen = rng.choice(special, size=(samples, 2))
    return torch.from_numpy(np.where(rng.random((samples, 2)) < 0.5, chosen, pairs))


def weights_of(gaps):
    """Returns the weights of V(to) and V(from) of N(0, 1) increments over distances h: [B, 2]."""
    h = torch.as_tensor(gaps, dtype=torch.float64).reshape(-1, 1)
    return torch.cat([torch.ones_like(h), -torch.exp(-h)], dim=1) / (-torch.expm1(-2 * h)).sqrt()


def check_call(overload, shape, dtype, depth, last, with_value, seed, offset=0, close=None):
    """Compares one call that writes with the reference, bit for bit; outputs are guarded."""
    rng = np.random.default_rng(seed)
    samples = shape[0]
    nodes = nodes_of(depth, samples, rng)
    weights = torch.from_numpy(rng.standard_normal((samples, 2)))
    known = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
    call = (streams_of(samples, seed), nodes, weights, depth)
    before = [t.clone() for t in call[:3]]
    results = []
    for function in (overload, reference_brownian.brownian_out):
        outs = [guarded(shape, dtype, offset) for _ in range(1 + with_value)]
        given = None
        if last == "last":
            given = known.clone()
        elif last != "no last":
            given = outs[int(last == "last is value" and with_value)][0].copy_(known)
        value = outs[1][0] if with_value else None
        function(*call, given, outs[0][0], value)
        for out, buffer in outs:
            assert_guards(out, buffer)
        if last == "last":
            assert_same_bits(given, known, "last was written")
        results.append([out for out, _ in outs])
    label = (shape, dtype, depth, last, with_value, seed, offset)
    for got, wanted in zip(*results, strict=True):
        assert_same_bits(got, wanted, label)
    for t, copy in zip(call[:3], before, strict=True):
        assert torch.equal(t, copy), (label, "an input was written")


def calls(sizes, batches, offsets=(0,)):
    """Yields the arguments of `check_call`: every shape, the other dimensions in turn."""
    variants = itertools.cycle(itertools.product(LAST, (True, False)))
    depths, dtypes = itertools.cycle(DEPTHS), itertools.cycle(DTYPES)
    shapes = itertools.product(sizes, batches, offsets)
    for seed, (size, batch, offset) in enumerate(shapes):
        for _ in range(2):
            last, with_value = next(variants)
            yield (batch, size), next(dtypes), next(depths), last, with_value, seed, offset
        next(depths), next(dtypes)
