"""`normal`: published words, the counter layout, accuracy, and equal bits on every backend."""

import itertools

import numpy as np
import pytest
import shared_arithmetic as shared
import torch
from op_cases import FLOATS, assert_guards, assert_same_bits, guarded
from scipy import stats

from diffast import ops
from diffast.ops.normal import reference as reference_normal

pytestmark = pytest.mark.usefixtures("nan_memory")

# Random123's kat_vectors, philox 4x32 10: counter, key, result.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def words(text):
    return [int(word, 16) for word in text.split()]


def draw(ids, size, dtype=torch.float32, **options):
    ids = torch.as_tensor(ids, dtype=torch.int64)
    return ops.normal((len(ids), size), ids=ids, dtype=dtype, **options)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, result):
    low, high = words(key)
    counters = np.array([words(counter)], dtype=np.uint32)
    keys = np.array([low | high << 32], dtype=np.uint64)
    assert shared.philox(counters, keys)[0].tolist() == words(result)
    found = reference_normal.philox([torch.tensor(word) for word in words(counter)], low, high)
    assert [int(word) for word in found] == words(result)


def test_the_first_numbers_of_the_op_are_the_published_words_transformed():
    """Block 0 of seed 0, id 0, stage 0 is the first published answer."""
    x, y, z, w = words(KNOWN_ANSWERS[0][2])
    wanted = shared.to_normals(np.array([x, z], np.uint32), np.array([y, w], np.uint32))
    assert_same_bits(draw([0], 4, seed=0, stage=0), torch.from_numpy(wanted.reshape(1, 4)))


def test_the_counter_layout():
    """Seed, id, stage, slot and purpose stand where csrc/core/normal.h says, in all their bits."""
    seed, sample, stage, purpose = 0xFEDCBA9876543210, -0x123456789ABCDEF, 0x2ABCDEF, 0xB
    for slot in range(4):
        word = stage | slot << 26 | purpose << 28
        two = sample % 2**64
        counters = np.array([[b, word, two % 2**32, two >> 32] for b in range(300)], np.uint32)
        found = shared.philox(counters, np.full(300, seed, dtype=np.uint64))
        pairs = shared.to_normals(found[:, ::2].ravel(), found[:, 1::2].ravel())
        wanted = torch.from_numpy(pairs.reshape(1, 1200))
        host = torch.from_numpy(shared.normals(seed=seed, id=sample, word=word, count=1200))
        assert_same_bits(host[None], wanted)
        if slot == 0:
            assert_same_bits(draw([sample], 1200, seed=seed, stage=word), wanted)
        if slot < 2:
            noise = [0.0, 0.0]
            noise[slot] = 1.0
            (z,) = ops.combine(
                [torch.zeros(1, 1200)],
                [1.0],
                noise=noise,
                seed=seed,
                stage=stage | purpose << 28,
                ids=torch.tensor([sample]),
            )
            assert_same_bits(z, wanted)


def test_million_normals_are_the_same_bits_on_every_backend():
    for seed, sample, stage in ((0, 0, 0), (-7, 2**62, 2**26 - 1 + ops.BROWNIAN_NOISE)):
        z = draw([sample], 2**20, seed=seed, stage=stage)
        wanted = torch.empty(1, 2**20)
        reference_normal.normal_out(torch.tensor([sample]), seed, stage, 1.0, wanted)
        assert_same_bits(z, wanted)
        host = shared.normals(seed=seed % 2**64, id=sample, word=stage, count=2**20)
        assert_same_bits(z, torch.from_numpy(host)[None])


