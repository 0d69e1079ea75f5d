"""10**8 numbers of `normal` against the theory of N(0, 1), and against each other.

All seeds are fixed, so the outcome is too. Bounds are five standard errors from theory.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from diffast import ops

SIGMAS = 5.0
BATCH, SIZE = 16, 2**16
STAGES, SEEDS = 24, 4  # 4 * 24 chunks of 2**20: 1.007e8 numbers
BIN = 1 / 1024
EDGE = 8 * 1024  # bins from -8 to 8
# power: E z^power, E z^(2 power) - (E z^power)^2
MOMENTS = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170), 8: (105, 2016000)}


def features(z):
    """Returns the Hermite polynomials of degree 1, 2 and 3 of z, one a row: [3, numbers].

    Normed to E = 0 and E f g = 1 if f is g, else 0; so a product of features of two independent
    normals has mean 0 and variance 1 exactly, and 5 / sqrt(n) bounds its average.
    """
    z = z.ravel()
    square = z * z
    return torch.stack([z, (square - 1) / 2**0.5, (square - 3) * z / 6**0.5])


class Tally:
    """Sums over many chunks of normals."""

    def __init__(self):
        self.count = 0
        self.powers = dict.fromkeys(MOMENTS, 0.0)
        self.bins = torch.zeros(2 * EDGE, dtype=torch.int64)
        self.products = {}
        self.pairs = {}

    def add(self, z):
        """Takes the moments and the histogram of a chunk."""
        self.count += z.numel()
        wide = z.double().ravel()
        square = wide * wide
        fourth = square * square
        powers = {1: wide, 2: square, 3: square * wide, 4: fourth, 6: fourth * square}
        for power, values in {**powers, 8: fourth * fourth}.items():
            self.powers[power] += values.sum().item()
        # z / BIN is exact: a power of two.
        index = (z.ravel() * (1 / BIN)).floor_().to(torch.int64).add_(EDGE)
        self.bins += torch.bincount(index, minlength=2 * EDGE)

    def relate(self, name, first, second):
        """Takes the products of the features of two lists of normals, number by number."""
        self.collect(name, (first @ second.T).double(), first.shape[1])

    def collect(self, name, product, pairs):
        """Takes sums of products over so many pairs."""
        self.products[name] = self.products.get(name, 0) + product
        self.pairs[name] = self.pairs.get(name, 0) + pairs


def assert_normal(tally):
    """Moments, distances and tails within their bounds."""
    n = tally.count
    for power, (mean, variance) in MOMENTS.items():
        error = (tally.powers[power] / n - mean) / math.sqrt(variance / n)
        assert abs(error) < SIGMAS, f"moment {power} is {error:.2f} standard errors off"
    edges = np.arange(-EDGE, EDGE + 1) * BIN
    counts = tally.bins.numpy()
    assert counts.sum() == n
    distance = np.abs(np.cumsum(counts) / n - special.ndtr(edges[1:])).max()
    # Taken at the bins' edges only, the largest distance can only be smaller.
    assert distance < 1.95 / math.sqrt(n), f"Kolmogorov-Smirnov distance {distance:.3g}"
    assert special.kolmogorov(distance * math.sqrt(n)) > 1e-3
    expected = n * np.diff(special.ndtr(edges))
    full = expected > 100
    chi = ((counts - expected)[full] ** 2 / expected[full]).sum()
    error = (chi - full.sum()) / math.sqrt(2 * full.sum())
    assert abs(error) < SIGMAS, f"chi-square over {full.sum()} bins is {error:.2f} errors off"
    for limit in (3, 4, 5, 5.5, 6):
        for side, found in (
            ("below", counts[: EDGE - int(limit / BIN)].sum()),
            ("above", counts[EDGE + int(limit / BIN) :].sum()),
        ):
            mean = n * stats.norm.sf(limit)
            bound = SIGMAS * math.sqrt(mean) if mean > 25 else stats.poisson.isf(3e-7, mean)
            assert abs(found - mean) <= bound, f"{found} numbers {side} {limit}, not {mean:.1f}"


def assert_independent(tally):
    """Every product of features averages to 0, within five standard errors."""
    for name, product in tally.products.items():
        errors = product / math.sqrt(tally.pairs[name])
        worst = errors.abs().max().item()
        assert worst < SIGMAS, f"{name}: a correlation of {worst:.2f} standard errors"


def draw(ids, seed, stage):
    return ops.normal((len(ids), SIZE), seed=seed, stage=stage, ids=torch.tensor(ids))


def draw_slots(ids, seed, stage):
    rows = [[1.0, 0.0], [0.0, 1.0]]
    options = dict(noise=rows, seed=seed, stage=stage, ids=torch.tensor(ids))
    return ops.combine([torch.zeros(len(ids), SIZE)], [[1.0], [1.0]], **options)


def relate_within(tally, f):
    """Relates each chunk's numbers with their neighbours; f: features [3, BATCH * SIZE]."""
    # [3 * 4, blocks]: each number of a block with each of the same and of the next one.
    blocks = f.reshape(3, -1, 4).transpose(1, 2).reshape(12, -1).contiguous()
    gram = (blocks @ blocks.T).double()
    lanes = torch.arange(12) % 4
    gram[lanes[:, None] == lanes[None, :]] = 0  # a number with itself
    tally.collect("within a block", gram, blocks.shape[1])
    tally.relate("neighbouring blocks", blocks[:, :-1], blocks[:, 1:])
    tally.relate("256 numbers apart", f[:, :-256], f[:, 256:])  # one call of the kernel
    samples = f.reshape(3, BATCH, SIZE)
    ids = [part.reshape(3, -1) for part in (samples[:, :-1], samples[:, 1:])]
    tally.relate("neighbouring ids", *ids)


