"""Cases for the tests of `sweep`: random calls, and a backend and the reference side by side."""

import numpy as np
import torch
from op_cases import FLOATS, assert_guards, assert_same_bits, guarded, random_tensor, random_weights

from diffast import ops
from diffast.ops.sweep import reference as reference_sweep

# The op's arguments, in order.
NAMES = ("x", "outputs", "slopes", "weights", "changes", "tails", "line", "jobs", "walk", "ids")
NAMES += ("seed", "noises", "parts", "clamp", "chunk", "points", "states", "norms")


class SweepCase:
    """One random call; what it writes is NaN beforehand.

    Args:
        rng: numpy generator.
        shape: of one row of x.
        counts: (real, tail) of every job.
        outputs: dtypes of the network's outputs.
        entries: how much a walk remembers.
        noises: normals of a stage.
        parts: whether the anchor is a tensor of its own.
        clamp: whether the x0 estimate is clamped.
        chunk: as in the op.
        slopes: whether there are any.
        norms: whether they are asked for.
        in_place: whether points is x.
        dtype: of x, points and states.
        near: every row of x is near the one that the walk has there (set to `apart` of it).
    """

    def __init__(
        self,
        rng,
        shape,
        counts=((4, 0),),
        outputs=FLOATS[:1],
        entries=0,
        noises=0,
        parts=False,
        clamp=False,
        chunk=0,
        slopes=True,
        norms=True,
        in_place=False,
        dtype=torch.float32,
        offset=0,
    ):
        jobs = len(counts)
        self.noises, self.parts, self.chunk, self.in_place = noises, parts, chunk, in_place
        self.clamp = [-0.8, 0.7] if clamp else []
        self.length = max([sum(count) for count in counts], default=0) + 1
        rows = sum(sum(count) for count in counts) + 2
        stages = self.length + 3
        made = 2 + (entries > 0) + parts
        columns = 1 + parts + len(outputs) + entries + clamp + noises

        def table(*numbers):
            return torch.from_numpy(random_weights(rng, *numbers))

        def state(*sizes, kind=dtype):
            tensor, _ = guarded((*sizes, *shape), kind, offset)
            return tensor.copy_(random_tensor(rng, (*sizes, *shape), kind))

        self.x = state(rows)
        self.outputs = [state(rows, kind=kind) for kind in outputs]
        self.slopes = table(rows) if slopes else None
        # Rows that add up to about 1, so that long walks stay finite.
        self.weights = table(stages, made, columns) / columns
        self.changes = table(stages, made)
        self.tails = table(stages, made - 1, 2 + parts + entries + noises) / (2 + parts + entries)
        self.line = table(stages, 4)
        self.ids = torch.from_numpy(rng.integers(-(2**63), 2**63, size=3))
        self.seed = int(rng.integers(-(2**63), 2**63))
        # Two states that are only read, then one for each job.
        self.states = state(2 + jobs, 4 + entries)
        self.jobs, self.walk = self._jobs(rng, counts, rows)
        for first in self.walk[::2, 0].tolist():  # some walks begin where the network was called
            if first >= 0:
                self.x[first] = self.x[-1].clone()
        self.norms = None
        if norms:
            self.norms = torch.full((jobs, self.length + 1), torch.nan, dtype=torch.float64)
        self.points, self.guard = (
            (self.x, None) if in_place else guarded((rows, *shape), dtype, offset)
        )

    def _jobs(self, rng, counts, rows):
        jobs = torch.zeros(len(counts), 8, dtype=torch.int32)
        walk = torch.full((len(counts), self.length), -7, dtype=torch.int32)
        order = rng.permutation(rows - 2)  # each row belongs to one job; the last two to none
        taken = 0
        for j, (real, tail) in enumerate(counts):
            count = real + tail
            mine = order[taken : taken + count]
            taken += count
            walk[j, :count] = torch.from_numpy(mine)
            begins = [-1, rows - 1, *mine[:1]]
            begin = begins[(j + int(rng.integers(3))) % len(begins)]
            state_in = int(rng.choice([0, 1, 2 + j]))
            state_out = int(rng.choice([-1, 2 + j, 2 + j]))
            first = int(rng.integers(0, self.length + 3 - count + 1))
            write = int(rng.random() < 0.8)
            jobs[j] = torch.tensor(
                [int(rng.integers(3)), int(begin), state_in, state_out, first, real, tail, write]
            )
        return jobs, walk

    def call(self, **changed):
        """Returns the arguments, some of them replaced."""
        return [changed.get(name, getattr(self, name)) for name in NAMES]

    def copy(self):
        """Returns a case with what is written copied."""
        other = object.__new__(SweepCase)
        other.__dict__.update(self.__dict__)
        other.states = self.states.clone()
        other.norms = None if self.norms is None else self.norms.clone()
        other.x = self.x.clone()
        other.points = other.x if self.in_place else self.points.clone()
        return other


def assert_close_norms(got, wanted, label, relative=1e-12):
    """The reference adds up in another order; zeros and NaN stand where they should."""
    torch.testing.assert_close(
        got, wanted, rtol=relative, atol=0, equal_nan=True, msg=lambda m: f"{label}: {m}"
    )


def check_sweep(case, label, overload=ops.sweep, equal=assert_same_bits):
    """What the op writes equals what the reference writes, and nothing else is written.

    Returns the reference's case.
    """
    wanted, before = case.copy(), case.copy()
    with np.errstate(all="ignore"):
        overload(*case.call())
    reference_sweep.sweep(*wanted.call())
    equal(case.points, wanted.points, (label, "points"))
    equal(case.states, wanted.states, (label, "states"))
    if case.norms is not None:
        assert_close_norms(case.norms, wanted.norms, (label, "norms"))
    if not case.in_place:
        assert_same_bits(case.x, before.x, (label, "x was written"))
        assert_guards(case.points, case.guard)
    return wanted


def random_options(rng):
    """Returns options of a random case, all kinds of them."""
    chunk = int(rng.integers(1, 5)) if rng.random() < 0.25 else 0
    dtype = torch.float64 if rng.random() < 0.3 else torch.float32
    kinds = FLOATS if dtype == torch.float64 else FLOATS[:3]
    kinds = kinds if rng.random() < 0.5 else (dtype,)
    picks = rng.integers(0, len(kinds), size=rng.integers(0, 3))
    return {
        "counts": [
            (int(rng.integers(0, 8)), int(rng.integers(0, 4))) for _ in range(rng.integers(1, 6))
        ],
        "outputs": [kinds[i] for i in picks],
        "entries": 0 if chunk else int(rng.choice([0, 1, 2, 3, 4, 7])),
        "noises": int(rng.integers(0, 3)),
        "parts": bool(rng.random() < 0.5) and not chunk,
        "clamp": bool(rng.random() < 0.5) and not chunk,
        "chunk": chunk,
        "slopes": bool(rng.random() < 0.7),
        "norms": bool(rng.random() < 0.8),
        "in_place": bool(rng.random() < 0.4),
        "dtype": dtype,
        "offset": int(rng.choice([0, 8, 32])),
    }
