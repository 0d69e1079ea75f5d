"""`fit_jko`: published numbers on Gaussians, features, couplings, scores, and what is refused."""

from statistics import NormalDist

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.jko.coupling import couple
from diffast.thermo.jko.density import score_of
from diffast.thermo.jko.dynamics import denoiser_of_dynamics, plan_of_dynamics
from diffast.thermo.jko.potentials import divergence_of

P = df.thermo.potentials
SPRING = P.from_gradients(lambda x, t: x[:, :, None], 1, names=["k"])  # V = k x^2 / 2
K, BETA = 1.3, 0.4

# Points whose mean is 0 and whose variance is 1: with them a snapshot m + s u is a Gaussian as far
# as quadratic potentials see it, and nothing is sampled.
U = np.array([NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)])
U /= np.sqrt(np.mean(U**2))


def exact(tau, k=K, beta=BETA, start=(2.0, 0.3), end=0.6):
    """Returns snapshots of the Fokker-Planck equation, as points, and their times."""
    t = tau * np.arange(round(end / tau) + 1)
    means = start[0] * np.exp(-k * t)
    spreads = np.sqrt(beta / k + (start[1] ** 2 - beta / k) * np.exp(-2.0 * k * t))
    return [m + s * U for m, s in zip(means, spreads, strict=True)], t


def particles(count, tau, steps, seed=0, start=(2.0, 0.3)):
    """Returns snapshots of the same particles, drawn exactly."""
    drawn = np.random.default_rng(seed)
    x = start[0] + start[1] * drawn.standard_normal(count)
    held, spread = [x], np.sqrt(BETA / K * -np.expm1(-2.0 * K * tau))
    for _ in range(steps):
        held.append(np.exp(-K * tau) * held[-1] + spread * drawn.standard_normal(count))
    return held


def wells(count, seed, tau=0.05, steps=4, d=1):
    """Returns snapshots of particles in double wells, grad V = x^3 - 1.5 x, temperature 0.3."""
    drawn = np.random.default_rng(seed)
    held = [drawn.standard_normal((count, d))]
    for _ in range(steps):
        x, h = held[-1], tau / 20
        for _ in range(20):
            x = x - h * (x**3 - 1.5 * x) + np.sqrt(0.6 * h) * drawn.standard_normal(x.shape)
        held.append(x)
    return held


FOKKER_PLANCK = [  # tau, k and beta of the implicit scheme, of the trapezoid
    (0.2, 1.487, 0.4957, 1.2916, 0.3863),
    (0.1, 1.390, 0.4482, 1.2978, 0.3962),
    (0.05, 1.344, 0.4242, 1.2994, 0.3990),
    (0.025, 1.322, 0.4121, 1.2999, 0.3998),
]


@pytest.mark.parametrize("tau, k, beta, k2, beta2", FOKKER_PLANCK)
def test_the_error_in_tau_on_fokker_planck_snapshots(tau, k, beta, k2, beta2):
    snapshots, times = exact(tau)
    options = {"potential": SPRING, "density": "gaussian", "groups": 0}
    for form in ("least squares", "weak"):
        implicit = df.thermo.fit_jko(snapshots, times, scheme="implicit", form=form, **options)
        assert implicit.theta[0] == pytest.approx(k, abs=5.1e-4)
        assert implicit.theta[1] == pytest.approx(beta, abs=5.1e-5)
    trapezoid = df.thermo.fit_jko(
        snapshots, times, scheme="trapezoid", form="least squares", **options
    )
    assert trapezoid.theta == pytest.approx([k2, beta2], abs=5.1e-5)


def test_the_weak_trapezoid_is_of_second_order():
    gaps = []
    for tau in (0.05, 0.025, 0.0125):
        snapshots, times = exact(tau)
        fit = df.thermo.fit_jko(snapshots, times, potential=SPRING, density="gaussian", groups=0)
        gaps.append(np.abs(fit.theta - [K, BETA]).max())
    assert gaps[0] < 0.02
    assert np.log2(gaps[:-1] / np.array(gaps[1:])) == pytest.approx([2.0, 2.0], abs=0.15)