@pytest.mark.slow
def test_a_hundred_million_numbers_are_normal_and_independent():
    tally = Tally()
    for seed in range(SEEDS):
        before = None
        for stage in range(STAGES):
            # Ids next to each other, across 0 and across the border of their two words.
            ids = list(range(-4, 4)) + list(range(2**32 - 4, 2**32 + 4))
            z = draw(ids, seed, stage)
            tally.add(z)
            f = features(z)
            if before is not None:
                tally.relate("neighbouring stages", before, f)
            before = f
            relate_within(tally, f)
            tally.relate("neighbouring seeds", f, features(draw(ids, seed + 1, stage)))
            if stage % 4 == 0:
                far = draw(ids, seed + 2**32, stage)
                tally.relate("seeds that differ in the high word", f, features(far))
                far = draw([i + 2**32 for i in ids], seed, stage)
                tally.relate("ids that differ in the high word", f, features(far))
                other = draw(ids, seed, stage + ops.INITIAL_NOISE)
                tally.relate("purposes", f, features(other))
                slots = draw_slots(ids, seed, stage)
                assert torch.equal(slots[0], z)
                tally.relate("slots", f, features(slots[1]))
    assert tally.count > 10**8
    assert_normal(tally)
    assert_independent(tally)


def small_tally(change=lambda z: z):
    tally = Tally()
    for stage in range(4):
        z = change(draw(list(range(BATCH)), 5, stage))
        tally.add(z)
        relate_within(tally, features(z))
    return tally


def test_four_million_numbers_are_normal_and_independent():
    tally = small_tally()
    assert_normal(tally)
    assert_independent(tally)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("moment 1", lambda z: z + 0.003),
        ("moment 2", lambda z: z * 1.005),
        ("moment 4", lambda z: (z + 0.004 * (z**3 - 3 * z)) / (1 + 6 * 0.004**2) ** 0.5),
        ("chi-square", lambda z: (z * 700).round() / 700),
        ("numbers below 4", lambda z: torch.where(z < -4, -z, z)),
    ],
)
def test_numbers_that_are_not_normal_are_noticed(fault, change):
    with pytest.raises(AssertionError, match=fault):
        assert_normal(small_tally(change))


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("within a block", lambda z: z + 0.01 * z.roll(1, 1)),
        # Squares and cubes only: the signs stay independent.
        (
            "within a block",
            lambda z: z.sign() * z.view(-1, 2)[:, :1].expand(-1, 2).reshape(z.shape).abs(),
        ),
        ("neighbouring blocks", lambda z: z + 0.01 * z.roll(4, 1)),
        ("neighbouring ids", lambda z: z + 0.005 * z.roll(1, 0)),
        ("256 numbers apart", lambda z: z + 0.005 * z.roll(256, 1)),
    ],
)
def test_numbers_that_depend_on_each_other_are_noticed(fault, change):
    with pytest.raises(AssertionError, match=fault):
        assert_independent(small_tally(change))
