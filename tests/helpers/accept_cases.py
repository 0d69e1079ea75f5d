"""Random calls of `accept`, and the comparison of what a backend did with the specification."""

import copy

import numpy as np
import torch
from op_cases import FLOATS, assert_guards, assert_same_bits, guarded, placed

from diffast.ops.accept import reference as reference_accept
from diffast.ops.schema import CONTROLS, COUNTS, FLAGS, RULE

INF, NAN = float("inf"), float("nan")
# Errors that meet every special case of the rule, beside common ones.
ERRORS = (0.0, -0.0, 1e-320, 1e-300, 1e-9, 0.3, 1.0, 2.0, 1e9, 1e300, 1.7e308, INF, NAN, -1.0)
STEPS = (0.0, 1e-18, 1e-9, 0.01, 0.3, 1.0, 7.0)
DEFAULTS = {
    "rule": dict(
        zip(RULE, (1, 0.9, 0.5, 0, 0, 0.2, 2, 0.9, 0.5, 0.2, 0.9, 0, 1, 0, INF, 0), strict=True)
    ),
    "flags": dict(zip(FLAGS, (1, 1, 0, 0, 0, 0, 0, 1000), strict=True)),
}


def rule(**numbers):
    """Returns the rule of DEFAULTS with some numbers replaced."""
    assert set(numbers) <= set(RULE)
    return [float(number) for number in {**DEFAULTS["rule"], **numbers}.values()]


def flags(**numbers):
    """Returns the flags of DEFAULTS with some replaced."""
    assert set(numbers) <= set(FLAGS)
    return [int(number) for number in {**DEFAULTS["flags"], **numbers}.values()]


def random_rule(rng):
    """Returns a rule that some method might have, now and then with an extreme number."""

    def one(*choices):
        return float(choices[rng.integers(len(choices))])

    return [
        one(1, 2, 0.81, 0, INF),
        one(0.9, 1, 0.5),
        one(0.9, 0.467, 0.5, 0, 1, 2),
        one(0, 0.267, 0.4, -0.3),
        one(0, 0.1, 0.2),
        one(0, 0.2, 0.5),
        one(INF, 2, 10, 1),
        one(0.9, 1),
        one(0.667, 0.9, 0, 0.25),
        one(0, 0.2),
        one(0.9, 1, INF),
        one(0, 0.01),
        one(1, 0.5, 1e-8),
        one(0, 0, 1e-4, 0.5),
        one(INF, INF, 1.0, 0.1),
        one(0, 0, 1e-8),
    ]


def random_flags(rng):
    last = int(rng.integers(1, 5))
    switches = [int(rng.random() < 0.35) for _ in range(5)]
    restart = int(rng.choice([0, 1, last]))
    return [last, restart, *switches, int(rng.choice([1, 5, 1000]))]


def random_state(rng, samples, slots, last):
    """Returns norms, status, control, counts and streams of samples in any state at all."""

    def pick(choices, *shape):
        common = np.exp(rng.normal(0, 1.5, size=(samples, *shape)))
        special = rng.choice(choices, size=(samples, *shape))
        return np.where(rng.random((samples, *shape)) < 0.3, special, common)

    norms = pick(ERRORS, 2)
    norms[:, 1] = np.where(rng.random(samples) < 0.5, 0.0, norms[:, 1])
    status = rng.choice([-1, -1, -1, -1, -1, -7, 0, 5], size=samples)
    at = rng.choice([0.0, -3.0, 0.7, 0.1], size=samples)
    end = at + rng.choice([*STEPS, 1.0, 1.0, 5.0], size=samples)
    step = np.minimum(pick(STEPS), end - at)
    to = np.where(rng.random(samples) < 0.3, end, at + step)
    before = pick((NAN, NAN, 0.0, 1e-300, INF, -2.0), 2)
    slot = np.where(rng.random((samples, slots)) < 0.4, INF, at[:, None] + pick(STEPS, slots))
    control = np.concatenate([np.stack([at, to, end, pick((NAN,))], axis=1), before, slot], axis=1)
    counts = rng.integers(0, 4, size=(samples, len(COUNTS)))
    counts[:, 0] = rng.choice([0, 0, 0, 0, 0, 0, 1, 2, 3, 4], size=samples)
    stages = rng.integers(0, last + 1, size=samples)
    counts[:, 1] = np.where(rng.random(samples) < 0.5, last, stages)
    strange = rng.random(samples) < 0.02
    counts[:, 1] = np.where(strange, rng.choice([-3, -1, 99], size=samples), counts[:, 1])
    counts[:, 5] = rng.integers(0, 2, size=samples)
    streams = rng.integers(-(2**62), 2**62, size=(samples, 3))
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in (norms, status, control, counts)] + [
        torch.from_numpy(streams)
    ]


