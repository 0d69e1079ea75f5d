"""Franz-Parisi potentials, free energies and order parameters against closed forms."""

import math

import numpy as np
import pytest
import torch

import diffast as df

F64 = torch.float64
Q = [0.05, 0.2, 0.5, 1.0, 2.0, 4.0]
TWO = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.25)

# V(q) - V(.05) at q = .2, .5, 1, 2, 4 for .5 N(+-1, .25), from sampled means: (values, their
# error as far as samples of the same size tell it).
REFERENCE = {
    0.42: ([0.781, 1.507, 2.295, 3.161, 4.205], 0.006),
    0.015: ([2.407, 6.993, 14.74, 30.43, 62.43], 0.02),
}


@pytest.mark.parametrize("t", REFERENCE)
def test_franz_parisi_reference(t):
    wanted, error = REFERENCE[t]
    exact = df.thermo.franz_parisi(TWO, t, Q)
    assert np.abs(exact.value[1:] - exact.value[0] - wanted).max() < error
    assert (exact.error == 0).all()
    sampled = df.thermo.franz_parisi(TWO, t, Q, samples=20_000)
    assert (np.abs(sampled.value - exact.value) < 4.5 * sampled.error).all()
    for i in range(1, 6):
        apart = sampled.difference(i, 0)
        assert abs(apart.value - exact.difference(i, 0).value) < 4.5 * apart.error
        assert apart.error < math.hypot(sampled.error[i], sampled.error[0])


def test_franz_parisi_of_one_gaussian_is_its_closed_form():
    variance, t = 0.4, 0.3
    one = df.thermo.GaussianMixture(None, [0.3], variance)
    left = 1.0 / (math.exp(-2 * t) / -math.expm1(-2 * t) + 1.0 / variance)  # of the posterior
    u, weight = np.polynomial.hermite_e.hermegauss(150)
    weight, q = weight / weight.sum(), np.array(Q)
    pull = u * np.sqrt(q / left)[:, None]
    shells = (weight * np.logaddexp(pull, -pull)).sum(1)
    wanted = 1.0 + 0.5 * math.log(2 * math.pi * variance) + q / (2 * left)
    wanted = wanted + np.log(2 * np.sqrt(q)) - shells
    assert np.abs(df.thermo.franz_parisi(one, t, q).value - wanted).max() < 2e-4


def test_franz_parisi_takes_schedules():
    schedule = df.schedules.vp_linear(2.0, 2.0)  # alpha = exp(-t)
    both = [df.thermo.franz_parisi(TWO, 0.3, Q, schedule=s).value for s in (None, schedule)]
    assert np.abs(both[0] - both[1]).max() < 1e-12


def flip_of_the_drift(mu, variance):
    """Time at which the reverse drift x + 2 score of .5 N(+-mu, variance) turns over at 0."""
    mixture = df.thermo.GaussianMixture(None, [-mu, mu], variance)
    zero, low, high = torch.zeros(1, 1, dtype=F64), 1e-4, 5.0
    for _ in range(60):
        t = 0.5 * (low + high)
        alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2 * t))
        spread = float(mixture.posterior_covariance(zero, alpha, sigma))
        slope = 1.0 + 2.0 * (alpha**2 * spread / sigma**4 - 1.0 / sigma**2)
        low, high = (t, high) if slope > 0 else (low, t)
    return 0.5 * (low + high)


def test_time_at_which_the_reverse_drift_turns_over():
    found = flip_of_the_drift(1.0, 0.1)
    assert found == pytest.approx(0.42622, abs=5e-6)
    assert found == pytest.approx(0.5 * math.log(1.0 + math.sqrt(1.0 + 0.81)), abs=1e-12)


@pytest.mark.parametrize("level", [(1.0, 0.6), (0.6, 0.8)])
def test_the_gradient_of_the_free_energy_is_the_score(level):
    three = df.thermo.GaussianMixture([1, 2, 1], [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], 0.3)
    x = torch.linspace(-2, 2, 8, dtype=F64).reshape(4, 2).requires_grad_()
    (slope,) = torch.autograd.grad(df.thermo.free_energy(three, x, *level).sum(), x)
    assert (slope + level[1] ** 2 * three.score(x.detach(), *level)).abs().max() < 1e-12


def test_free_energy_is_that_of_the_integral():
    x, alpha, sigma = 0.4, 0.7, 0.5
    y = torch.linspace(-8, 8, 20_001, dtype=F64)[:, None]
    energy = (x - alpha * y[:, 0]).square() / (2 * sigma**2) - TWO.log_density(y)
    z = float(((-energy).exp() * (y[1] - y[0])).sum())
    found = float(df.thermo.free_energy(TWO, [[x]], alpha, sigma))
    assert found == pytest.approx(-(sigma**2) * math.log(z), abs=1e-9)


