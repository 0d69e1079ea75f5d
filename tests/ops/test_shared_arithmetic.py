"""The scalar arithmetic that C++ and CUDA share (csrc/core) equals the torch reference.

The kernels inline these very lines, so what holds here holds in every compiled backend.
"""

import numpy as np
import pytest
import shared_arithmetic as shared
import torch
from op_cases import assert_same_bits, random_weights

from diffast import ops
from diffast.ops.combine import reference
from diffast.ops.normal import reference as reference_normal

# Words at which halves, quadrants and the rounding to float32 change.
EDGES = np.unique(
    np.array(
        [(at + step) % 2**32 for at in [0, *(1 << b for b in range(32)), 3 << 29, 5 << 29, 7 << 29]
         for step in (-2, -1, 0, 1, 2)],
        dtype=np.uint32,
    )
)  # fmt: skip


def words(rng, *shape):
    return rng.integers(0, 2**32, size=shape, dtype=np.uint64).astype(np.uint32)


def as_torch(array):
    return torch.from_numpy(np.asarray(array).astype(np.int64))


def floats_of(bits):
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


def every_kind_of_float(rng):
    """All exponents and signs with 4,096 fractions each, and the rounding ties of both halves."""
    top = np.arange(512, dtype=np.uint32)[:, None] << 23
    fractions = words(rng, 4090) & 0x7FFFFF
    fractions = np.concatenate([fractions, np.array([0, 1, 2, 0x7FFFFE, 0x7FFFFF, 0x400000])])
    plain = (top | fractions[None].astype(np.uint32)).ravel()
    patterns = np.arange(65536, dtype=np.uint32)
    halfway = np.concatenate([(patterns << 16) + step for step in (0x7FFF, 0x8000, 0x8001)])
    halves = patterns.astype(np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        wide = halves.astype(np.float64)
        middle = (wide[:-1] + wide[1:]) / 2  # exact in float32
        middle = middle[np.isfinite(middle)].astype(np.float32)
        largest = np.array([65519.996, 65520.0, 65520.004, -65520.0], dtype=np.float32)
        ties = np.concatenate([middle, largest])
        around = [np.nextafter(ties, np.float32(end), dtype=np.float32) for end in (-1e38, 1e38)]
    return np.concatenate([floats_of(plain), floats_of(halfway), ties, *around])


def test_philox():
    rng = np.random.default_rng(0)
    counters, keys = words(rng, 10000, 4), rng.integers(0, 2**64, size=10000, dtype=np.uint64)
    counters[:64] = np.where(rng.random((64, 4)) < 0.5, 0, 2**32 - 1)
    keys[:64:3] = 2**64 - 1
    got = shared.philox(counters, keys)
    low, high = as_torch(keys & np.uint64(2**32 - 1)), as_torch(keys >> np.uint64(32))
    wanted = reference_normal.philox([as_torch(counters[:, i]) for i in range(4)], low, high)
    assert torch.equal(as_torch(got), torch.stack(wanted, dim=1))


def test_uniforms_and_logarithms():
    bits = np.concatenate([EDGES, words(np.random.default_rng(1), 2**20)])
    uniform = reference_normal.to_uniform(as_torch(bits))
    assert_same_bits(torch.from_numpy(shared.to_uniform(bits)), uniform)
    assert uniform.min() > 0
    assert uniform.max() <= 1
    logarithm = torch.from_numpy(shared.log_uniform(uniform.numpy()))
    assert_same_bits(logarithm, reference_normal.log_uniform(uniform))


def test_normals_of_words():
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(EDGES, EDGES), axis=-1).reshape(-1, 2)
    pairs = np.concatenate([grid, words(rng, 2**19, 2)])
    got = torch.from_numpy(shared.to_normals(pairs[:, 0], pairs[:, 1]))
    wanted = reference_normal.to_normals(as_torch(pairs[:, 0]), as_torch(pairs[:, 1]))
    assert_same_bits(got, torch.stack(wanted, dim=1))
    assert got.isfinite().all()


@pytest.mark.parametrize("count", (0, 1, 3, 4, 5, 1000))
def test_normals_of_a_stream(count):
    for seed, sample, word in ((0, 0, 0), (2**64 - 1, -1, 2**32 - 1), (2**63, -(2**63), 7)):
        signed = seed - 2**64 if seed >= 2**63 else seed
        wanted = reference_normal.draw(signed, torch.tensor([sample]), word, count)[0]
        assert_same_bits(torch.from_numpy(shared.normals(seed, sample, word, count)), wanted)


@pytest.mark.parametrize("columns", range(1, 20))
@pytest.mark.parametrize(
    ("function", "dtype"),
    ((shared.row_float, np.float32), (shared.row_double, np.float64)),
)
def test_rows(columns, function, dtype):
    rng = np.random.default_rng(columns)
    weights = random_weights(rng, columns)
    x = rng.standard_normal((columns, 4099)) * 10.0 ** rng.integers(-40, 39, size=(columns, 1))
    x[:, ::97] = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan], size=x[:, ::97].shape)
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    wanted = reference.sum_columns(weights.tolist(), list(torch.from_numpy(x)))
    assert_same_bits(torch.from_numpy(function(weights, x)), wanted)


def test_all_halves_widen_exactly_and_come_back():
    patterns = np.arange(65536, dtype=np.uint16)
    halves = torch.from_numpy(patterns.view(np.int16)).view(torch.float16)
    wide = shared.float_of_half(patterns)
    assert_same_bits(torch.from_numpy(wide), halves.float())
    back = torch.from_numpy(shared.half_bits(wide).view(np.int16)).view(torch.float16)
    assert_same_bits(back, halves)
    assert back.isnan().sum() == 2 * 1023


def test_all_bfloats_come_back():
    patterns = np.arange(65536, dtype=np.uint16)
    wide = floats_of(patterns.astype(np.uint32) << 16)
    back = torch.from_numpy(shared.bfloat_bits(wide).view(np.int16)).view(torch.bfloat16)
    wanted = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)
    assert_same_bits(back, wanted)


@pytest.mark.parametrize(
    ("function", "dtype"),
    ((shared.half_bits, torch.float16), (shared.bfloat_bits, torch.bfloat16)),
)
def test_floats_are_rounded_to_nearest_even(function, dtype):
    values = every_kind_of_float(np.random.default_rng(3))
    got = torch.from_numpy(function(values).view(np.int16)).view(dtype)
    wanted = torch.from_numpy(values).to(dtype)
    assert_same_bits(got, wanted)
    # A NaN keeps its sign, as the GPU's and the vector unit's conversions do not all promise.
    nan = np.isnan(values)
    assert nan.sum() > 8000
    assert np.array_equal(got.view(torch.int16).numpy()[nan] < 0, np.signbit(values[nan]))


def test_limits_are_those_of_the_schemas():
    wanted = (ops.MAX_INPUTS, ops.MAX_ROWS, ops.MAX_NOISES)
    assert shared.limits()[:3] == wanted == (16, 8, 2)
