"""The law of `brownian`: what a Brownian path in exp(2 lam) has to satisfy, over 10^6 numbers."""

import itertools
import math

import pytest
import torch
from brownian_cases import weights_of
from scipy import stats

DEPTH, RANGE = 11, 16.0
SIZE = 2**20
SIGMAS = 5.0  # over some thousand comparisons; by chance, 4 is passed by one in 16,000
# Nodes of every level, near and far from each other, ends included.
NODES = (0, 1, 300, 511, 512, 513, 515, 520, 600, 777, 1000, 1024, 1025, 1600, 2047, 2048)


def draw(nodes, weights, seed=11, size=SIZE, depth=DEPTH, sample=5):
    streams = torch.tensor([[seed, sample, 0]] * len(nodes))
    return torch.ops.diffast.brownian(
        streams, torch.tensor(nodes), weights, depth, None, [size], torch.float32
    )


def distance(a, b, depth=DEPTH):
    return abs(b - a) * RANGE / 2**depth


@pytest.fixture(scope="module")
def path():
    """V [N, SIZE] of one path at NODES."""
    pairs = [(node, node) for node in NODES]
    return draw(pairs, torch.ones(len(pairs), 2, dtype=torch.float64))[1].double()


def increments(nodes, **options):
    """Returns the N(0, 1) of the increments between neighbours of a list of nodes [N - 1, SIZE]."""
    pairs = list(itertools.pairwise(nodes))
    depth = options.get("depth", DEPTH)
    gaps = [math.inf if a < 0 else distance(a, b, depth) for a, b in pairs]
    return draw(pairs, weights_of(gaps), **options)[0]


def assert_correlation(x, y, wanted, label):
    """E[x y] of unit normals with this correlation, within so many standard errors."""
    error = math.sqrt((1 + wanted**2) / len(x))
    found = (x.double() @ y.double()).item() / len(x)
    assert abs(found - wanted) < SIGMAS * error, (label, (found - wanted) / error)


def test_the_path_is_stationary_and_correlated_as_it_should_be(path):
    for (i, a), (j, b) in itertools.product(enumerate(NODES), repeat=2):
        if i <= j:
            assert_correlation(path[i], path[j], math.exp(-distance(a, b)), (a, b))


def test_values_and_increments_are_normal(path):
    for x in (*path[:: len(NODES) // 5], *increments((-1, 0, 100, 101, 1500))):
        assert abs(x.mean()) < SIGMAS / math.sqrt(len(x))
        ks = stats.kstest(x.numpy(), "norm")
        assert ks.pvalue > 1e-4, ks


def test_increments_over_disjoint_intervals_are_independent_unit_normals():
    z = increments((-1, *NODES))
    for i, j in itertools.combinations_with_replacement(range(len(z)), 2):
        assert_correlation(z[i], z[j], float(i == j), (i, j))
        if i < j:  # nor do their sizes know of each other; Var(x^2 - 1) = 2
            assert_correlation((z[i] ** 2 - 1) / 2**0.5, (z[j] ** 2 - 1) / 2**0.5, 0.0, (i, j))


def test_increments_know_nothing_of_the_path_before_them(path):
    z = increments(NODES)
    for i, j in itertools.product(range(len(z)), range(len(NODES))):
        if j <= i:
            assert_correlation(z[i], path[j], 0.0, (i, j))


def test_increments_of_neighbouring_intervals_add_up():
    """W = exp(lam) V: the increments' standard deviations are roots of differences of tau."""

    def deviation(a, b):
        tau = [0.0 if n < 0 else math.exp(2 * distance(0, n) - RANGE) for n in (a, b)]
        return math.sqrt(tau[1] - tau[0])

    for a, b, c in ((512, 513, 514), (512, 520, 777), (0, 1024, 2048), (700, 1025, 1026)):
        parts, (whole,) = increments((a, b, c), size=4096), increments((a, c), size=4096)
        total = deviation(a, b) * parts[0].double() + deviation(b, c) * parts[1].double()
        error = (total / deviation(a, c) - whole).abs().max().item()
        # Values of up to 5 are rounded to 24 bits and divided by sqrt(1 - exp(-2 h)).
        scale = 1 / math.sqrt(-math.expm1(-2 * distance(a, min(b, c))))
        assert error < 5 * 2**-23 * scale, (a, b, c, error)


def test_samples_elements_and_seeds_are_independent():
    nodes = (300, 301, 1024, 1600)
    z = increments(nodes)
    others = {
        "seed": increments(nodes, seed=12),
        "sample": increments(nodes, sample=6),
        "high word of the sample": increments(nodes, sample=5 + 2**32),
    }
    for name, other in others.items():
        for i, j in itertools.product(range(3), repeat=2):
            assert_correlation(z[i], other[j], 0.0, (name, i, j))
    for shift in (1, 2, 3, 4, 5, 64, 1024):
        for i, j in itertools.product(range(3), repeat=2):
            assert_correlation(z[i][shift:], z[j][:-shift], 0.0, (shift, i, j))


def test_the_deepest_tree_still_has_the_law():
    """Neighbours at depth 24 are 1e-6 apart: their float32 difference is good to 4e-5."""
    first = 9_000_001
    z = increments(range(first, first + 5), depth=24, size=2**18)
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        assert_correlation(z[i], z[j], float(i == j), (i, j))
