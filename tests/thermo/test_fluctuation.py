"""The fluctuation test on samplers that are right, and on those that are broken on purpose."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.fluctuation.chain import Chain
from diffast.thermo.fluctuation.of_plan import judged_run
from diffast.thermo.fluctuation.paths import Paths

OU = df.schedules.vp_linear(2.0, 2.0)  # alpha = exp(-t), sigma^2 = 1 - exp(-2 t), t to 1
TWO = df.thermo.GaussianMixture(None, [-1.0, 1.0], 1.0)
F64 = torch.float64


def level(schedule, t):
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def noised(data, count, alpha, sigma, seed):
    eps = torch.randn(
        count, data.d, dtype=F64, generator=torch.Generator().manual_seed(1000 + seed)
    )
    return alpha * data.sample(count, seed) + sigma * eps


def run(x, times, dynamics, drift=1.0, noise=1.0, seed=0, turned=False):
    """Euler-Maruyama, with factors that make it wrong."""
    drawn, states = torch.Generator().manual_seed(777 + seed), [x]
    for a, b in zip(times[:-1], times[1:], strict=True):
        h, t = abs(b - a), times[0] + times[-1] - a if turned else a
        force = sum(part(x, t) for part in dynamics.drift.values())
        z = torch.randn(x.shape, generator=drawn, dtype=F64)
        x = x + drift * h * force + noise * math.sqrt(2 * dynamics.temperature(a) * h) * z
        states.append(x)
    return torch.stack(states)


def at(data, schedule, t):
    return lambda x: data.log_density(x, *level(schedule, t))


def forward(count, steps, form="euler", seed=0):
    times, dynamics = np.linspace(0, 1, steps + 1), df.thermo.noising_dynamics(OU)
    x = run(TWO.sample(count, seed), times, dynamics, seed=seed)
    return df.thermo.fluctuation_test(x, times, *dynamics, TWO, at(TWO, OU, 1.0), form=form)


def reverse(count, steps, form="euler", seed=0, believed=None, **slips):
    """The test of a sampler whose code may differ from what its author believes."""
    times = np.linspace(1, 0, steps + 1)
    dynamics = df.thermo.sampling_dynamics(OU, TWO.score)
    x = run(noised(TWO, count, *level(OU, 1.0), seed), times, dynamics, seed=seed, **slips)
    means = dynamics if believed is None else believed(dynamics)
    return df.thermo.fluctuation_test(x, times, *means, at(TWO, OU, 1.0), TWO, form=form)


def entropy_by_quadrature():
    """The integral over t of E|nu|^2 for T = 1: nu^2 from the mmse of the mixture."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    t, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    alpha, sigma = np.exp(-t), np.sqrt(-np.expm1(-2.0 * t))
    slope, rise = -alpha, alpha**2 / sigma
    energy, d = TWO.energy, TWO.d
    turn = (slope - alpha * rise / sigma) ** 2 * TWO.mmse(sigma / alpha)
    return float((weights * (slope**2 * energy + d * rise**2 - turn)).sum())


def test_entropy_production_of_the_reference_case():
    assert entropy_by_quadrature() == pytest.approx(0.158948, abs=5e-7)


def check(found, mean, entropy, tolerance=0.0):
    assert found.verdict == "consistent", str(found)
    for measured, reference, error in ((found.identity, *mean), (found.entropy, *entropy)):
        both = math.hypot(measured.error, error)
        assert abs(measured.value - reference) < 4 * both + tolerance
    assert abs(found.identity.value - 1.0) < 4 * found.identity.error + tolerance


# Reference: 1e5 paths of 200 steps, forward 1.0017 +- .0015, <dS> = .1571; reverse .9974 +- .0025,
# .1614. The error of <dS> is that of as many paths: .0018.
FORWARD, REVERSE = (1.0017, 0.0015), (0.9974, 0.0025)