def test_jko_steps_are_recovered_exactly():
    tau, means, spreads = 0.2, [2.0], [0.3]
    for _ in range(4):
        means.append(means[-1] / (1.0 + tau * K))
        # s' = s + tau (-k s' + beta / s')
        a, s = 1.0 + tau * K, spreads[-1]
        spreads.append((s + np.sqrt(s**2 + 4.0 * a * tau * BETA)) / (2.0 * a))
    snapshots = [m + s * U for m, s in zip(means, spreads, strict=True)]
    fit = df.thermo.fit_jko(
        snapshots, tau=tau, scheme="implicit", potential=SPRING, density="gaussian", groups=0
    )
    assert np.abs(fit.theta - [K, BETA]).max() < 1e-8
    assert fit.residual < 1e-7
    assert "temperature" in str(fit) and fit.to_dict()["condition"] == fit.condition


def test_one_pair_of_gaussians_does_not_tell_potential_and_temperature_apart():
    snapshots, times = exact(0.025)
    with pytest.raises(ValueError, match="condition number is .* 1e\\+08 is the most"):
        df.thermo.fit_jko(snapshots[:2], times[:2], potential=2, density="gaussian", groups=0)
    # The same pair tells k where the temperature is known, and says that a ridge is no knowledge.
    known = df.thermo.fit_jko(
        snapshots[:2], times[:2], potential=2, internal=BETA, density="gaussian", groups=0
    )
    assert known["V: x^2 / 2"].value == pytest.approx(K, abs=0.03)
    assert known.temperature().value == BETA
    ridged = df.thermo.fit_jko(
        snapshots[:2], times[:2], potential=2, density="gaussian", ridge=1e-6, groups=0
    )
    assert ridged.condition > 1e8 and np.isfinite(ridged.theta).all()


def test_the_same_particles_show_twice_the_temperature_to_the_implicit_scheme():
    held = particles(10_000, 0.02, 20)
    fits = {
        scheme: df.thermo.fit_jko(
            held,
            tau=0.02,
            scheme=scheme,
            coupling="given",
            potential=SPRING,
            density="gaussian",
            groups=5,
        )
        for scheme in ("implicit", "trapezoid")
    }
    for scheme, wanted in (("implicit", 2.0 * BETA), ("trapezoid", BETA)):
        found = fits[scheme].temperature()
        assert abs(found.value - wanted) < 4 * found.error + 0.03
        assert found.error < 0.08
    sets = df.thermo.fit_jko(held, tau=0.02, potential=SPRING, density="gaussian", groups=0)
    assert abs(sets.temperature().value - BETA) < 4 * fits["trapezoid"].temperature().error


def test_a_potential_that_depends_on_the_time():
    tau, fine, k = 0.05, 100, lambda t: 0.5 + 2.0 * t  # noqa: E731
    mean, variance, held = 2.0, 0.09, [2.0 + 0.3 * U]
    for step in range(12 * fine):
        h, t = tau / fine, (step + 0.5) * tau / fine
        mean *= np.exp(-k(t) * h)
        variance = BETA / k(t) + (variance - BETA / k(t)) * np.exp(-2.0 * k(t) * h)
        if (step + 1) % fine == 0:
            held.append(mean + np.sqrt(variance) * U)
    features = SPRING.in_time(lambda t: 1.0, lambda t: t)
    fit = df.thermo.fit_jko(held, tau=tau, potential=features, density="gaussian", groups=0)
    assert fit.names == ("V: k b0(t)", "V: k b1(t)", "temperature")
    assert fit.theta == pytest.approx([0.5, 2.0, BETA], abs=0.01)
    assert fit.drift(np.array([2.0]), 0.25)[0] == pytest.approx(-2.0, abs=0.01)
    heated = df.thermo.fit_jko(
        held,
        tau=tau,
        potential=features,
        internal=[lambda t: 1.0, lambda t: t],
        density="gaussian",
        groups=0,
    )
    assert heated.temperature(0.5).value == pytest.approx(BETA, abs=0.02)
    with pytest.raises(ValueError, match="depends on the time"):
        heated.temperature()


