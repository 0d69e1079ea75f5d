"""The fluctuation test of Gaussian steps: exact where Euler's form is not, and what it refuses."""

import math

import numpy as np
import pytest
import torch

import diffast as df

VP = df.schedules.vp_linear()
DATA = df.thermo.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], 0.4)
TIMES = np.array([0.9, 0.6, 0.4, 0.25])
F64 = torch.float64


def level(t):
    return float(VP.alpha(t)), float(VP.sigma(t))


def step(x, t, to):
    """Ancestral sampling: the posterior of the noising step at the exact x0 estimate."""
    (alpha, sigma), (low_alpha, low) = level(t), level(to)
    a = alpha / low_alpha
    beta = sigma**2 - a**2 * low**2
    mean = a * (low / sigma) ** 2 * x + low_alpha * beta / sigma**2 * DATA.x0(x, alpha, sigma)
    return mean, math.sqrt(beta) * low / sigma


def at(t):
    return lambda x: DATA.log_density(x, *level(t))


def run(count=20_000, noise=1.0, move=1.0, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    alpha, sigma = level(TIMES[0])
    eps = torch.randn(count, 2, dtype=F64, generator=drawn)
    states = [alpha * DATA.sample(count, seed + 1) + sigma * eps]
    for t, to in zip(TIMES[:-1], TIMES[1:], strict=True):
        mean, deviation = step(states[-1], t, to)
        z = torch.randn(count, 2, dtype=F64, generator=drawn)
        states.append(states[-1] + move * (mean - states[-1]) + noise * deviation * z)
    return torch.stack(states)


def test_long_ancestral_steps_obey_the_theorem_exactly():
    x = run()
    found = df.thermo.fluctuation_test_of_steps(
        x, TIMES, step, at(TIMES[0]), at(TIMES[-1]), schedule=VP
    )
    assert found.verdict == "consistent", str(found)
    assert found.exact
    assert abs(found.identity.value - 1.0) < 4 * found.identity.error
    assert found.identity.error < 0.05
    # Euler's form says of the same states that they are not its steps.
    sampling = df.thermo.sampling_dynamics(VP, DATA.score)
    euler = df.thermo.fluctuation_test(x, TIMES, *sampling, at(TIMES[0]), at(TIMES[-1]))
    assert euler.verdict == "not consistent"


def test_the_callers_own_back_step():
    def back(x, t, to):
        a = level(to)[0] / level(t)[0]
        return a * x, math.sqrt(level(to)[1] ** 2 - a**2 * level(t)[1] ** 2)

    x, ends = run(500), (at(TIMES[0]), at(TIMES[-1]))
    own = df.thermo.fluctuation_test_of_steps(x, TIMES, step, *ends, back=back)
    schedules = df.thermo.fluctuation_test_of_steps(x, TIMES, step, *ends, schedule=VP)
    assert (own.values - schedules.values).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ({"noise": 0.5}, "the fresh noise is half of what it should be"),
        ({"noise": 1.05}, "the fresh noise is 1.05"),
        ({"move": 0.5}, "the mean move of a step is taken half"),
        ({"move": 2.0}, "the mean move of a step is taken twice"),
    ],
)
def test_slips_are_named(slip, words):
    found = df.thermo.fluctuation_test_of_steps(
        run(**slip), TIMES, step, at(TIMES[0]), at(TIMES[-1]), schedule=VP
    )
    assert found.verdict == "not consistent"
    (said,) = found.slips
    assert words in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": None}, "exactly one of schedule and back is needed"),
        ({"back": step}, "exactly one of schedule and back is needed"),
        ({"times": TIMES[::-1]}, "needs it to fall along a run: give back="),
        ({"step": lambda x, t, to: (x[:1], 1.0)}, "step returns a mean [1, 2] at t = 0.9"),
        ({"step": lambda x, t, to: (x, 0.0)}, "the deviation of step at t = 0.9 is 0, but one"),
        ({"step": lambda x, t, to: (x, x)}, "is of shape [5, 2], but one positive number"),
        ({"step": lambda x, t, to: (x * math.nan, 1.0)}, "a mean that is not finite at t = 0.9"),
        ({"log_end": None}, "no log-density at the end is given"),
        ({"log_end": df.thermo.Gaussian([0.0, 0.0], [[1.0, 0.0]], [1.0])}, "Dirac"),
    ],
)
def test_refusals(change, message):
    x, ends = run(5), {"log_start": at(TIMES[0]), "log_end": at(TIMES[-1])}
    call = {"x": x, "times": TIMES, "step": step, "schedule": VP} | ends | change
    with pytest.raises(ValueError, match=r"^fluctuation_test_of_steps: ") as error:
        df.thermo.fluctuation_test_of_steps(**call)
    assert message in str(error.value)


def test_a_gaussian_of_the_data_is_an_end():
    # Any normalised density will do: that of the fitted Gaussian costs entropy, not the identity.
    x = run()
    fitted = df.thermo.Gaussian.of(x[-1])
    found = df.thermo.fluctuation_test_of_steps(x, TIMES, step, at(TIMES[0]), fitted, schedule=VP)
    assert found.verdict == "consistent", str(found)
    exact = df.thermo.fluctuation_test_of_steps(
        x, TIMES, step, at(TIMES[0]), at(TIMES[-1]), schedule=VP
    )
    normal = torch.distributions.MultivariateNormal(x[-1].mean(0), x[-1].T.cov())
    gap = at(TIMES[-1])(x[-1]) - normal.log_prob(x[-1])
    assert (found.values - exact.values - gap).abs().max() < 1e-9