@pytest.mark.parametrize(
    ("form", "count", "steps"),
    [
        ("euler", 20_000, 50),
        ("stratonovich", 20_000, 50),
        pytest.param("stratonovich", 100_000, 200, marks=pytest.mark.slow),
    ],
)
def test_both_directions_obey_the_theorem(form, count, steps):
    check(forward(count, steps, form), FORWARD, (0.1571, 0.0018))
    check(reverse(count, steps, form), REVERSE, (0.1614, 0.0018), 0.2 / steps)


@pytest.mark.parametrize("form", ["euler", "stratonovich"])
def test_the_chains_identity_is_exact_for_two_long_steps(form):
    found = forward(200_000, 2, form)
    exact = abs(found.identity.value - 1.0) < 4 * found.identity.error
    assert exact is (form == "euler") is found.exact


SLIPS = {
    "noise": ({"noise": math.sqrt(2.0)}, ["sqrt(2) times too large"]),
    "less noise": ({"noise": math.sqrt(0.5)}, ["sqrt(2) times too small"]),
    "a little noise": ({"noise": 1.03}, ["noise is 1.0"]),
    "half drift": ({"drift": 0.5}, ["'linear' is taken half", "'score' is taken half"]),
    "sign": ({"drift": -1.0}, ["'linear' has the other sign", "'score' has the other sign"]),
    "time": ({"turned": True}, ["the time runs in the other direction"]),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "euler") for name in SLIPS), ("noise", "stratonovich"), ("time", "stratonovich")],
)
def test_a_broken_sampler_is_found_and_named(name, form):
    slips, words = SLIPS[name]
    found = reverse(20_000, 50, form, **slips)
    assert found.verdict == "not consistent"
    assert len(found.slips) == len(words), found
    for word, slip in zip(words, found.slips, strict=True):
        assert word in slip
    if name not in ("a little noise", "sign"):  # the mean sees it too
        assert abs(found.identity.value - 1.0) > 5 * found.identity.error


def test_the_score_of_the_ode_with_the_noise_of_the_sde():
    def twice(dynamics):  # the author means T score + T score, the code has T score
        parts = dynamics.drift
        return (
            {"linear": parts["linear"], "score": lambda x, t: 2.0 * parts["score"](x, t)},
            dynamics.temperature,
        )

    found = reverse(20_000, 50, believed=twice)
    assert found.verdict == "not consistent"
    (slip,) = found.slips
    assert "'score' is taken half" in slip


def test_a_start_at_another_law_is_told_by_the_mean_alone():
    times, dynamics = np.linspace(0, 1, 51), df.thermo.noising_dynamics(OU)
    other = df.thermo.GaussianMixture(None, [-1.2, 1.2], 1.0)
    x = run(other.sample(20_000, 0), times, dynamics)
    found = df.thermo.fluctuation_test(x, times, *dynamics, TWO, at(TWO, OU, 1.0))
    assert (found.verdict, found.slips) == ("not consistent", ())
    assert "the first states are not of the given density" in found.why


@pytest.mark.parametrize("rule", ["ito", "late", "middle", "wrong"])
def test_the_authors_own_sum_is_told_from_stratonovichs(rule):
    times, dynamics = np.linspace(0, 1, 51), df.thermo.noising_dynamics(OU)
    x = run(TWO.sample(20_000, 0), times, dynamics)
    dx = x.diff(dim=0)
    middle = -0.5 * (x[:-1] + x[1:])
    drift = {"ito": -x[:-1], "late": -x[1:], "middle": middle, "wrong": 1.3 * middle}
    work = (drift[rule] * dx).sum((0, 2))
    found = df.thermo.fluctuation_test(x, times, *dynamics, TWO, at(TWO, OU, 1.0), work=work)
    assert found.verdict == ("consistent" if rule == "middle" else "not consistent")
    if rule in ("ito", "late"):
        assert found.slips[0].startswith("the integral of f o dx / T is")
        assert ("Ito's (the drift at the start" in found.slips[0]) == (rule == "ito")
        # Ito's sum lacks div f = -1 over the time 1
        factor = math.exp(-1.0 if rule == "ito" else 1.0)
        assert found.identity.value == pytest.approx(factor, rel=0.05)
    if rule == "wrong":
        assert "the given work is not int f o dx / T" in found.why


