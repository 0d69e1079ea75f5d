"""`BrownianPath`: increments between model times, what it remembers, how deep its tree is."""

import numpy as np
import pytest
import torch
from brownian_cases import weights_of
from op_cases import assert_same_bits

import diffast as df
from diffast import ops
from diffast.noise.brownian import LEAST_DEPTH, BrownianPath

EDM, FLOW = df.schedules.edm(), df.schedules.flow()
TIMES = [80.0, 31.0, 9.0, 2.5, 0.7, 0.2, 0.05, 0.01]
SHAPE = (3, 2, 5)


def chain(path, times):
    """Returns the increments between neighbours [N - 1, B, ...]."""
    pairs = zip(times[:-1], times[1:], strict=True)
    return torch.stack([path.increment(a, b) for a, b in pairs])


def test_increments_are_those_of_the_op_between_the_nearest_nodes():
    depth = 12
    path = BrownianPath(EDM, SHAPE, 7, [5, 6, -1], depth=depth)
    cell = 16 / 2**depth
    streams = torch.tensor([[7, 5, 0], [7, 6, 0], [7, -1, 0]])
    for a, b in ((80.0, 2.5), (2.5, 0.7), (31.0, 0.7)):
        nodes = [round((8 - np.log(t)) / cell) for t in (a, b)]
        weights = weights_of([(nodes[1] - nodes[0]) * cell] * 3)
        wanted, _ = torch.ops.diffast.brownian(
            streams, torch.tensor([nodes] * 3), weights, depth, None, [2, 5], torch.float32
        )
        assert_same_bits(path.increment(a, b), wanted)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_what_was_asked_before_does_not_matter(dtype):
    """One path answers as new ones do, in any order, with the values it remembers or without."""
    path = BrownianPath(EDM, SHAPE, 3, dtype=dtype)
    together = chain(path, TIMES)
    for a, b, z in zip(TIMES[:-1], TIMES[1:], together, strict=True):
        assert_same_bits(BrownianPath(EDM, SHAPE, 3, dtype=dtype).increment(a, b), z)
    for i in (5, 0, 3, 3, 2):
        assert_same_bits(path.increment(TIMES[i], TIMES[i + 1]), together[i])
    inner = BrownianPath(EDM, SHAPE, 3, dtype=dtype)
    for i in range(6):  # as DPM-Solver++ SDE asks: to an inner time, then over the whole step
        inner.increment(TIMES[i], 0.6 * TIMES[i])
        assert_same_bits(inner.increment(TIMES[i], TIMES[i + 1]), together[i])


def test_consecutive_increments_take_one_descent(monkeypatch):
    known = []
    call = ops.brownian_out
    monkeypatch.setattr(ops, "brownian_out", lambda *args: known.append(args[4]) or call(*args))
    path = BrownianPath(EDM, SHAPE)
    chain(path, TIMES)
    assert known[0] is None and all(last is not None for last in known[1:])
    known.clear()
    for a, b in zip(TIMES[:-1], TIMES[1:], strict=True):
        path.increment(a, 0.9 * a)
        path.increment(a, b)
    assert all(last is not None for last in known[2:])


def test_a_sample_depends_on_its_seed_and_id_alone():
    whole = chain(BrownianPath(EDM, SHAPE, 3, [4, 9, -2]), TIMES)
    for b, sample in enumerate((4, 9, -2)):
        alone = chain(BrownianPath(EDM, (1, 2, 5), 3, [sample]), TIMES)
        assert_same_bits(alone[:, 0], whole[:, b])
    assert_same_bits(
        chain(BrownianPath(EDM, SHAPE, 2**64 + -5, torch.tensor([0, 1, 2])), TIMES),
        chain(BrownianPath(EDM, SHAPE, -5), TIMES),
    )
    seeds = chain(BrownianPath(EDM, SHAPE, [3, 8, 3], [4, 4, 4]), TIMES)
    assert_same_bits(seeds[:, 0], whole[:, 0])
    assert_same_bits(seeds[:, 2], whole[:, 0])
    assert not torch.equal(seeds[:, 1], whole[:, 0])


def test_each_sample_may_have_its_own_times():
    rng = np.random.default_rng(0)
    times = np.sort(np.exp(rng.uniform(-4, 4, size=(6, 3))), axis=0)[::-1].copy()
    together = BrownianPath(EDM, SHAPE, 1, depth=20)
    got = chain(together, list(times))
    for b in range(3):
        alone = chain(BrownianPath(EDM, (1, 2, 5), 1, [b], depth=20), times[:, b].tolist())
        assert_same_bits(got[:, b], alone[:, 0])
    again = chain(BrownianPath(EDM, SHAPE, 1, depth=20), [torch.from_numpy(t) for t in times])
    assert_same_bits(again, got)


def test_out_is_written_and_returned():
    out = torch.full(SHAPE, torch.nan)
    path = BrownianPath(EDM, SHAPE)
    assert path.increment(9.0, 1.0, out=out) is out
    assert_same_bits(out, BrownianPath(EDM, SHAPE).increment(9.0, 1.0))