def test_an_interaction_is_found():
    # dx = -c (x - mean) dt + sqrt(2 beta) dB: the mean stays, the variance relaxes.
    drawn, c, tau = np.random.default_rng(3), 2.0, 0.05
    held = [2.0 * drawn.standard_normal(500)]
    for _ in range(6):
        x = held[-1]
        for _ in range(20):
            x = x - tau / 20 * c * (x - x.mean()) + np.sqrt(0.04 * tau) * drawn.standard_normal(500)
        held.append(x)
    even = P.polynomials(2, even=True)
    fit = df.thermo.fit_jko(held, tau=tau, potential=None, interaction=even, internal=0.4)
    found = fit["U: x^2 / 2"]
    assert abs(found.value - c) < 4 * found.error and found.error < 0.4
    pull = fit.drift(held[0][:5], others=held[0])
    assert pull == pytest.approx(-c * (held[0][:5] - held[0].mean()), abs=1.0)
    still = [s * U for s in (1.0, 0.8, 0.7)]  # the mean is 0 throughout
    with pytest.raises(ValueError, match="condition number"):
        df.thermo.fit_jko(
            still, tau=0.1, potential=2, interaction=P.polynomials(2, even=True), groups=0
        )


@pytest.mark.parametrize("d", [1, 2])
def test_double_wells_are_found_and_sampled(d):
    held = wells(600, 1, d=d)
    fit = df.thermo.fit_jko(held, tau=0.05, potential=4, groups=0)
    x = np.concatenate(held)
    truth = 1.5 * x - x**3
    assert np.sqrt(np.mean((fit.drift(x) - truth) ** 2) / np.mean(truth**2)) < 0.3
    if d == 1:
        made = fit.sample(torch.as_tensor(held[0]), 0.0, 0.2, steps=40, seed=2).x.numpy()
        gap = np.abs(np.sort(made[:, 0]) - np.sort(held[-1][:, 0])).mean()
        assert gap < 0.4 * np.abs(np.sort(held[0][:, 0]) - np.sort(held[-1][:, 0])).mean()


@pytest.mark.slow
def test_standard_errors_are_those_of_repetitions():
    fits = [
        df.thermo.fit_jko(
            particles(300, 0.1, 5, seed), tau=0.1, potential=SPRING, density="gaussian"
        )
        for seed in range(30)
    ]
    spread = np.std([fit.theta for fit in fits], 0, ddof=1)
    said = np.sqrt(np.mean([fit.errors**2 for fit in fits], 0))
    assert (np.abs(np.log(said / spread)) < 0.5).all()


@pytest.mark.slow
def test_what_is_read_of_the_density_biases_the_temperature():
    found = {}
    for density, form in (("auto", "weak"), ("gmm", "weak"), ("gmm", "least squares")):
        fits = [
            df.thermo.fit_jko(
                particles(300, 0.05, 8, seed), tau=0.05, density=density, form=form, groups=0,
                potential=2,
            )
            for seed in range(6)
        ]  # fmt: skip
        found[density, form] = np.mean([fit.theta[-1] for fit in fits])
    # Score matching that leaves samples out is right; a mixture of ten components on one Gaussian
    # follows its own samples, and the temperature is far too low.
    assert abs(found["auto", "weak"] - BETA) < 0.06
    assert found["gmm", "weak"] < 0.5 * BETA and found["gmm", "least squares"] < 0.5 * BETA


FEATURES = {
    "polynomials": P.polynomials(4),
    "even": P.polynomials(4, even=True),
    "radial": P.radial([[0.0, 1.0], [1.0, -1.0]], [0.5, 1.0]),
    "fourier": P.random_fourier(5, 1.5, seed=2),
    "sum in time": (P.polynomials(2) + P.random_fourier(3, 1.0)).in_time(lambda t: 1.0, np.cos),
}


