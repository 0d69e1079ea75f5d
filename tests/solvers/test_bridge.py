"""The bridge of rejected attempts: its weights against the joint law, and by simulation."""

import numpy as np
import pytest
import torch

from diffast.solvers.embedded.bridge import HELD, NEW, bridge, increment

CLOCKS = ("lam", "time")
each_clock = pytest.mark.parametrize("clock", CLOCKS)
INF = np.inf


def covariance(clock, at, one, other):
    """Cov(V_one, V_other) given V_at, at <= both."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    if clock == "time":
        return low - at
    return np.exp(-(high - low)) * -np.expm1(-2.0 * (low - at))


def mean_weight(clock, at, to):
    """E[V_to | V_at] / V_at."""
    return 1.0 if clock == "time" else np.exp(-(to - at))


@each_clock
@pytest.mark.parametrize(
    "known", [(), (0.7,), (2.0,), (0.4, 2.0), (2.0, 0.4, 3.5, 0.9), (0.2, 0.3)]
)
def test_weights_are_the_conditional_law(clock, known):
    """Against the regression of V_to on all that is known, of any number and order of points."""
    at, to = 0.1, 1.1
    slots = {f"slot{k}": np.array([p]) for k, p in enumerate(known)}
    slots |= {"free": np.array([INF])}
    drawn = bridge(np, clock, np.array([at]), np.array([to]), slots)
    cross = np.array([covariance(clock, at, to, p) for p in known])
    among = np.array([[covariance(clock, at, p, q) for q in known] for p in known])
    weights = np.linalg.solve(among, cross) if known else np.zeros(0)
    for k, weight in enumerate(weights):
        assert drawn.value[f"slot{k}"][0] == pytest.approx(weight, abs=1e-12)
    assert drawn.value["free"][0] == 0.0
    own = mean_weight(clock, at, to)
    own -= sum(w * mean_weight(clock, at, p) for w, p in zip(weights, known, strict=True))
    assert drawn.value[HELD][0] == pytest.approx(own, abs=1e-12)
    variance = covariance(clock, at, to, to) - cross @ weights
    assert drawn.fresh[0] ** 2 == pytest.approx(variance, rel=1e-12)
    gain = 1.0 / np.sqrt(covariance(clock, at, to, to))
    assert drawn.noise[NEW][0] == pytest.approx(gain)
    assert drawn.noise[HELD][0] == pytest.approx(-gain * mean_weight(clock, at, to))


@each_clock
def test_a_point_that_is_known_is_not_drawn_again(clock):
    at, to = np.array([0.1]), np.array([1.1])
    slots = {"a": np.array([1.1]), "b": np.array([INF]), "c": np.array([2.0])}
    drawn = bridge(np, clock, at, to, slots)
    assert drawn.fresh[0] == 0.0
    assert [drawn.value[name][0] for name in (HELD, "a", "b", "c")] == [0.0, 1.0, 0.0, 0.0]


@each_clock
def test_no_slots_and_free_slots_are_the_same(clock):
    at, to = np.array([0.1, -3.0]), np.array([1.1, -2.999])
    one = bridge(np, clock, at, to, {})
    other = bridge(np, clock, at, to, {"a": np.full(2, INF)})
    np.testing.assert_allclose(one.value[HELD], other.value[HELD], rtol=1e-15)
    np.testing.assert_allclose(one.fresh, other.fresh, rtol=1e-15)
    np.testing.assert_array_equal(other.value["a"], 0.0)


@each_clock
def test_torch_makes_the_same_rows(clock):
    random = np.random.default_rng(0)
    at = random.normal(size=50)
    to = at + random.exponential(size=50)
    slots = {
        k: np.where(random.random(50) < 0.6, at + random.exponential(size=50), INF) for k in "ab"
    }
    slots["a"][:5] = to[:5]
    one = bridge(np, clock, at, to, slots)
    tensors = {name: torch.from_numpy(p) for name, p in slots.items()}
    other = bridge(torch, clock, torch.from_numpy(at), torch.from_numpy(to), tensors)
    for a, b in ((one.value, other.value), (one.noise, other.noise)):
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_allclose(np.asarray(b[name]), a[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.asarray(other.fresh), one.fresh, rtol=1e-12)


@each_clock
def test_long_and_short_steps_are_finite(clock):
    at = np.array([0.0, 0.0, 0.0, -700.0])
    to = np.array([1e-15, 500.0, 1e-8, 0.0])
    slots = {"a": np.array([2e-15, 900.0, INF, 700.0])}
    drawn = bridge(np, clock, at, to, slots)
    for weight in (*drawn.value.values(), *drawn.noise.values(), drawn.fresh):
        assert np.isfinite(weight).all()


def random_walk(clock, samples, seed, picky, remember=True, slots=24, end=2.0):
    """Samples that walk to `end` by random attempts, some rejected and their points remembered.

    Args:
        clock: "lam" or "time".
        samples: how many.
        seed: of everything random.
        picky: whether a rejection depends on the noise that was drawn, which must not change the
            path's law; else on chance.
        remember: whether rejected points are remembered.
        slots: how many; with all in use the attempt is accepted.
        end: where the path ends.

    Returns:
        The path's values at 0 and at `end` [samples], the noises of all accepted attempts, the
        largest number of points that one sample remembered.
    """
    random = np.random.default_rng(seed)
    start = random.normal(size=samples) if clock == "lam" else np.zeros(samples)
    at, value, step = np.zeros(samples), start.copy(), random.uniform(0.2, 0.7, size=samples)
    places, values = np.full((slots, samples), INF), np.zeros((slots, samples))
    names, noises, fullest = [f"slot{k}" for k in range(slots)], [], 0
    while (on := np.flatnonzero(at < end)).size:
        to = np.minimum(at[on] + step[on], end)
        drawn = bridge(np, clock, at[on], to, dict(zip(names, places[:, on], strict=True)))
        held = dict(zip(names, values[:, on], strict=True)) | {HELD: value[on]}
        new = sum(weight * held[name] for name, weight in drawn.value.items())
        new = new + drawn.fresh * random.normal(size=on.size)
        z = drawn.noise[NEW] * new + drawn.noise[HELD] * value[on]
        refused = np.abs(z) > 1.5 if picky else random.random(on.size) < 0.3
        accepted = ~refused | ~np.isinf(places[:, on]).any(0)
        noises.append(z[accepted])
        moved, kept = on[accepted], on[~accepted]
        at[moved], value[moved] = to[accepted], new[accepted]
        places[:, moved] = np.where(places[:, moved] <= at[moved], INF, places[:, moved])
        if remember:
            new, to = new[~accepted], to[~accepted]
            unknown = (places[:, kept] != to).all(0)  # a position is remembered once
            rows, columns = np.isinf(places[:, kept]).argmax(0)[unknown], kept[unknown]
            places[rows, columns], values[rows, columns] = to[unknown], new[unknown]
        fullest = max(fullest, int(np.isfinite(places).sum(0).max()))
        step[moved] = np.minimum(4.0 * step[moved], 0.7)
        step[kept] *= 0.5
    return start, value, np.concatenate(noises), fullest


def deviations(clock, start, value, end=2.0):
    """Mean, variance, fourth moment and correlation with the start, in standard errors."""
    samples = len(value)
    scaled = value / (1.0 if clock == "lam" else np.sqrt(end))  # N(0, 1), if all is right
    found = {
        "mean": scaled.mean() * np.sqrt(samples),
        "variance": (scaled.var() - 1.0) / np.sqrt(2.0 / samples),
        "fourth": ((scaled**4).mean() - 3.0) / np.sqrt(96.0 / samples),
    }
    if clock == "lam":
        found["start"] = ((value * start).mean() - np.exp(-end)) * np.sqrt(samples)
    return found


@pytest.mark.parametrize("picky", [False, True], ids=["chance", "picky"])
@each_clock
def test_law_of_the_path_after_rejections(clock, picky):
    start, value, noises, fullest = random_walk(clock, 100_000, 1, picky)
    # by chance there are more slots than needed; a picky walk fills any number, where it stands
    # before a move that it will not make, and then accepts
    assert 4 <= fullest < (25 if picky else 24)
    found = deviations(clock, start, value)
    assert max(map(abs, found.values())) < 4.0, found
    if not picky:  # what chance accepts has N(0, 1) noise, whatever was rejected before
        assert abs(noises.mean()) < 4.0 / np.sqrt(noises.size)
        assert abs(noises.var() - 1.0) < 4.0 * np.sqrt(2.0 / noises.size)


@each_clock
def test_forgetting_would_fail_that_test(clock):
    start, value, _, _ = random_walk(clock, 20_000, 2, picky=True, remember=False)
    assert deviations(clock, start, value)["variance"] < -20.0
    start, value, _, _ = random_walk(clock, 20_000, 2, picky=False, remember=False)
    assert abs(deviations(clock, start, value)["variance"]) < 4.0  # chance selects nothing


@each_clock
def test_increments_are_standard_normal(clock):
    at, to = np.full(200_000, 0.3), np.full(200_000, 0.9)
    random = np.random.default_rng(3)
    value = random.normal(size=at.size)
    drawn = bridge(np, clock, at, to, {})
    new = drawn.value[HELD] * value + drawn.fresh * random.normal(size=at.size)
    row = increment(np, clock, at, to)
    z = row[NEW] * new + row[HELD] * value
    assert abs(z.mean()) < 4.0 / np.sqrt(z.size)
    assert abs(z.var() - 1.0) < 4.0 * np.sqrt(2.0 / z.size)
    assert abs((z * value).mean()) < 4.0 / np.sqrt(z.size)  # independent of the past