def test_pure_noise_is_minus_infinity_and_other_times_are_clamped():
    """From alpha = 0 the increment is V itself, so it adds up with all that follows."""
    path = BrownianPath(FLOW, (1, 4096), 5)
    first, second = path.increment(1.0, 0.5), path.increment(0.5, 0.1)
    whole = path.increment(1.0, 0.1)
    tau = 1.0, 81.0  # (alpha / sigma)^2 at 0.5 and 0.1
    total = (first * tau[0] ** 0.5 + second * (tau[1] - tau[0]) ** 0.5) / tau[1] ** 0.5
    assert (total - whole).abs().max() < 0.02  # the times are rounded to nodes
    wide = df.schedules.edm(1e-6, 1e6)
    assert_same_bits(
        BrownianPath(wide, SHAPE).increment(1e6, 1e-6),
        BrownianPath(wide, SHAPE).increment(1e5, 1e-5),
    )


def test_the_tree_grows_with_short_intervals():
    """16 nodes an interval; increments stay those of one path with the right law."""
    assert BrownianPath(EDM, SHAPE, spans=[(80.0, 9.0), (9.0, 1.0)]).depth == LEAST_DEPTH
    steps = np.exp(np.linspace(4.0, 3.9, 9))
    assert BrownianPath(EDM, SHAPE, spans=np.stack([steps[:-1], steps[1:]], 1)).depth == 15
    close = [(80.0, 9.0), (80.0, 9.0 - 1e-3)]  # two times that are not one interval
    assert BrownianPath(EDM, SHAPE, spans=close).depth == 18
    noisy = [(80.0, 9.0), (80.0, 9.0 * (1 + 1e-15))]  # one time, rounded twice
    assert BrownianPath(EDM, SHAPE, spans=noisy).depth == LEAST_DEPTH
    path = BrownianPath(EDM, (1, 2**18), 1)
    times = 20.0 * np.exp(-np.cumsum([0, 0.3, 0.1, 0.05, 0.013, 0.004, 0.001, 0.0004, 0.00011]))
    z = chain(path, times.tolist())[:, 0].double()
    assert path.depth == 22
    errors = (z @ z.T / 2**18 - torch.eye(8)) * 2**9
    assert errors.abs().max() < 5, errors


def test_the_end_of_the_domain():
    """A start at the last node, from before the tree grew, would leave no node for the end."""
    path = BrownianPath(EDM, (1, 2**14), 3)
    levels = [float(np.exp(-lam)) for lam in (7.5, 7.997, 7.9985)]
    for z in chain(path, levels):
        assert abs(z.square().mean() - 1) < 5 * (2 / 2**14) ** 0.5


def test_a_deeper_tree_is_the_same_path():
    """Ends are rounded to other nodes, half a cell away at most: variance 2 h for a distance h."""
    spans = [(80.0, 9.0), (9.0, 8.9)]
    planned = BrownianPath(EDM, (1, 4096), 2, spans=spans)
    fixed = BrownianPath(EDM, (1, 4096), 2, depth=planned.depth)
    assert planned.depth > LEAST_DEPTH
    for span in spans:
        assert_same_bits(planned.increment(*span), fixed.increment(*span))
    coarse = BrownianPath(EDM, (1, 4096), 2)
    gap = coarse.increment(*spans[0]) - fixed.increment(*spans[0])
    assert coarse.depth == LEAST_DEPTH
    assert 0 < gap.square().mean() < 2 * 2 * (16 / 2**LEAST_DEPTH / 2) * 1.1


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (2,)))
def test_empty_and_flat_shapes(shape):
    path = BrownianPath(EDM, shape, spans=[(9.0, 1.0)])
    assert path.increment(9.0, 1.0).shape == shape
    assert path.increment(1.0, 0.5).shape == shape
    each = [0.5] * shape[0], [0.2] * shape[0]
    assert path.increment(*each).shape == shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BrownianPath(EDM, SHAPE, depth=25),
            "depth is 25 but must be a whole number from 1 to 24",
        ),
        (lambda: BrownianPath(EDM, SHAPE, [1, 2]), "2 seeds and 3 ids for 3 samples"),
        (lambda: BrownianPath(EDM, SHAPE, 1, [1]), "3 seeds and 1 ids for 3 samples"),
        (lambda: BrownianPath(EDM, SHAPE).increment([1.0, 1.0], 0.5), "2 times, but there are 3"),
        (lambda: BrownianPath(EDM, SHAPE, 2**64), "does not fit into 64 bits"),
        (lambda: BrownianPath(EDM, SHAPE).increment(1.0, 2.0), "from t = 1 to t = 2 noise is put"),
        (lambda: BrownianPath(EDM, SHAPE).increment(1.0, 0.0), "sigma = 0 at t = 0"),
        (lambda: BrownianPath(EDM, SHAPE).increment(1.0, 1.0), "t = 1 and t = 1 are one node"),
        (
            lambda: BrownianPath(EDM, SHAPE, depth=11).increment(1.0, 0.999),
            "t = 1 and t = 0.999 are one node of the tree of depth 11",
        ),
        (
            lambda: BrownianPath(EDM, SHAPE).increment(1.0, 1.0 - 1e-8),
            "t = 1 and t = 0.99999999 are one node of the tree of depth 24",
        ),
        (
            lambda: BrownianPath(df.schedules.edm(1e-6, 1e6), SHAPE, spans=[(1e6, 1e5)]),
            "t = 1000000 and t = 100000 are one node",
        ),
        (
            lambda: BrownianPath(EDM, SHAPE, spans=[(1.0, 0.5), (0.2, 0.4)]),
            "from t = 0.2 to t = 0.4 noise is put back",
        ),
        (
            lambda: BrownianPath(EDM, SHAPE).increment([9.0, 9.0, 1.0], [1.0, 1.0, 1.5]),
            "from t = 1 to t = 1.5 noise is put back",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
