"""The speed-accuracy relation against closed forms, quadratures and runs of samplers."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo import bound, distances, speed

TWO = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
TRIG, FLOW = df.schedules.trig(), df.schedules.flow()
STARTS = {"mean": (1.0, 1.0), "variance": (0.0, 0.64)}  # mean and variance of the reverse start


def normal(mean, variance):
    return df.thermo.GaussianMixture([1.0], [mean], [variance])


def cdf(alpha, sigma):
    def found(x):
        spread = (alpha**2 * 0.09 + sigma**2) ** 0.5
        x = torch.as_tensor(x, dtype=torch.float64)
        return 0.5 * sum(torch.special.ndtr((x + side * alpha) / spread) for side in (-1.0, 1.0))

    return found


def w1_at(alpha, sigma, start):
    """Returns W1 at a level by quadrature; p_made has the quantiles moved by the monotone map."""
    mean, variance = STARTS[start]
    x = torch.linspace(-7.0, 7.0, 8001, dtype=torch.float64)
    law = cdf(alpha, sigma)
    z = torch.where(x < 0, torch.special.ndtri(law(x)), -torch.special.ndtri(law(-x)))
    moved = torch.special.ndtr((z - mean) / variance**0.5)
    # where 1 - F has lost its digits both laws are 0 or 1
    gap = torch.where(z.abs() < 30.0, (moved - torch.special.ndtr(z)).abs(), 0.0)
    return float(torch.trapezoid(gap, x))


def chi2_of(start):
    return distances.chi_square(normal(*STARTS[start]), normal(0.0, 1.0))


@pytest.mark.parametrize(("start", "eta"), [("mean", 0.00758502), ("variance", 0.102393)])
def test_eta_in_one_dimension_is_that_of_every_path(start, eta):
    # An earlier check gave .102393; adaptive quadrature gives .102395.
    field = df.thermo.MonotoneTransport(cdf(1.0, 0.0), -4.0, 4.0)
    z = torch.linspace(-8.0, 8.0, 100_001, dtype=torch.float64)
    mean, variance = STARTS[start]
    apart = (field.map(mean + variance**0.5 * z) - field.map(z)).abs()
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    by_transport = float(torch.trapezoid(density * apart, z))
    ends = [w1_at(1.0, 1e-9, start), w1_at(1e-9, 1.0, start)]
    assert by_transport == pytest.approx(ends[0], abs=1e-6)
    report = bound.speed_accuracy_of_curve([0.0, 1.0], ends, chi2_of(start), 0.3)
    assert report.eta.value == pytest.approx(eta, abs=3e-6)


@pytest.mark.parametrize(
    ("path", "c_1", "c_2"),
    [
        # An earlier check gave c_1 .01809 .17877 .00759 by coarser differences, which are below
        # the integral, and for the transport c_2 .145991; adaptive quadrature gives .146013.
        ("cosine", 0.018123, 0.298005),
        ("line", 0.179922, 0.638232),
        ("transport", 0.007585, 0.146013),
    ],
)
def test_the_three_numbers_of_a_moved_mean(path, c_1, c_2):
    share = np.sin(np.linspace(0.0, 0.5 * math.pi, 401)) ** 2
    if path == "transport":
        # x(s) = (1 - s) z + s T(z) keeps the order of points, so W1 is linear in s
        ends = w1_at(1.0, 1e-9, "mean"), w1_at(1e-9, 1.0, "mean")
        curve = (1 - share) * ends[0] + share * ends[1]
        action = df.thermo.MonotoneTransport(cdf(1.0, 0.0), -4.0, 4.0).action
    else:
        schedule = {"cosine": TRIG, "line": FLOW}[path]
        t = share * schedule.t_start
        levels = zip(schedule.alpha(t), schedule.sigma(t), strict=True)
        curve = [w1_at(float(a), float(max(s, 1e-9)), "mean") for a, s in levels]
        mmse = lambda rho: TWO.mmse(rho, points=101)  # noqa: E731
        action = speed.action(schedule, mmse, TWO.energy, 1)
    report = bound.speed_accuracy_of_curve(share, curve, chi2_of("mean"), action)
    assert report.c_1.value == pytest.approx(c_1, abs=1.5e-6)
    assert report.c_2 == pytest.approx(c_2, abs=1.5e-6)
    assert report.holds and report.eta.value <= report.c_1.value


def test_samples_give_the_numbers_within_their_error():
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoiser = TWO.denoiser(TRIG)
    plan = df.solvers.dpmpp_2m(TRIG, df.grids.default(TRIG, 40))
    sets = []
    for x in (z, z + 1.0):
        kept = [x]
        df.sample(denoiser, plan, x=x, callback=lambda p, kept=kept: kept.append(p.x.clone()))
        sets.append(kept)
    times = df.grids.default(TRIG, 40)
    report = bound.speed_accuracy(*sets, times, chi2_of("mean"), 0.298005)
    assert abs(report.eta.value - 0.00758502) < 3 * report.eta.error + 2e-4
    assert report.holds and report.count == 4000 and report.times[0] == 0.0
    assert abs(report.c_1.value - 0.01809) < 3 * report.c_1.error
    assert "far from the error" in report.says()
    assert report.to_dict()["eta"][0] == report.eta.value


def test_scalar_paths_share_their_eta_in_two_dimensions_too():
    # The flow depends on sigma / alpha alone, so a schedule cannot change where it ends.
    data = df.thermo.GaussianMixture(None, [[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], 0.02)
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for schedule in (TRIG, FLOW):
        plan = df.solvers.dpmpp_2m(schedule, df.grids.default(schedule, 60))
        runs = [df.sample(data.denoiser(schedule), plan, x=x).x for x in (z, z + 0.5)]
        found.append(distances.wasserstein1(*runs))
    assert found[0] == pytest.approx(found[1], rel=2e-3)


def test_sliced_distances_obey_the_bound_divided_by_d():
    # Normal data of 64 elements shrink from deviation 1 to s; the start is moved by a unit vector.
    d, s = 64, 0.5
    z = torch.randn(500, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    away = torch.eye(d, dtype=torch.float64)[0]
    share = np.linspace(0.0, 1.0, 5)
    scale = [s + (1 - s) * t for t in share]
    sets = [[f * z for f in scale], [f * (z + away) for f in scale]]
    report = bound.speed_accuracy(*sets, share, math.e - 1.0, d * (1 - s) ** 2)
    # |projection of a unit vector| has the mean sqrt(2 / (pi d))
    assert report.w1[-1] == pytest.approx(math.sqrt(2 / math.pi), rel=0.2)
    assert report.eta.value == pytest.approx((report.w1[-1] * (1 - s)) ** 2 / (math.e - 1))
    assert report.holds and report.gap > 64


def test_rotation_costs_speed_and_buys_no_accuracy():
    # A drift -h x + g J x at temperature T: the bound (77) with all forces holds for every g.
    h, temperature, start = 1.1, 0.5, torch.tensor([0.5, 0.0], dtype=torch.float64)
    costs, etas = [], []
    for g in (0.0, 3.0, 5.0):
        drift = torch.tensor([[-h, g], [-g, -h]], dtype=torch.float64)
        S = torch.diag(torch.tensor([2.0, 0.1], dtype=torch.float64))
        M, n, cost = torch.eye(2, dtype=torch.float64), 2000, 0.0
        eye = temperature * torch.eye(2, dtype=torch.float64)

        def velocity(S, drift=drift, eye=eye):
            return drift + eye @ torch.linalg.inv(S)  # nu = (drift + T S^-1) x

        for _ in range(n):  # midpoint rule for the covariance and for the flow map
            A = velocity(S)
            half = S + 0.5 / n * (A @ S + S @ A.T)
            A = velocity(half)
            cost += float((A @ half @ A.T).trace()) / n
            M = M + 1.0 / n * A @ (M + 0.5 / n * A @ M)
            S = S + 1.0 / n * (A @ half + half @ A.T)
        chi2 = float((start @ torch.linalg.solve(S, start)).exp()) - 1.0
        moved = torch.linalg.solve(M, start).norm() - start.norm()
        costs.append(cost)
        etas.append(float(moved) ** 2 / chi2)
        assert etas[-1] <= cost
    assert costs[0] < 1.0 < costs[1] < costs[2] and costs[2] - costs[0] == pytest.approx(
        25 / 9 * (costs[1] - costs[0]), rel=1e-3
    )
    # another direction is amplified: the change of the error falls while the cost rises
    assert etas[2] < 0.2 * etas[0]


def test_distances_and_chi_square():
    assert distances.wasserstein1([0.0, 1.0], [1.0, 2.0]) == pytest.approx(1.0)
    assert distances.wasserstein1([0.0, 1.0, 2.0], [0.5]) == pytest.approx((0.5 + 0.5 + 1.5) / 3)
    x, y = TWO.sample(5000, 1), TWO.sample(5000, 2) + 0.3
    grid = np.linspace(-4, 4.5, 4001)
    exact = distances.wasserstein1_of_cdfs(cdf(1.0, 0.0), lambda v: cdf(1.0, 0.0)(v - 0.3), grid)
    assert exact == pytest.approx(0.3, abs=1e-6)
    assert distances.wasserstein1(x, y) == pytest.approx(0.3, abs=0.05)
    assert distances.wasserstein2(x, x + 0.3) == pytest.approx(0.3)
    plane = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert distances.wasserstein2(plane, plane.flip(0) + 0.1) == pytest.approx(0.1 * 2**0.5, 1e-5)
    assert chi2_of("mean") == pytest.approx(math.e - 1.0)
    assert chi2_of("variance") == pytest.approx(1 / (0.8 * math.sqrt(1.36)) - 1)
    assert distances.chi_square(normal(0.0, 2.1), normal(0.0, 1.0)) == math.inf
    wide = np.linspace(-12, 12, 20001)
    mixed = df.thermo.GaussianMixture([0.3, 0.7], [-0.4, 0.5], [0.8, 1.1])
    closed = distances.chi_square(mixed, normal(0.1, 1.0))
    assert distances.chi_square(mixed, normal(0.1, 1.0), wide) == pytest.approx(closed, rel=1e-9)
    flat = df.thermo.GaussianMixture(None, [[0.3, 0.0]], [[0.8, 1.2]])
    unit = df.thermo.GaussianMixture(None, [[0.0, 0.0]], 1.0)
    parts = [
        distances.chi_square(normal(m, v), normal(0.0, 1.0)) for m, v in ((0.3, 0.8), (0, 1.2))
    ]
    assert 1 + distances.chi_square(flat, unit) == pytest.approx(math.prod(1 + p for p in parts))
    drawn = mixed.sample(20_000)
    ratio = mixed.log_density(drawn) - normal(0.1, 1.0).log_density(drawn)
    sampled = distances.chi_square_of_samples(ratio)
    assert abs(sampled.value - closed) < 4 * sampled.error
    near = 0.05
    assert distances.chi_square_of_kl(near**2 / 2) == pytest.approx(math.expm1(near**2), rel=2e-3)


def test_an_imperfect_velocity():
    # A still path and a field that moves everything at speed b: W1 grows at the rate b.
    assert bound.w1_rate_bound(0.0, 0.0, 0.09) == pytest.approx(0.3)
    assert bound.w1_change_bound(0.5, 0.04) == pytest.approx(math.sqrt(0.02))
    assert bound.w1_change_bound(0.5, 0.04, 0.01) == pytest.approx(
        math.sqrt(0.02) + math.sqrt(1.5 * 0.01)
    )


SOME = [np.arange(50.0), np.arange(50.0)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bound.speed_accuracy(SOME, SOME[:1], [0, 1], 1.0, 1.0), "as many of one shape"),
        (lambda: bound.speed_accuracy(SOME, SOME, [0, 0], 1.0, 1.0), "rising or falling"),
        (lambda: bound.speed_accuracy(SOME, SOME, [0, 1], math.inf, 1.0), "must be finite"),
        (lambda: bound.speed_accuracy(SOME, SOME, [0, 1], 0.0, 1.0), "the start is right"),
        (
            lambda: bound.speed_accuracy([[1.0] * 9] * 2, [[1.0] * 9] * 2, [0, 1], 1.0, 1.0),
            "9 samples, but 40",
        ),
        (lambda: distances.chi_square(TWO, TWO), "closed form"),
        (lambda: distances.wasserstein1([math.nan], [1.0]), "not finite"),
        (lambda: distances.wasserstein2([[1.0, 2.0]], [[1.0, 2.0]] * 2), "as many of both"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_too_few_samples_are_said():
    drawn = np.random.default_rng(0)
    sets = [[drawn.standard_normal(60) for _ in range(2)] for _ in range(2)]
    with pytest.warns(df.thermo.FewSamplesWarning, match="eta"):
        bound.speed_accuracy(*sets, [0.0, 1.0], 1.0, 1.0)


def test_a_run_that_is_not_the_flow_is_said():
    # W1 that jumps within a short piece of the path, as the error of a long solver step does
    report = bound.speed_accuracy_of_curve([0.0, 0.999, 1.0], [0.3, 0.3, 0.2], 0.1, 0.2)
    assert not report.holds and "VIOLATED" in report.says() and "too few steps" in report.says()