def test_words_at_the_edges_of_their_range_are_the_same_on_every_backend():
    """Every pair out of 2,000 words around powers of two and quadrant borders."""
    edges = np.concatenate([np.arange(-5, 6)] + [2**k + np.arange(-5, 6) for k in range(8, 33)])
    radius, angle = (grid.ravel() for grid in np.meshgrid(edges % 2**32, edges % 2**32))
    host = shared.to_normals(radius.astype(np.uint32), angle.astype(np.uint32))
    first, second = reference_normal.to_normals(torch.from_numpy(radius), torch.from_numpy(angle))
    assert_same_bits(torch.from_numpy(host), torch.stack([first, second], dim=1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", (1.0, -2.5, 0.0, 1e-40, 1e300))
def test_normal_out_equals_the_reference(dtype, scale):
    for batch, size, offset in itertools.product((0, 1, 3), (0, 1, 5, 63, 1000, 4097), (0, 8)):
        ids = torch.arange(batch) * 2**33 - 1
        out, buffer = guarded((batch, size), dtype, offset)
        wanted = torch.full((batch, size), torch.nan, dtype=dtype)
        ops.normal_out(ids, 5, ops.INITIAL_NOISE, scale, out)
        reference_normal.normal_out(ids, 5, ops.INITIAL_NOISE, scale, wanted)
        assert_same_bits(out, wanted, (dtype, scale, batch, size))
        assert_guards(out, buffer)


def test_the_returning_normal_is_the_out_form():
    ids = torch.tensor([3, -4])
    for dtype in FLOATS:
        out = torch.empty(2, 3, 5, dtype=dtype)
        ops.normal_out(ids, 11, 2, 0.5, out)
        new = torch.ops.diffast.normal(ids, [3, 5], 11, 2, 0.5, dtype)
        assert_same_bits(new, out)
        assert_same_bits(draw(ids, 15, dtype, seed=11, stage=2, scale=0.5).view(2, 3, 5), out)


def test_a_sample_is_the_same_in_every_batch():
    ids = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1, 2**32, 2**31, *range(100, 156)])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(ids)))
    options = dict(seed=123, stage=9)
    for size in (5, 1030):
        whole = draw(ids, size, **options)
        assert_same_bits(draw(ids[order], size, **options), whole[order], "permuted")
        for b, sample in enumerate(ids.tolist()):
            assert_same_bits(draw([sample], size, **options), whole[b : b + 1], sample)
        assert_same_bits(draw(ids, size, torch.float64, **options), whole.double(), "widened")
        assert_same_bits(draw(ids, size + 3, **options)[:, :size], whole, "prefix")
        # The noise inside combine, with host weights and with a table, is the same.
        x = torch.zeros(len(ids), size)
        assert_same_bits(ops.combine([x], [1.0], noise=[1.0], ids=ids, **options)[0], whole)
        one = torch.ones(len(ids), 1, 1, dtype=torch.float64)
        streams = torch.stack([torch.full_like(ids, 123), ids, torch.full_like(ids, 9)], dim=1)
        (z,) = ops.combine([x[order]], one, noise=one, streams=streams[order].contiguous())
        assert_same_bits(z, whole[order], "table")
    assert len(draw(ids, 64).unique(dim=0)) == len(ids)


def test_ids_default_to_the_position_in_the_batch():
    x = torch.zeros(3, 40)
    z = draw([0, 1, 2], 40, seed=4, stage=ops.INITIAL_NOISE)
    assert_same_bits(ops.normal((3, 40), seed=4), z)
    assert_same_bits(ops.combine([x], [1.0], noise=[1.0], seed=4, stage=ops.INITIAL_NOISE)[0], z)


def test_the_number_of_threads_does_not_matter():
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.normal((3, 300_001), seed=8))
    torch.set_num_threads(before)
    assert_same_bits(found[0], found[1])
    assert_same_bits(found[0], found[2])