@pytest.mark.parametrize("name", FEATURES)
def test_gradients_and_laplacians_are_those_of_the_values(name):
    features, x = FEATURES[name], np.random.default_rng(0).standard_normal((7, 2))
    names = features.names(2)
    gradient = features.gradient(x, 0.3)
    assert gradient.shape == (7, 2, len(names)) and len(set(names)) == len(names)
    for i in range(2):
        h = 1e-6 * np.eye(2)[i]
        slope = (features.value(x + h, 0.3) - features.value(x - h, 0.3)) / 2e-6
        assert np.abs(slope - gradient[:, i]).max() < 1e-7
    spread = divergence_of(lambda points: features.gradient(points, 0.3), x)
    assert np.abs(spread - features.laplacian(x, 0.3)).max() < 1e-6


def test_coefficients_of_polynomials_are_derivatives_at_zero():
    assert P.polynomials(3).names(1) == ("x", "x^2 / 2", "x^3 / 6")
    assert P.polynomials(2).names(2) == ("x1", "x2", "x1^2 / 2", "x1 x2", "x2^2 / 2")
    values = P.polynomials(3).value(np.array([[2.0]]), 0.0)[0]
    assert values == pytest.approx([2.0, 2.0, 8.0 / 6.0])


def test_couplings_carry_all_mass_at_least_cost():
    drawn = np.random.default_rng(0)
    x, y = drawn.standard_normal((12, 1)), drawn.standard_normal((9, 1)) + 1.0
    one = couple(x, y, "auto")
    flat = couple(np.c_[x, 0 * x], np.c_[y, 0 * y], "ot")  # the linear program
    for pairs in (one, flat):
        assert np.bincount(pairs.first, pairs.weight) == pytest.approx(np.full(12, 1 / 12))
        assert np.bincount(pairs.second, pairs.weight) == pytest.approx(np.full(9, 1 / 9))
    costs = [np.sum(c.weight * (x[c.first, 0] - y[c.second, 0]) ** 2) for c in (one, flat)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)
    equal = couple(x[:9], y, "1d")
    flat = couple(np.c_[x[:9], 0 * y], np.c_[y, 0 * y], "ot")  # the assignment
    assert sorted(zip(*equal[:2], strict=True)) == sorted(zip(*flat[:2], strict=True))


@pytest.mark.parametrize("density", ["kde", "gmm", "gaussian", P.polynomials(2)])
def test_scores_of_gaussian_samples(density):
    drawn = np.random.default_rng(0)
    root = np.array([[1.0, 0.0], [0.8, 0.5]])
    x = drawn.standard_normal((800, 2)) @ root.T + [1.0, -1.0]
    score, spread = score_of(x, 0.0, density)
    truth = -(x - [1.0, -1.0]) @ np.linalg.inv(root @ root.T)
    size = np.mean(truth**2)
    assert np.mean((score - truth) ** 2) < (0.4 if density in ("kde", "gmm") else 0.02) * size
    # E[s . grad log rho] = -E[div s]: what the weak form rests on, whatever s is
    products = (score * truth).sum(1) + spread
    if density == "gmm":  # which was fitted to the very samples
        return
    assert abs(products.mean()) < 4 * products.std() / np.sqrt(800) + 0.02 * size
    called = score_of(x[:5], 0.0, lambda points, t: -points)
    assert called[0] == pytest.approx(-x[:5]) and called[1] == pytest.approx(np.full(5, -2.0))


def test_dynamics_are_a_plan():
    plan = plan_of_dynamics(0.0, 1.0, lambda t: 0.0, 200)
    denoiser = denoiser_of_dynamics(lambda x, t: -x * (1.0 + t), 0.0, 1.0)
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    made = df.sample(denoiser, plan, x=x)
    assert made.x == pytest.approx(x.numpy() * np.exp(-1.5), rel=0.01)
    assert int(made.nfe[0]) == 200 and not plan.stochastic
    with pytest.raises(ValueError, match="temperature is -1"):
        plan_of_dynamics(0.0, 1.0, lambda t: -1.0, 10)
    with pytest.raises(ValueError, match="time must rise"):
        plan_of_dynamics(1.0, 1.0, lambda t: 0.0, 10)


