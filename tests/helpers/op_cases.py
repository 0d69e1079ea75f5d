"""Cases for the ops' tests: guarded tensors, calls of C++ and reference side by side, equality."""

import numpy as np
import torch

from diffast import ops
from diffast.ops.combine import reference

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CLAMPS = ("no clamp", "row 0 stored", "row 0 hidden")
FORMS = (
    (ops.combine_host, reference.combine),
    (ops.combine_table, reference.combine_table),
    (ops.combine_out, reference.combine_out),
    (ops.combine_table_out, reference.combine_table_out),
)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_GUARD = 192  # bytes before and after: more than a vector store or a cache line can reach


def guarded(shape, dtype, offset=0):
    """Returns a tensor of NaN that starts `offset` bytes past a 64-byte boundary, and its buffer.

    All bytes are 0xff, which is NaN in every float type: inside, an element that is not written
    shows; outside (`assert_guards`), one that should not have been.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = torch.full((size + 2 * _GUARD + 64,), 0xFF, dtype=torch.uint8)
    start = -(buffer.data_ptr() + _GUARD) % 64 + _GUARD + offset
    return buffer[start : start + size].view(dtype).view(shape), buffer


def assert_guards(tensor, buffer):
    start = tensor.data_ptr() - buffer.data_ptr()
    end = start + tensor.numel() * tensor.element_size()
    assert (buffer[:start] == 0xFF).all(), "written before the output's first byte"
    assert (buffer[end:] == 0xFF).all(), "written behind the output's last byte"


def placed(values, offset):
    """Returns a copy of `values` that starts `offset` bytes past a 64-byte boundary."""
    copy, _ = guarded(values.shape, values.dtype, offset)
    return copy.copy_(values)


def random_tensor(rng, shape, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def random_weights(rng, *shape):
    """Returns normal float64 weights, some of them exactly 0, 1 or -1, as plans have them."""
    special = rng.choice([0.0, 1.0, -1.0], size=shape)
    return np.where(rng.random(shape) < 0.2, special, rng.standard_normal(shape))


def assert_same_bits(got, wanted, label=""):
    """Equality to the last bit, the sign of zero included; which NaN a NaN is stays open."""
    assert got.dtype == wanted.dtype, (label, got.dtype, wanted.dtype)
    assert got.shape == wanted.shape, (label, got.shape, wanted.shape)
    nan = wanted.isnan()
    bits = _BITS[wanted.element_size()]
    differs = (got.isnan() != nan) | (~nan & (got.view(bits) != wanted.view(bits)))
    if differs.any():
        at = differs.nonzero()[0].tolist()
        found, needed = got[tuple(at)].item(), wanted[tuple(at)].item()
        count = int(differs.sum())
        raise AssertionError(f"{label}: {count} differ; at {at} {found!r}, not {needed!r}")


def every_half(dtype):
    """Returns all 65,536 values of a half type, NaN included: [1, 65536]."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).reshape(1, -1).view(dtype)


def around_every_half(dtype):
    """Returns float32 numbers at, just below and just above every half value and every tie."""
    magnitudes = torch.arange(2**15).to(torch.int16).view(dtype).to(torch.float32)
    magnitudes = magnitudes[magnitudes.isfinite()]
    ties = (magnitudes[1:] - magnitudes[:-1]) / 2 + magnitudes[:-1]
    steps = torch.tensor([[-1], [0], [1]], dtype=torch.int32)
    near = torch.cat([magnitudes[1:], ties]).view(torch.int32) + steps
    near = near.view(torch.float32).reshape(1, -1)
    return torch.cat([near, -near, magnitudes.max() * torch.tensor([[1.001, -1.001]])], dim=1)


def outputs(shape, dtypes, offset=0):
    """Returns guarded outputs of the given dtypes, and their buffers."""
    pairs = [guarded(shape, dtype, offset) for dtype in dtypes]
    return [tensor for tensor, _ in pairs], [buffer for _, buffer in pairs]


