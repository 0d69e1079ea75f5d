"""Random calls of `sweep` and `gram` for the tests of their GPU kernels, compared with torch."""

import numpy as np
import torch
from op_cases import FLOATS, assert_guards, assert_same_bits, guarded, placed, random_tensor

from diffast.ops.gram import reference as reference_gram
from diffast.ops.sweep import reference as reference_sweep

UNUSED = -(2**30)  # an index that no kernel may follow


class Walks:
    """One random call: jobs of every kind over rows of their own.

    Args:
        rng: numpy generator.
        size: elements of a row, or their shape.
        jobs, length: shape of the walk.
        dtype: of x, points and states.
        outputs: dtypes of the network's outputs.
        entries, noises, parts, clamp: as in the op.
        slopes, norms: whether they are given.
        in_place: whether points are x.
        offset: bytes that the tensors start behind a 64-byte boundary.
        full: every job walks all of its row, from one of x.
    """

    def __init__(
        self,
        rng,
        size,
        jobs=3,
        length=4,
        dtype=torch.float32,
        outputs=FLOATS[:1],
        entries=0,
        noises=0,
        parts=False,
        clamp=False,
        slopes=True,
        norms=True,
        in_place=False,
        offset=0,
        full=False,
    ):
        shape = size if isinstance(size, tuple) else (size,)
        rows, stages, states = jobs * length + jobs, length + 5, 2 * jobs
        self.in_place, self.noises, self.parts = in_place, noises, parts
        self.offset, self.shape = offset, (rows, *shape)
        self.clamp = [-0.8, 0.7] if clamp else []
        self.x = placed(random_tensor(rng, self.shape, dtype), offset)
        self.outputs = [placed(random_tensor(rng, self.shape, t), offset) for t in outputs]
        made = 1 + parts + (entries > 0)
        columns = 1 + parts + len(outputs) + entries + clamp + noises
        width = 2 + parts + entries + noises
        self.weights = self.table(rng, stages, made + 1, columns)
        self.changes = self.table(rng, stages, made + 1)
        self.tails = self.table(rng, stages, made, width)
        self.line = self.table(rng, stages, 4)
        self.slopes = self.table(rng, rows) if slopes else None
        self.states = random_tensor(rng, (states, 4 + entries, *shape), dtype)
        self.ids = torch.from_numpy(rng.integers(-(2**63), 2**63, size=jobs + 2))
        self.seed = int(rng.integers(-(2**63), 2**63))
        walk = rng.permutation(jobs * length).reshape(jobs, length)
        self.jobs = np.zeros((jobs, 8), dtype=np.int32)
        for j in range(jobs):
            real = length if full else int(rng.integers(0, length + 1))
            tail = 0 if full else int(rng.integers(0, length - real + 1)) if j % 2 else 0
            if j == 0 and not full:
                real, tail = length - length // 3, length // 3
            start = walk[j, 0] if j % 3 == 0 and real else jobs * length + j
            begin, state_in = (start, -1) if j % 2 == 0 else (-1, j)
            state_out = (j, jobs + j, -1)[j % 3]
            first = int(rng.integers(0, 6))
            sample = int(rng.integers(0, jobs + 2))
            self.jobs[j] = sample, begin, state_in, state_out, first, real, tail, j % 4 != 2
            if slopes and j == 0 and real:
                self.slopes[walk[j, 0]] = np.inf  # no distance: no change
            walk[j, real + tail :] = UNUSED
        self.walk = torch.from_numpy(walk.astype(np.int32))
        self.jobs = torch.from_numpy(self.jobs)
        self.norms = norms

    @staticmethod
    def table(rng, *shape):
        return torch.from_numpy(rng.standard_normal(shape) * 0.6)

    def call(self, x, points, states, norms, device="cpu"):
        outputs = [o.to(device) for o in self.outputs]
        slopes = None if self.slopes is None else self.slopes.to(device)
        tables = [self.weights, self.changes, self.tails, self.line, self.jobs, self.walk, self.ids]
        tables = [t.to(device) for t in tables]
        options = (self.seed, self.noises, self.parts, self.clamp)
        return (x, outputs, slopes, *tables, *options, points, states, norms)

    def fresh(self, device="cpu"):
        """Returns (x, points, states, norms), outputs poisoned, and the buffers around them."""
        x = placed(self.x, self.offset)
        points, buffer = guarded(self.shape, x.dtype, self.offset)
        states, states_buffer = guarded(self.states.shape, x.dtype, self.offset)
        states.copy_(self.states)
        norms, norms_buffer = guarded((len(self.jobs), self.walk.shape[1] + 1), torch.float64)
        pairs = [(points, buffer), (states, states_buffer), (norms, norms_buffer)]
        if device != "cpu":
            x, points, states, norms = (t.to(device) for t in (x, points, states, norms))
        if self.in_place:
            points = x
        return (x, points, states, norms if self.norms else None), pairs

    def run(self, op, device="cpu"):
        """Returns points, states and norms of `op`, on the CPU; nothing else was written."""
        (x, points, states, norms), pairs = self.fresh(device)
        call = self.call(x, points, states, norms, device)
        before = [t.clone() for t in (x, *call[1])]
        with np.errstate(all="ignore"):
            op(*call)
        for tensor, buffer in pairs:
            assert_guards(tensor, buffer)
        for i, (t, copy) in enumerate(zip((x, *call[1]), before, strict=True)):
            if i or not self.in_place:
                assert_same_bits(t, copy, ("input", i, "was written"))
        return [t if t is None else t.cpu() for t in (points, states, norms)]

    def check(self, op, label, device="cpu"):
        """Compares `op` with the reference on the CPU; returns (points, states, norms)."""
        wanted = self.run(reference_sweep.sweep)
        got = self.run(op, device)
        assert_same_bits(got[0], wanted[0], (label, "points"))
        assert_same_bits(got[1], wanted[1], (label, "states"))
        if self.norms:
            assert_close_sums(got[2], wanted[2], (label, "norms"))
        return got

    def settled(self):
        """Returns this case with x at the points of its walks, where every distance is 0."""
        for _ in range(self.walk.shape[1] + 1):
            points = self.run(reference_sweep.sweep)[0]
            self.x = torch.where(points.isnan(), self.x, points)
        return self

    def job(self, j):
        """Returns the case of one job alone."""
        case = object.__new__(Walks)
        case.__dict__.update(self.__dict__)
        case.jobs, case.walk = self.jobs[j : j + 1], self.walk[j : j + 1]
        return case