GOOD = [np.linspace(-1, 1, 40) * s for s in (1.0, 0.9, 0.7)]


@pytest.mark.parametrize(
    "snapshots, options, error, words",
    [
        (GOOD, {}, TypeError, "times= or tau="),
        (GOOD[:1], {"tau": 0.1}, ValueError, "1 snapshots, but 2"),
        (GOOD, {"tau": -0.1}, ValueError, "tau = -0.1"),
        (GOOD, {"tau": [0.1]}, ValueError, "2 of them"),
        (GOOD, {"times": [0.0, 2.0, 1.0]}, ValueError, "must rise"),
        (GOOD, {"times": [0.0, 1.0]}, ValueError, "2 times, but there are 3"),
        ([GOOD[0], GOOD[1] * np.nan], {"tau": 1.0}, ValueError, "sample 0 of snapshot 1"),
        ([GOOD[0], np.ones((40, 2))], {"tau": 1.0}, ValueError, r"shape \[2\].*\[\]"),
        ([GOOD[0], GOOD[1][:0]], {"tau": 1.0}, ValueError, "holds no samples"),
        ([GOOD[0], GOOD[1][:25]], {"tau": 1.0, "coupling": "given", "groups": 0},
         ValueError, "one has 40 samples and the next 25"),
        ([x[:6] for x in GOOD], {"tau": 1.0}, ValueError, "6 samples"),
        ([x[:15] for x in GOOD], {"tau": 1.0, "density": "kde", "groups": 0},
         ValueError, "needs 20"),
        ([np.ones((40, 2))] * 2, {"tau": 1.0, "density": "kde"}, ValueError, "fewer than 2 dim"),
        (GOOD, {"tau": 1.0, "scheme": "euler"}, ValueError, "scheme = 'euler'"),
        (GOOD, {"tau": 1.0, "potential": None, "internal": False}, ValueError, "nothing to fit"),
        (GOOD, {"tau": 1.0, "potential": "x^2"}, ValueError, "potential is a str"),
        (GOOD, {"tau": 1.0, "potential": P.radial([9e9], 0.1)}, ValueError, "is 0 at every sample"),
        (GOOD, {"tau": 1.0, "potential": P.radial([[0.0, 0.0]], 1.0)}, ValueError, "2 elements"),
        (GOOD, {"tau": 1.0, "internal": -1.0}, ValueError, "0 or more"),
        (GOOD, {"tau": 1.0, "groups": 1}, ValueError, "groups = 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(snapshots, options, error, words):
    with pytest.raises(error, match=words):
        df.thermo.fit_jko(snapshots, **options)


def test_samples_far_from_zero_are_said():
    x = np.random.default_rng(0).standard_normal((400, 1)) + 100.0
    with pytest.raises(ValueError, match="deviations from 0, .* subtract their mean"):
        df.thermo.fit_jko([x, 0.9 * x + 10.0], tau=0.1, potential=4)


def test_a_negative_temperature_is_said():
    """Particles that contract, and a fit that may not explain it by a potential."""
    x = np.random.default_rng(0).standard_normal((2000, 1))
    with pytest.warns(RuntimeWarning, match="no process has a negative one"):
        df.thermo.fit_jko([x, 0.8 * x, 0.64 * x], tau=0.1, potential=None)


def test_a_temperature_that_the_data_do_not_show_is_said():
    held = [x[:60] for x in wells(60, 3, tau=0.01, steps=2)]
    with pytest.warns(df.thermo.FewSamplesWarning, match="fit_jko: the temperature"):
        df.thermo.fit_jko(held, tau=0.01, potential=2)
