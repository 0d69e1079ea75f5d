"""Speed, entropy and length of the noising path against closed forms and other quadratures."""

import math

import numpy as np
import pytest

import diffast as df
from diffast.thermo import speed

TWO = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
ROOT = math.sqrt(1.09)
STANDARD = df.thermo.GaussianMixture([0.5, 0.5], [-1.0 / ROOT, 1.0 / ROOT], 0.09 / 1.09)
TRIG, FLOW = df.schedules.trig(), df.schedules.flow()
UNIT = 0.5 * math.pi  # the cosine path of unit duration is `trig` at this rate


def curve(mixture):
    return lambda rho: mixture.mmse(rho, points=301)


def test_the_speed_is_that_of_the_quadrature_and_of_w2():
    cosine = speed.w2_speed_squared(TRIG, 0.4 * UNIT, TWO.mmse, TWO.energy, 1) * UNIT**2
    assert cosine == pytest.approx(0.453958, abs=5e-7)
    assert speed.w2_speed_squared(FLOW, 0.4, TWO.mmse, TWO.energy, 1) == pytest.approx(
        0.537807, abs=5e-7
    )
    given = TWO.mmse(np.array([0.4 / 0.6]))  # values at these times, in place of the function
    assert speed.w2_speed_squared(FLOW, [0.4], given, TWO.energy, 1) == pytest.approx(
        0.537807, abs=5e-7
    )


def test_entropy_is_produced_as_in_the_paper_and_is_system_plus_bath():
    for schedule, t, rate, wanted in ((TRIG, 0.4 * UNIT, UNIT, 0.397772), (FLOW, 0.4, 1, 0.806711)):
        law = (schedule, t, TWO.mmse, TWO.energy, 1)
        produced = speed.entropy_production(*law) * rate
        assert produced == pytest.approx(wanted, abs=5e-7)
        system, bath = speed.entropy_flows(*law)
        assert (system + bath) * rate == pytest.approx(produced, rel=1e-12)


def test_the_system_s_entropy_is_the_differential_entropy():
    def entropy(t):
        x = np.linspace(-9.0, 9.0, 20001)
        logs = TWO.log_density(x, float(FLOW.alpha(t)), float(FLOW.sigma(t))).numpy()
        return -float((np.exp(logs) * logs).sum() * (x[1] - x[0]))

    slope = (entropy(0.4 + 1e-4) - entropy(0.4 - 1e-4)) / 2e-4
    system, _ = speed.entropy_flows(FLOW, 0.4, TWO.mmse, TWO.energy, 1)
    assert system == pytest.approx(slope, abs=1e-6)


def test_reference_numbers_of_the_standardised_mixture():
    # Converged values (adaptive quadrature of another formula gives the same). An earlier
    # check of this mixture, .399977 .283146 .159982 .609458 .15786, used a sum of 400 terms.
    law, psi = (curve(STANDARD), 1.0, 1), speed.angle(curve(STANDARD), 1)
    assert psi == pytest.approx(0.3999813, abs=2e-7)
    assert psi == pytest.approx(0.399977, abs=5e-6)
    assert speed.action(TRIG, *law) == pytest.approx(0.283146, abs=5e-7)
    assert psi**2 == pytest.approx(0.159985, abs=5e-7)
    assert speed.w2_length(TRIG, *law) == pytest.approx(psi, rel=1e-6)
    assert speed.action(FLOW, *law) == pytest.approx(0.609460, abs=5e-7)
    assert 4 * math.sin(psi / 2) ** 2 == pytest.approx(0.157863, abs=5e-7)
    assert speed.action(FLOW, curve(TWO), TWO.energy, 1) == pytest.approx(0.638232, abs=3e-6)
    assert speed.action(TRIG, curve(TWO), TWO.energy, 1) == pytest.approx(0.298005, abs=5e-7)


@pytest.mark.parametrize("schedule", [TRIG, FLOW], ids=["trig", "flow"])
def test_chords_and_the_squared_speed_say_the_same(schedule):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t = 0.5 * (nodes + 1.0) * schedule.t_start
    squared = speed.w2_speed_squared(schedule, t, curve(TWO), TWO.energy, 1)
    found = 0.5 * schedule.t_start**2 * (weights @ squared)
    assert speed.action(schedule, curve(TWO), TWO.energy, 1) == pytest.approx(found, rel=1e-6)
    length = 0.5 * schedule.t_start * (weights @ np.sqrt(squared))
    assert speed.w2_length(schedule, curve(TWO), TWO.energy, 1) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("schedule", [df.schedules.vp_linear(), df.schedules.edm(0.002, 20.0)])
def test_a_gaussian_has_the_bures_length(schedule):
    # Diagonal covariances commute, so W2 is the distance of the deviations; each moves one way.
    law = df.thermo.Gaussian(np.zeros(3), np.eye(3), [4.0, 1.0, 0.25])
    t = np.linspace(schedule.t_end, schedule.t_start, 200001)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    spread = np.sqrt(alpha**2 * law.spectrum + sigma**2)
    steps = np.linalg.norm(np.diff(spread, axis=0), axis=1)
    found = speed.w2_length(schedule, law.mmse, law.energy, 3)
    assert found == pytest.approx(steps.sum(), rel=2e-6)


def test_limits():
    # Standard normal data stand still on a variance-preserving path; points move all the time.
    assert speed.angle(lambda rho: 4 * rho**2 / (1 + rho**2), 4) < 1e-6
    points = (
        speed.action(FLOW, lambda rho: 0.0 * rho, 4.0, 4),
        speed.angle(lambda rho: 0.0 * rho, 4),
    )
    assert points == pytest.approx((8.0, UNIT), rel=1e-6)
    ends = speed.w2_speed_squared(FLOW, [0.0, 1.0], TWO.mmse, TWO.energy, 1)
    near = speed.w2_speed_squared(FLOW, [1e-5, 1 - 1e-5], TWO.mmse, TWO.energy, 1)
    assert ends == pytest.approx(near, abs=1e-4)
    assert speed.entropy_production(FLOW, 1.0, TWO.mmse, TWO.energy, 1) == 0.0
    infinite = speed.w2_speed_squared(df.schedules.vp_linear(), 0.0, TWO.mmse, TWO.energy, 1)
    assert infinite == math.inf
    assert math.isfinite(speed.action(df.schedules.vp_linear(), curve(TWO), TWO.energy, 1))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: speed.w2_speed_squared(FLOW, 0.4, -1.0, 1.0, 1), "negative or not finite"),
        (lambda: speed.w2_speed_squared(FLOW, [0.4, 0.5], np.ones(3), 1.0, 1), "has the shape"),
        (lambda: speed.action(FLOW, TWO.mmse, 0.0, 1), "energy = 0.0"),
        (lambda: speed.angle(0.3, 1), "not a function of rho"),
        (lambda: speed.entropy_production(FLOW, 0.0, TWO.mmse, 1.0, 1), "temperature"),
        (lambda: speed.kappa(2.0, TWO.mmse, 1), "outside"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