def check_negative_zeros(op, device="cpu"):
    """Columns that a call does not have add nothing, not even to the sign of a zero."""
    for entries in range(8):
        case = Walks(np.random.default_rng(0), 5, 1, 4, outputs=(), entries=entries, slopes=False)
        case.jobs[0] = torch.tensor([0, -1, 0, 0, 0, 4, 0, 1])
        case.states[:] = -1.0  # times +0 is -0; times the -0 of a missing column it were +0
        case.states[:, :2] = -0.0
        case.weights[:] = 0.0
        case.weights[:, :, 0] = 1.0
        points, _, _ = case.check(op, entries, device)
        written = points[case.walk[0].long()]
        assert (written == 0).all() and written.signbit().all(), entries


def assert_close_sums(got, wanted, label):
    """Sums of squares, which run in another order in the reference."""
    assert got.dtype == torch.float64 and got.shape == wanted.shape, label
    torch.testing.assert_close(
        got, wanted, rtol=1e-12, atol=0, equal_nan=True, msg=lambda m: f"{label}: {m}"
    )


def gram_case(rng, dtypes, shape, rows, offset=0):
    """Returns (xs, weights) of a random call of `gram`."""
    xs = [placed(random_tensor(rng, shape, dtype), offset) for dtype in dtypes]
    return xs, torch.from_numpy(rng.standard_normal((shape[0], rows, len(dtypes))))


def check_gram(op, xs, weights, label, device="cpu"):
    """Compares `gram` with the reference: to 1e-12 of the sum of the terms' magnitudes.

    Returns the products. They have the same bits with and without the sums of the rows.
    """
    products = _check_sums(op, xs, weights, label, device, False)
    both = _check_sums(op, xs, weights, label, device, True)
    assert_same_bits(both[:, : products.shape[1]], products, label)
    return products


def _check_sums(op, xs, weights, label, device, totals):
    samples, rows, _ = weights.shape
    shape = (samples, rows * (rows + 1) // 2 + totals * rows)
    got, buffer = guarded(shape, torch.float64)
    wanted, sizes = torch.full((2, *shape), torch.nan, dtype=torch.float64)
    reference_gram.gram(xs, weights, wanted)
    reference_gram.gram([x.double().abs() for x in xs], weights.abs(), sizes)
    if device == "cpu":
        with np.errstate(all="ignore"):
            op(xs, weights, got)
        assert_guards(got, buffer)
    else:
        sums = got.to(device)
        op([x.to(device) for x in xs], weights.to(device), sums)
        got = sums.cpu()
    assert torch.equal(got.isnan(), wanted.isnan()), label
    error = ((got - wanted).abs() / sizes.clamp_min(1e-300)).nan_to_num(0.0, posinf=0.0)
    assert error.numel() == 0 or error.max() < 1e-12, (label, error)
    return got
