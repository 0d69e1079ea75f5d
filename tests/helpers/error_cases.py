"""Cases for the tests of `combine_error`: calls of a backend and of the reference side by side."""

import itertools

import numpy as np
import torch
from op_cases import (
    CLAMPS,
    FLOATS,
    Case,
    assert_guards,
    assert_same_bits,
    guarded,
    outputs,
    placed,
    random_tensor,
)

from diffast import ops
from diffast.ops.combine import reference
from diffast.ops.combine_error import reference as reference_error

FORMS, NORMS = range(3), range(2)
# outputs, form, norm, measure, noises, clamp: every combination that fits into eight rows.
VARIANTS = [
    variant
    for variant in itertools.product(range(8), FORMS, NORMS, (False, True), range(3), (False, True))
    if variant[0] + 1 + 2 * (variant[1] > 0) + variant[3] + variant[5] <= 8
]


def tensors(rng, dtypes, shape, offset=0):
    return [placed(random_tensor(rng, shape, dtype), offset) for dtype in dtypes]


class ErrorCase:
    """One random call over given inputs."""

    def __init__(self, rng, xs, stored=2, form=0, norm=0, measure=False, noises=0, clamp=False):
        self.unstored = 1 + 2 * (form > 0) + measure
        rows = clamp + stored + self.unstored
        case = Case(rng, xs, rows, noises, CLAMPS[2 * clamp])
        self.xs, self.table, self.noise_table = xs, case.table, case.noise_table
        self.streams, self.limits, self.stored = case.streams, case.limits, stored
        self.form, self.norm, self.measure = form, norm, measure
        self.tolerance = torch.from_numpy(rng.uniform(0.01, 0.5, (xs[0].shape[0], 2)))

    @property
    def rows_call(self):
        return (self.xs, self.table, self.noise_table, self.streams, self.limits)

    @property
    def call(self):
        return (*self.rows_call, self.tolerance, self.form, self.norm, self.measure)

    @property
    def error(self):
        """Which row of the table is the error."""
        return self.table.shape[1] - self.unstored

    def samples(self, which):
        """Returns the call of some of the samples only."""
        noise = None if self.noise_table is None else self.noise_table[which]
        xs = [x[which] for x in self.xs]
        call = (xs, self.table[which], noise, self.streams[which], self.limits)
        return (*call, self.tolerance[which], self.form, self.norm, self.measure)


def numpy_norms(case, wide):
    """Returns the norms [B, 2] in float64 numpy, from rows that `combine.table` wrote."""
    dtype = torch.float64 if wide else torch.float32
    shape, count = case.xs[0].shape, case.table.shape[1]
    made = [torch.empty(shape, dtype=dtype) for _ in range(count)]
    reference.combine_table_out(*case.rows_call, made, None)
    flat = [row.numpy().reshape(shape[0], int(np.prod(shape[1:]))) for row in made]
    flat = [row.astype(np.float64) for row in flat]
    error = flat[case.error]
    # The tolerances that the kernels see are rounded to the arithmetic.
    atol, rtol = case.tolerance.to(dtype).to(torch.float64).numpy().T[:, :, None]
    delta = np.broadcast_to(atol, error.shape)
    if case.form:
        size = rtol * np.maximum(np.abs(flat[case.error + 1]), np.abs(flat[case.error + 2]))
        delta = np.maximum(atol, size) if case.form == 1 else atol + size
    with np.errstate(all="ignore"):
        q = np.where(error == 0, 0.0, error / delta)
    norms = np.zeros((shape[0], 2))
    if q.size:
        norms[:, 0] = np.abs(q).max(axis=1) if case.norm else np.sqrt((q * q).mean(axis=1))
        if case.measure:
            norms[:, 1] = np.sqrt((flat[-1] ** 2).mean(axis=1))
    return torch.from_numpy(norms)


def assert_close_norms(got, wanted, label, relative=1e-12):
    """The reference's sums run in another order; the largest magnitude has none."""
    assert got.dtype == torch.float64 and got.shape == wanted.shape, label
    torch.testing.assert_close(
        got, wanted, rtol=relative, atol=0, equal_nan=True, msg=lambda m: f"{label}: {m}"
    )


def check_error(
    overload,
    case,
    label,
    dtypes=FLOATS[:1],
    offset=0,
    status=True,
    equal=assert_same_bits,
):
    """What the op writes equals what the reference writes, and nothing else is written.

    Returns the norms.
    """
    shape = case.xs[0].shape
    dtypes = [dtypes[r % len(dtypes)] for r in range(case.stored)]
    before = [x.clone() for x in case.xs]
    outs, buffers = outputs(shape, dtypes, offset)
    wanted = [torch.full(shape, torch.nan, dtype=dtype) for dtype in dtypes]
    norms, norms_buffer = guarded((shape[0], 2), torch.float64)
    wanted_norms = torch.full((shape[0], 2), torch.nan, dtype=torch.float64)
    flags = torch.full((2, shape[0]), -1) if status else [None, None]
    with np.errstate(all="ignore"):
        overload(*case.call, outs, norms, flags[0])
    reference_error.combine_error_out(*case.call, wanted, wanted_norms, flags[1])
    for r, (out, buffer, row) in enumerate(zip(outs, buffers, wanted, strict=True)):
        equal(out, row, (label, "out", r))
        assert_guards(out, buffer)
    assert_close_norms(norms, wanted_norms, label)
    if case.norm == 1:
        assert_same_bits(norms[:, 0], wanted_norms[:, 0], (label, "largest"))
    assert_guards(norms, norms_buffer)
    if status:
        assert torch.equal(flags[0], flags[1]), (label, flags)
    for k, (x, copy) in enumerate(zip(case.xs, before, strict=True)):
        assert_same_bits(x, copy, (label, "input", k, "was written"))
    return norms


def check_returning(overload, case, label):
    """The returning form equals the reference's; outputs, then norms."""
    got = overload(*case.call)
    wanted = reference_error.combine_error(*case.call)
    assert len(got) == len(wanted) == case.stored + 1, label
    for r, (a, b) in enumerate(zip(got[:-1], wanted[:-1], strict=True)):
        assert_same_bits(a, b, (label, r))
    assert_close_norms(got[-1], wanted[-1], label)
    return got


def check_loaded(case, label, *arguments, **options):
    """Both forms of the op that the dispatcher has."""
    check_returning(torch.ops.diffast.combine_error.default, case, label)
    return check_error(ops.combine_error_out, case, label, *arguments, **options)