def test_seeds():
    assert_same_bits(draw([0], 99, seed=-1), draw([0], 99, seed=2**64 - 1))
    assert_same_bits(draw([0], 99, seed=np.int64(7)), draw([0], 99, seed=7))
    assert_same_bits(draw([0], 99, seed=torch.tensor(7)), draw([0], 99, seed=7))
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed {seed} does not fit into 64 bits"):
            draw([0], 1, seed=seed)
        with pytest.raises(ValueError, match="does not fit into 64 bits"):
            ops.combine([torch.zeros(1, 1)], [1.0], seed=seed)
    for seed, name in ((True, "bool"), ("3", "str"), (1.0, "float"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"seed is a {name} but an integer is needed"):
            draw([0], 1, seed=seed)


def test_every_part_of_the_counter_gives_another_stream():
    found = [
        draw([sample], 64, seed=seed, stage=stage + (purpose << 28))
        for seed in (0, 1, 2**32, -(2**63))
        for sample in (0, 1, 2**32, -1)
        for stage in (0, 1, 2**25, 2**26 - 1)
        for purpose in (0, 1, 2, 15)
    ]
    rows = [[0.0, 1.0], [1.0, 0.0]]
    found += ops.combine([torch.zeros(1, 64)], [[1.0], [1.0]], noise=rows, stage=5, seed=3)
    every = torch.cat(found).ravel()
    # Of 16,512 numbers with some 2**29 values each, about 0.25 pairs agree by chance.
    assert len(every.unique()) >= len(every) - 4


def test_uniform_is_within_three_quarters_of_an_ulp():
    """0.5 ulp would be a single rounding; both ends are exact, and nothing is 0."""
    bits = np.unique(
        np.concatenate(
            [(2 ** np.arange(33)[:, None] + np.arange(-600, 600)).ravel() % 2**32]
            + [np.arange(0, 2**32, 4093), np.arange(2**16), 2**32 - 1 - np.arange(2**16)]
        )
    )
    found = shared.to_uniform(bits.astype(np.uint32)).astype(np.float64)
    exact = (bits + 0.5) / 2**32
    ulp = 2.0 ** (np.floor(np.log2(exact)) - 23)
    assert (np.abs(found - exact) / ulp).max() <= 0.75
    assert (np.diff(found) >= 0).all()
    assert found[0] == 2.0**-33
    assert found[-1] == 1.0


def test_log_is_within_two_ulp():
    """Every 149th float32 from 2**-33 to 1, and all near the ends and exponents' borders."""
    one, border = 0x3F800000, 0x3F3504F3
    near = (np.array([one, border])[:, None] - np.arange(34) * 2**23).ravel()
    bits = np.concatenate(
        [np.arange(0x2F000000, one + 1, 149), np.arange(one - 2**18, one + 1)]
        + [(near[:, None] + np.arange(-3000, 3000)).ravel()]
    )
    bits = np.unique(bits[(bits >= 0x2F000000) & (bits <= one)]).astype(np.uint32)
    u = bits.view(np.float32)
    assert u[0] == 2.0**-33
    found = shared.log_uniform(u).astype(np.float64)
    exact = np.log(u.astype(np.float64))
    assert found[-1] == exact[-1] == 0  # log(1)
    ulp = 2.0 ** (np.floor(np.log2(np.abs(exact[:-1]))) - 23)
    assert (np.abs(found - exact)[:-1] / ulp).max() <= 1.7
    assert np.abs(found / np.minimum(exact, -1e-30) - 1)[:-1].max() <= 1.6e-7


def word_of_radius_two():
    candidates = np.uint32(np.exp(-2.0) * 2**32) + np.arange(2000, dtype=np.uint32)
    exact = shared.to_normals(candidates, np.zeros_like(candidates))[:, 0] == 2
    return candidates[exact][0]


def test_sine_and_cosine_are_within_twice_2_to_the_minus_24():
    """A million angles and all within 5,000 steps of the eight borders, at the radius 2.0."""
    borders = np.arange(9)[:, None] * 2**29 + np.arange(-5000, 5001)
    angles = np.unique(np.concatenate([np.arange(0, 2**32, 4093), borders.ravel() % 2**32]))
    radius = np.full(len(angles), word_of_radius_two())
    z = shared.to_normals(radius, angles.astype(np.uint32)).astype(np.float64) / 2
    exact = angles * (2 * np.pi / 2**32)
    assert np.abs(z[:, 0] - np.cos(exact)).max() <= 2.1 * 2.0**-24
    assert np.abs(z[:, 1] - np.sin(exact)).max() <= 2.1 * 2.0**-24
    assert np.abs((z**2).sum(axis=1) - 1).max() <= 2.7 * 2.0**-24
    axes = shared.to_normals(radius[:4], (np.arange(4) * 2**30).astype(np.uint32))
    assert axes.tolist() == [[2, 0], [0, 2], [-2, 0], [0, -2]]


def test_the_radius_is_within_two_ulp_up_to_the_tail():
    bits = np.unique(np.concatenate([np.arange(2**18), np.arange(0, 2**32 - 2**18, 4099)]))
    found = shared.to_normals(bits.astype(np.uint32), np.zeros(len(bits), np.uint32))[:, 0]
    exact = np.sqrt(-2 * np.log((bits + 0.5) / 2**32))
    # The uniform's rounding next to 1 is not a matter of the radius: relative, to exp(-1/8).
    assert np.abs(found / exact - 1)[exact > 0.5].max() <= 4 * 2.0**-24
    assert np.abs(found / exact - 1)[exact > 4].max() <= 1.7 * 2.0**-24
    assert found[0] == np.float32(exact[0]) == np.float32(6.7637057)


@pytest.mark.parametrize(("limit", "tolerance"), [(5.5, 1e-3), (6.0, 3e-3), (6.5, 2e-2)])
def test_the_tail_has_the_normal_probability(limit, tolerance):
    """Every radius word that reaches so far, over 2**16 angles each, against scipy in float64."""
    count = int(np.exp(-(limit**2) / 2) * 2**32) + 2
    angles = ((np.arange(2**16) + 0.37) * 2**16).astype(np.uint32)
    beyond = sum(
        (np.abs(shared.to_normals(np.full_like(angles, word), angles)[:, 0]) > limit).mean()
        for word in np.arange(count, dtype=np.uint32)
    )
    assert beyond / 2**32 == pytest.approx(2 * stats.norm.sf(limit), rel=tolerance)
    last = shared.to_normals(np.array([count], np.uint32), np.zeros(1, np.uint32))[0, 0]
    assert last < limit