def test_a_pitchfork_and_a_saddle_node():
    deltas = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.0)
    high = df.thermo.order_parameters(deltas, 1.0, 1.1)
    assert len(high.y) == 1
    assert float(high.stability[0]) > 0
    low = df.thermo.order_parameters(deltas, 1.0, 0.7)
    assert len(low.y) == 3
    outer = float(low.y[2])
    assert math.tanh(outer / 0.49) == pytest.approx(outer, abs=1e-9)
    assert (low.stability[[0, 2]] > 0).all()
    assert float(low.stability[1]) < 0
    assert float(low.free_energy[1]) > float(low.free_energy[0])
    # Uneven weights: the second valley is born beside the first one.
    uneven = df.thermo.GaussianMixture([0.8, 0.2], [1.0, -1.0], 0.0)
    counts = [len(df.thermo.order_parameters(uneven, 1.0, s).y) for s in (0.675, 0.667)]
    assert counts == [1, 3]  # at sigma = .6709


def test_mean_field_exponent():
    deltas = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.0)
    gaps = np.array([1e-3, 1e-4])
    tops = [float(df.thermo.order_parameters(deltas, 1.0, math.sqrt(1 - g)).y[-1]) for g in gaps]
    slope = np.diff(np.log(tops))[0] / np.diff(np.log(gaps))[0]
    assert slope == pytest.approx(0.5, abs=1e-3)
    assert tops[1] / math.sqrt(3 * gaps[1]) == pytest.approx(1.0, abs=1e-3)


def test_order_parameters_in_two_dimensions_are_valleys():
    corners = df.thermo.GaussianMixture(None, [[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]], 0.05)
    found = df.thermo.order_parameters(corners, 1.0, 0.4)
    assert found.y.shape == (3, 2)
    assert (found.stability > 0).all()
    assert (corners.x0(found.y, 1.0, 0.4) - found.y).abs().max() < 1e-8
    alone = df.thermo.order_parameters(corners, 1.0, 4.0)
    assert len(alone.y) == 1
    with pytest.raises(ValueError, match="after 3 steps the posterior mean still moves"):
        df.thermo.order_parameters(corners, 1.0, 1.0, steps=3)


def test_free_energy_along_a_line_of_a_network():
    schedule = df.schedules.edm()
    line = torch.linspace(-2, 2, 2001, dtype=F64)[:, None]
    found = df.thermo.free_energy_along(TWO.denoiser(schedule), line, 0.6)
    exact = df.thermo.free_energy(TWO, line, 1.0, 0.6)
    assert found[0] == 0.0
    assert np.abs(found - (exact - exact[0]).numpy()).max() < 1e-5


BAD = {
    "d": (lambda: df.thermo.franz_parisi(_plane(), 0.3, Q), "the data have d = 2"),
    "points": (lambda: df.thermo.franz_parisi(_points(), 0.3, Q), "a variance is 0"),
    "q": (lambda: df.thermo.franz_parisi(TWO, 0.3, [0.0]), "squared distances above 0"),
    "t": (lambda: df.thermo.franz_parisi(TWO, 0.0, Q), "sigma = 0 at t = 0"),
    "samples": (lambda: df.thermo.franz_parisi(TWO, 0.3, Q, samples=1), "samples = 1, but 2"),
    "level": (lambda: df.thermo.free_energy(TWO, [[0.0]], 1.0, 0.0), "sigma must be above 0"),
    "alpha": (lambda: df.thermo.order_parameters(TWO, 0.0, 1.0), "alpha = 0, but it must be above"),
    "line": (lambda: _along(torch.zeros(1, 1)), "no tensor [n, ...] of 2 or more states"),
    "nan": (
        lambda: _along(torch.full((3, 1), math.nan)),
        "an x0 estimate at t = 0.6 is not finite",
    ),
}


def _plane():
    return df.thermo.GaussianMixture(None, [[0.0, 1.0]], 0.3)


def _points():
    return df.thermo.GaussianMixture(None, [0.0, 1.0], 0.0)


def _along(line):
    return df.thermo.free_energy_along(TWO.denoiser(df.schedules.edm()), line, 0.6)


@pytest.mark.parametrize("name", BAD)
def test_refusals(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=r"^(franz_parisi|free_energy|order_par)") as error:
        call()
    assert message in str(error.value)