FLOW, TRIG, VE = df.schedules.flow(), df.schedules.trig(), df.schedules.edm(0.01, 10.0)
CASES = {"flow": (FLOW, 0.2, 0.9), "trig": (TRIG, 0.2, 1.4), "ve": (VE, 0.3, 3.0)}


@pytest.mark.parametrize("name", CASES)
def test_other_schedules(name):
    schedule, low, high = CASES[name]
    data = df.thermo.GaussianMixture([0.7, 0.3], [[-1.0, 0.0], [1.0, 0.5]], 0.5)
    times = np.geomspace(low, high, 81)
    noising = df.thermo.noising_dynamics(schedule)
    x = run(noised(data, 6_000, *level(schedule, low), 1), times, noising)
    ends = at(data, schedule, low), at(data, schedule, high)
    found = df.thermo.fluctuation_test(x, times, *noising, *ends)
    # Variance-exploding noise spreads, so paths from where p_first is tiny carry the mean.
    heavy = name == "ve"
    assert found.verdict == ("cannot tell" if heavy else "consistent"), str(found)
    assert (found.tail > 0.7) is heavy
    # The paths do end at the law of the noised data, up to the steps' error.
    assert float(x[-1].var()) == pytest.approx(
        float(data.covariance.trace() / 2) * level(schedule, high)[0] ** 2
        + level(schedule, high)[1] ** 2,
        rel=0.1,
    )
    back = times[::-1].copy()
    sampling = df.thermo.sampling_dynamics(schedule, data.score)
    y = run(noised(data, 6_000, *level(schedule, high), 2), back, sampling)
    found = df.thermo.fluctuation_test(y, back, *sampling, *ends[::-1])
    assert found.verdict == "consistent", str(found)


def test_many_dimensions_leave_the_mean_without_a_word_and_the_steps_speak():
    data = df.thermo.GaussianMixture(None, np.zeros((1, 60)), 0.1)
    times, dynamics = np.linspace(0, 1, 51), df.thermo.noising_dynamics(OU)
    ends = data, at(data, OU, 1.0)
    x = run(data.sample(500, 0), times, dynamics)
    found = df.thermo.fluctuation_test(x, times, *dynamics, *ends)
    assert found.verdict == "cannot tell"
    assert "is the mean of rare paths" in found.why
    x = run(data.sample(500, 0), times, dynamics, noise=1.02)
    found = df.thermo.fluctuation_test(x, times, *dynamics, *ends)
    assert found.verdict == "not consistent"


def call(**change):
    times, dynamics = np.linspace(0, 1, 6), df.thermo.noising_dynamics(OU)
    x = run(TWO.sample(50, 0), times, dynamics)
    given = {
        "x": x,
        "times": times,
        "drift": dynamics.drift,
        "temperature": 1.0,
        "log_start": TWO,
        "log_end": at(TWO, OU, 1.0),
    } | change
    return df.thermo.fluctuation_test(**given)