class Problem:
    """One random call: its numbers, and planes of which targets are poisoned with NaN.

    Args:
        rng: numpy generator.
        samples: B.
        shape: of one sample.
        slots: remembered points.
        dtypes: of the planes, turn by turn; the moves are among planes of one dtype.
        offset: bytes that the planes start past a 64-byte boundary.
        moves: how many, shared out at random over stages and planes.
    """

    def __init__(self, rng, samples, shape=(3,), slots=0, dtypes=FLOATS[:1], offset=0, moves=4):
        self.rule, self.flags = random_rule(rng), random_flags(rng)
        last = self.flags[0]
        state = random_state(rng, samples, slots, last)
        self.norms, self.status, self.control, self.counts, self.streams = state
        size = (samples, *shape)
        count = 2 * len(dtypes)
        self.sources = [
            placed(torch.from_numpy(rng.standard_normal(size)).to(dtypes[k % len(dtypes)]), offset)
            for k in range(count)
        ]
        pairs = [guarded(size, dtypes[k % len(dtypes)], offset) for k in range(count)]
        self.targets, self.buffers = [t for t, _ in pairs], [b for _, b in pairs]
        self.moves = []
        for _ in range(moves):
            stage = last if rng.random() < 0.5 else int(rng.integers(0, last + 1))
            kind = int(rng.integers(len(dtypes)))
            source, target = (kind + len(dtypes) * int(rng.integers(2)) for _ in range(2))
            self.moves += [stage, source, target]
        kinds = [0, len(dtypes)]
        self.memory = [0, *(kinds[k % 2] for k in range(slots))] if slots else []

    def copy(self):
        """Returns the same problem over other memory; planes stay where they are in a line."""
        other = copy.copy(self)
        for name in ("control", "counts", "streams"):
            setattr(other, name, getattr(self, name).clone())
        other.targets = [t.clone() for t in self.targets]
        return other

    @property
    def call(self):
        return (
            self.norms,
            self.status,
            self.rule,
            self.flags,
            self.moves,
            self.memory,
            self.sources,
            self.control,
            self.counts,
            self.streams,
            self.targets,
        )

    def check(self, op, label="", tolerance=1e-12):
        """Runs `op` on the problem itself and the specification on a copy, and compares."""
        wanted, before = self.copy(), self.copy()
        sources = [s.clone() for s in self.sources]
        reference_accept.accept(*wanted.call)
        op(*self.call)
        assert_equal_state(self, wanted, label, tolerance)
        for t, buffer in zip(self.targets, self.buffers, strict=True):
            assert_guards(t, buffer)
        for source, kept in zip(self.sources, sources, strict=True):
            assert_same_bits(source, kept, (label, "a source was written"))
        assert_frozen(self, before, label)
        return wanted


def assert_equal_state(got, wanted, label="", tolerance=1e-12):
    """Counts, streams and planes are equal to the bit, control numbers nearly."""
    assert torch.equal(got.counts, wanted.counts), (label, got.counts - wanted.counts)
    assert torch.equal(got.streams, wanted.streams), label
    torch.testing.assert_close(
        got.control, wanted.control, rtol=tolerance, atol=0, equal_nan=True, msg=str(label)
    )
    for k, (a, b) in enumerate(zip(got.targets, wanted.targets, strict=True)):
        assert_same_bits(a, b, (label, "target", k))
    # A sample that is at its end is there exactly, on every backend.
    at_end = wanted.control[:, 0] == wanted.control[:, 2]
    assert torch.equal(got.control[:, 0] == got.control[:, 2], at_end), label


def assert_frozen(got, before, label=""):
    """Samples that were not running are as they were, to the bit."""
    idle = before.counts[:, 0] != 0
    assert torch.equal(got.counts[idle], before.counts[idle]), label
    assert torch.equal(got.streams[idle], before.streams[idle]), label
    bits = [t[idle].contiguous().view(torch.int64) for t in (got.control, before.control)]
    assert torch.equal(*bits), label
    for a, b in zip(got.targets, before.targets, strict=True):
        as_bytes = [t[idle].reshape(-1).view(torch.uint8) for t in (a, b)]
        assert torch.equal(*as_bytes), label


def named(row, names=CONTROLS):
    """Returns the numbers of one sample's row by name."""
    return dict(zip(names, row.tolist(), strict=False))