def check_returning(overload, specification, call, label):
    """The op's new tensors equal the reference's; the inputs are as before."""
    before = [x.clone() for x in call[0]]
    got = overload(*call)
    wanted = specification(*call)
    assert len(got) == len(wanted)
    for r, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert_same_bits(a, b, (label, "row", r))
    for k, (x, copy) in enumerate(zip(call[0], before, strict=True)):
        assert_same_bits(x, copy, (label, "input", k, "was written"))


def into(call, outs, status):
    """Returns the arguments of the form that writes, from those of the form that returns."""
    if isinstance(call[1], torch.Tensor):
        return (*call, outs, status)
    xs, weights, noise, seed, stage, ids, clamp = call
    return (xs, weights, outs, status, stage, noise, seed, ids, clamp)


def check_out(overload, specification, call, dtypes, label, offset=0, status=True):
    """What the op writes equals what the reference writes, and nothing else is written."""
    shape = call[0][0].shape
    before = [x.clone() for x in call[0]]
    outs, buffers = outputs(shape, dtypes, offset)
    wanted = [torch.full(shape, torch.nan, dtype=dtype) for dtype in dtypes]
    flags = torch.full((2, shape[0]), -1) if status else [None, None]
    overload(*into(call, outs, flags[0]))
    specification(*into(call, wanted, flags[1]))
    for r, (out, buffer, row) in enumerate(zip(outs, buffers, wanted, strict=True)):
        assert_same_bits(out, row, (label, "out", r))
        assert_guards(out, buffer)
    if status:
        assert torch.equal(flags[0], flags[1]), (label, flags)
    for k, (x, copy) in enumerate(zip(call[0], before, strict=True)):
        assert_same_bits(x, copy, (label, "input", k, "was written"))


class Case:
    """One random call of `combine` over given inputs, with host weights and with a table.

    Args:
        rng: numpy generator of the weights.
        xs: the inputs, [B, ...] each.
        rows: rows, the clamped one included.
        noises: noises M.
        clamp: one of CLAMPS.
    """

    def __init__(self, rng, xs, rows=1, noises=0, clamp=CLAMPS[0]):
        samples = xs[0].shape[0]
        self.xs, self.rows, self.hidden = xs, rows, clamp == CLAMPS[2]
        self.limits = [] if clamp == CLAMPS[0] else [-0.625, 0.7]
        self.seed = int(rng.integers(-(2**63), 2**63))
        self.stage = int(rng.integers(0, 2**26)) + (int(rng.integers(0, 16)) << 28)
        self.ids = torch.from_numpy(rng.integers(-(2**63), 2**63, size=samples))
        columns = len(xs) + bool(self.limits)
        table = random_weights(rng, samples + 1, rows, columns)
        if self.limits:
            table[:, 0, -1] = 0
        noise = random_weights(rng, samples + 1, rows, noises)
        words = rng.integers(0, 2**26, size=samples) + (rng.integers(0, 16, size=samples) << 28)
        self.weights, self.noise = table[0].ravel().tolist(), noise[0].ravel().tolist()
        self.table = torch.from_numpy(table[1:])
        self.noise_table = torch.from_numpy(noise[1:]) if noises else None
        seeds = torch.from_numpy(rng.integers(-(2**63), 2**63, size=samples))
        self.streams = torch.stack([seeds, self.ids, torch.from_numpy(words)], dim=1)

    @property
    def host_call(self):
        weights = (self.weights, self.noise, self.seed, self.stage, self.ids, self.limits)
        return (self.xs, *weights)

    @property
    def table_call(self):
        return (self.xs, self.table, self.noise_table, self.streams, self.limits)

    def check(self, label, dtypes=FLOATS[:1], offset=0, forms=(0, 1, 2, 3)):
        """Compares forms (host, table, host out, table out) with the reference.

        `dtypes` of the outputs are repeated as needed; they start `offset` past a boundary.
        """
        stored = self.rows - self.hidden
        dtypes = [dtypes[r % len(dtypes)] for r in range(stored)]
        calls = (self.host_call, self.table_call)
        for form in forms:
            overload, specification = FORMS[form]
            if form < 2:
                check_returning(overload, specification, calls[form], (label, form))
            else:
                check_out(overload, specification, calls[form - 2], dtypes, (label, form), offset)