NAN = torch.zeros(6, 3, 1).index_fill(0, torch.tensor([2]), math.nan)
BAD = {
    "nan": ({"x": NAN}, "3 of 3 paths are not finite, the first is path 0 at state 2"),
    "one path": ({"x": torch.zeros(6, 1, 1)}, "1 path, but a mean over paths needs 2"),
    "one state": ({"x": torch.zeros(1, 5, 1)}, "with K >= 1 steps of B paths"),
    "times": ({"times": np.arange(4)}, "times are [4], but x holds 6 states"),
    "order": ({"times": [0, 0.2, 0.1, 0.4, 0.5, 1]}, "after 0.2 comes 0.1"),
    "falls": ({"times": [1, 0.8, 0.9, 0.4, 0.3, 0]}, "after 0.8 comes 0.9"),
    "matrix": ({"temperature": np.eye(2)}, "shape [2, 2], but one number for all states"),
    "position": ({"temperature": lambda t, x: x}, "one that depends on the position adds a drift"),
    "cold": ({"temperature": 0.0}, "is 0, but it must be positive"),
    "no end": ({"log_end": None}, "no log-density at the end is given"),
    "dirac": (
        {"log_start": df.thermo.GaussianMixture(None, [0.0], 0.0)},
        "is not finite for 50 of 50 paths, but the theorem needs a density at both ends",
    ),
    "numbers": ({"log_end": torch.zeros(7)}, "at the end are [7], but there are 50 paths"),
    "drift": ({"drift": 3.0}, "drift is a float, but a function of (x, t) is needed"),
    "shape": ({"drift": lambda x, t: x[:3]}, "drift 'drift' is [3, 1], but the states are [50, 1]"),
    "force": ({"drift": lambda x, t: x / 0.0}, "drift 'drift' is not finite at t = 0"),
    "form": ({"form": "ito"}, "form = 'ito', but it must be one of euler, stratonovich"),
    "work": ({"work": torch.zeros(3)}, "work is [3] with 0 values that are not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals(name):
    change, message = BAD[name]
    with pytest.raises(ValueError, match="^fluctuation_test: ") as error:
        call(**change)
    assert message in str(error.value)


def test_few_paths_cannot_tell_and_lists_of_states_are_taken():
    found = call()
    assert "consistent" in str(found) or found.verdict == "cannot tell"
    times, dynamics = np.linspace(0, 1, 6), df.thermo.noising_dynamics(OU)
    x = run(TWO.sample(8, 0), times, dynamics)
    few = df.thermo.fluctuation_test(list(x[:, :, 0]), times, *dynamics, TWO, at(TWO, OU, 1.0))
    assert few.verdict == "cannot tell"
    assert few.identity.count == 8
    assert few.identity.error > 0


def plans(steps):
    times = np.linspace(1, 0, steps + 1)
    grid = df.grids.from_times(OU, times)
    yield df.solvers.ddpm(OU, grid)
    yield df.solvers.ddim(OU, grid, eta=0.9)
    yield df.solvers.dpmpp_2m_sde(OU, grid)
    yield df.solvers.dpmpp_sde(OU, df.grids.from_times(OU, times[::2]))


@pytest.mark.parametrize("plan", [*plans(6)], ids=lambda plan: plan.name)
def test_runs_of_plans_obey_the_theorem(plan):
    found = df.thermo.fluctuation_test_of_plan(TWO.denoiser(OU), plan, TWO, (20_000, 1))
    assert found.verdict == "consistent", str(found)
    assert found.exact
    assert found.noise.value == pytest.approx(1.0, abs=5 * found.noise.error)
    with pytest.raises(ValueError, match="exactly one of shape and x is needed"):
        df.thermo.fluctuation_test_of_plan(TWO.denoiser(OU), plan, TWO)


@pytest.mark.parametrize(
    ("column", "factor", "words"),
    [("z1", 1.1, "noise is 1.1"), ("d", 1.1, "the mean of a step is taken 1.0")],
)
def test_runs_of_another_plan_are_found(column, factor, words):
    (plan, *_), denoiser = plans(6), TWO.denoiser(OU)
    chain, check = Chain("test", plan), "x0" if column == "z1" else "finite"
    other = plan.with_weights({("x", column): factor * plan.weights("x", column)}, check=check)
    states = {}
    x = float(OU.sigma(1.0)) * torch.randn(
        20_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0)
    )
    df.sample(
        denoiser, other, x=x, callback=lambda p: states.update({p.stage: p.x.clone()}) and None
    )
    states = {i: states[i] for i in chain.noisy}
    found = judged_run("test", chain, Paths("test", chain), denoiser, x, states, TWO)
    assert found.verdict == "not consistent"
    assert words in found.slips[0]
